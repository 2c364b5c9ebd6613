"""What scripts call beside `/train` and `/status`: `/draw`, `/subjects` and `/stop` (docs/studio.md shows each).

Hidden components give the endpoints their types, so that `gradio_client` uploads and downloads files by itself.
"""

from typing import Any

import gradio as gr

from ..inference.outside import draw_request
from ..service import StudioService, check_limits
from .common import or_refusal


def build(service: StudioService) -> None:
    """Add the endpoints to the page that is being built."""

    def draw(
        prompt: str,
        subjects: Any,
        settings: Any,
        compare: bool,
        init_image: str | None = None,
        mask: str | None = None,
        control_image: str | None = None,
        controlnet: str | None = None,
    ) -> tuple[list[Any], dict[str, Any]]:
        asked = or_refusal(draw_request, prompt, subjects, settings, init_image, mask, control_image, controlnet)
        request = or_refusal(check_limits, service.studio, asked)
        drawing = or_refusal(service.drawings.draw, request, compare)
        served = [files.move_resource_to_block_cache(file) for file in drawing.files]
        return served, {
            "files": [file.name for file in drawing.files],
            "seed": drawing.pictures[0].seed,
            "notes": drawing.notes,
            "parameters": [picture.parameters for picture in (*drawing.base, *drawing.pictures)],
        }

    def stop(number: int) -> dict[str, Any]:
        or_refusal(service.training_queue.stop, number)
        job = service.training_queue.find(number)
        return {} if job is None else job.report(service.training_queue.place(job))

    def subjects() -> list[dict[str, Any]]:
        return [
            {
                "name": entry.name,
                "trigger": entry.info.trigger,
                "class_word": entry.info.class_word,
                "bytes": entry.size,
                "problem": entry.problem,
            }
            for entry in or_refusal(service.library_view.entries)
        ]

    with gr.Row(visible=False):
        prompt, strengths = gr.Textbox(label="prompt"), gr.JSON(label="subjects")
        settings, compare = gr.JSON(label="settings"), gr.Checkbox(False, label="compare")
        init_image, mask = gr.File(label="init_image"), gr.File(label="mask")
        control_image, controlnet = gr.File(label="control_image"), gr.Textbox(label="controlnet")
        files, answer = gr.File(label="files", file_count="multiple"), gr.JSON(label="answer")
        start = gr.Button()
    start.click(
        draw, [prompt, strengths, settings, compare, init_image, mask, control_image, controlnet], [files, answer],
        api_name="draw",
        concurrency_id="draw", show_progress="hidden",
    )  # fmt: skip
    gr.api(subjects, api_name="subjects")
    gr.api(stop, api_name="stop")
