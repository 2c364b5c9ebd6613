"""What scripts call (docs/studio.md shows each). They go on working when the base is changed.

Hidden components give the endpoints their types, so that `gradio_client` uploads and downloads files by itself.
"""

from pathlib import Path
from typing import Any

import gradio as gr

from ..inference.outside import draw_request
from ..service import Bases, TrainingForm, TrainingJob, check_limits
from ..service.presets import PRESETS
from .common import REFUSALS, or_refusal, refusal


def build(bases: Bases) -> None:
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
        service = bases.current
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

    def train(files: list[str] | None, name: str, word: str, preset: str, changes: dict[str, Any] | None) -> Any:
        paths = [Path(file) for file in files or []]
        form = TrainingForm(paths, name, word, preset, changes or {})
        return report(or_refusal(bases.current.training_queue.submit, form))

    def report(job: TrainingJob) -> dict[str, Any]:
        return job.report(bases.current.training_queue.place(job))

    def status() -> list[dict[str, Any]]:
        """Every training that is remembered; those that wait in the order of the line."""
        return [report(job) for job in bases.current.training_queue.jobs]

    def stop(number: int) -> dict[str, Any]:
        or_refusal(bases.current.training_queue.stop, number)
        job = bases.current.training_queue.find(number)
        return {} if job is None else report(job)

    def base(name: str = "") -> dict[str, Any]:
        """Draw with another base from now on; without a name, say which one is drawn with and which can be."""
        try:
            if name:
                for _ in bases.watch(name):
                    pass
        except REFUSALS as error:
            raise refusal(error) from error
        return {
            "base": bases.shown(), "about": bases.about(), "choices": [value for _, value in bases.choices()]
        }  # fmt: skip

    def subjects() -> list[dict[str, Any]]:
        return [
            {
                "name": entry.name,
                "trigger": entry.info.trigger,
                "class_word": entry.info.class_word,
                "bytes": entry.size,
                "problem": entry.problem,
            }
            for entry in or_refusal(bases.current.library_view.entries)
        ]

    with gr.Row(visible=False):
        prompt, strengths = gr.Textbox(label="prompt"), gr.JSON(label="subjects")
        settings, compare = gr.JSON(label="settings"), gr.Checkbox(False, label="compare")
        init_image, mask = gr.File(label="init_image"), gr.File(label="mask")
        control_image, controlnet = gr.File(label="control_image"), gr.Textbox(label="controlnet")
        files, answer = gr.File(label="files", file_count="multiple"), gr.JSON(label="answer")
        pictures = gr.File(label="pictures", file_count="multiple")
        name, word, preset = (
            gr.Textbox(label="name"),
            gr.Textbox(label="class word"),
            gr.Radio([*PRESETS], label="preset"),
        )
        changes, training = gr.JSON({}, label="settings"), gr.JSON(label="training")
        start, start_training = gr.Button(), gr.Button()
    start.click(
        draw, [prompt, strengths, settings, compare, init_image, mask, control_image, controlnet], [files, answer],
        api_name="draw",
        concurrency_id="draw", show_progress="hidden",
    )  # fmt: skip
    start_training.click(
        train, [pictures, name, word, preset, changes], training, api_name="train", show_progress="hidden"
    )
    for call in (subjects, status, stop, base):
        gr.api(call, api_name=call.__name__)
