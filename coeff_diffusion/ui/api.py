"""What scripts call (docs/studio.md shows each). They go on working when the base is changed.

Hidden components give the endpoints their types, so that `gradio_client` uploads and downloads files by itself.
"""

from pathlib import Path
from typing import Any

import gradio as gr

from ..images.drawing_settings import DrawRequest
from ..inference.outside import draw_request, style_names
from ..inference.request import StudioError
from ..service import Bases, TrainingForm, TrainingJob, check_limits
from ..service.messages import by_name
from ..service.presets import PRESETS
from ..subject.errors import shown
from .common import REFUSALS, or_refusal, refusal


def build(bases: Bases) -> None:
    """Add the endpoints to the page that is being built."""
    _drawing(bases)
    _training(bases)

    def base(name: str = "") -> dict[str, Any]:
        """Draw with another base from now on; without a name, say which one is drawn with and which can be."""
        try:
            if not isinstance(name or "", str):
                raise StudioError(f"the base is {shown(name)}, expected a text")
            if name:
                for _ in bases.watch(name):
                    pass
        except REFUSALS as error:
            raise refusal(error) from error
        return {"base": bases.shown(), "about": bases.about(), "choices": [value for _, value in bases.choices()]}

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

    gr.api(subjects, api_name="subjects")
    gr.api(base, api_name="base")


def _drawing(bases: Bases) -> None:
    def draw(
        prompt: str,
        subjects: Any,
        settings: Any,
        compare: bool,
        init_image: str | None = None,
        mask: str | None = None,
        control_image: str | None = None,
        controlnet: str | None = None,
        refiner: str | None = None,
        styles: Any = None,
    ) -> tuple[list[Any], dict[str, Any]]:
        service = bases.current
        beside = init_image, mask, control_image, controlnet, refiner
        asked = or_refusal(_asked, prompt, subjects, settings, *beside)
        styled = or_refusal(service.drawings.templates.applied, asked, or_refusal(style_names, styles))
        request = or_refusal(check_limits, service.studio, styled)
        drawing = or_refusal(service.drawings.draw, request, compare)
        served = [files.move_resource_to_block_cache(file) for file in drawing.files]
        return served, {
            "files": [file.name for file in drawing.files],
            "seed": drawing.pictures[0].seed,
            "notes": drawing.notes,
            "parameters": [picture.parameters for picture in (*drawing.base, *drawing.pictures)],
        }

    with gr.Row(visible=False):
        given = [
            gr.Textbox(label="prompt"),
            gr.JSON(label="subjects"),
            gr.JSON(label="settings"),
            gr.Checkbox(False, label="compare"),
            gr.File(label="init_image"),
            gr.File(label="mask"),
            gr.File(label="control_image"),
            gr.Textbox(label="controlnet"),
            gr.Textbox(label="refiner"),
            gr.JSON(label="styles"),
        ]
        files, answer = gr.File(label="files", file_count="multiple"), gr.JSON(label="answer")
        start = gr.Button()
    start.click(draw, given, [files, answer], api_name="draw", concurrency_id="draw", show_progress="hidden")


def _asked(prompt: str, subjects: Any, settings: Any, *beside: str | None) -> DrawRequest:
    with by_name(*filter(None, beside)):
        return draw_request(prompt, subjects, settings, *beside)


def _training(bases: Bases) -> None:
    def train(files: list[str] | None, name: str | None, word: str | None, preset: str, changes: Any) -> Any:
        if not isinstance(changes or {}, dict):
            raise refusal(
                StudioError(f"settings is {shown(changes)}, expected values by name: {{'max_train_steps': 60}}")
            )
        paths = [Path(file) for file in files or []]
        form = TrainingForm(paths, name or "", word or "", preset, changes or {})
        return report(or_refusal(bases.current.training_queue.submit, form))

    def report(job: TrainingJob) -> dict[str, Any]:
        return job.report(bases.current.training_queue.place(job))

    def status() -> list[dict[str, Any]]:
        """Every training that is remembered; those that wait in the order of the line."""
        return [report(job) for job in bases.current.training_queue.jobs]

    def stop(number: int) -> dict[str, Any]:
        job = bases.current.training_queue.find(number) if isinstance(number, int) else None
        if job is None:
            raise refusal(StudioError(f"there is no training {shown(number)}; /status names those that there are"))
        bases.current.training_queue.stop(number)
        return report(job)

    with gr.Row(visible=False):
        given = [
            gr.File(label="pictures", file_count="multiple"),
            gr.Textbox(label="name"),
            gr.Textbox(label="class word"),
            gr.Radio([*PRESETS], label="preset"),
            gr.JSON({}, label="settings"),
        ]
        training, start = gr.JSON(label="training"), gr.Button()
    start.click(train, given, training, api_name="train", show_progress="hidden")
    gr.api(status, api_name="status")
    gr.api(stop, api_name="stop")
