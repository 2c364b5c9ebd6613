"""What scripts call beside `/train` and `/status`: `/draw`, `/subjects` and `/stop` (docs/studio.md shows each).

Hidden components give the endpoints their types, so that `gradio_client` uploads and downloads files by itself.
"""

from collections.abc import Mapping
from typing import Any

import gradio as gr

from ..images.drawing_settings import LAYERS, SETTINGS, DrawRequest
from ..images.start_picture import read_start
from ..inference.request import StudioError
from ..service import StudioService, check_limits
from ..subject.layer_strengths import LayerStrengths
from ..subject.setting import Setting
from .common import or_refusal


def build(service: StudioService) -> None:
    """Add the endpoints to the page that is being built."""

    def draw(
        prompt: str, subjects: Any, settings: Any, compare: bool, init_image: str | None = None, mask: str | None = None
    ) -> tuple[list[Any], dict[str, Any]]:
        asked = or_refusal(draw_request, prompt, subjects, settings, init_image, mask)
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
        files, answer = gr.File(label="files", file_count="multiple"), gr.JSON(label="answer")
        start = gr.Button()
    start.click(
        draw, [prompt, strengths, settings, compare, init_image, mask], [files, answer], api_name="draw",
        concurrency_id="draw", show_progress="hidden",
    )  # fmt: skip
    gr.api(subjects, api_name="subjects")
    gr.api(stop, api_name="stop")


def draw_request(
    prompt: str, subjects: Any, settings: Any, init_image: str | None = None, mask: str | None = None
) -> DrawRequest:
    """What a script asks for, checked: it comes from outside.

    Args:
        init_image, mask: files of the picture to start from, and of what of it is drawn anew.

    Raises:
        StudioError: an unknown setting, or a value of the wrong kind.
        DatasetError, PictureError: a picture cannot be read, or the mask does not fit it.
    """
    if mask and not init_image:
        raise StudioError("mask says what of init_image is drawn anew; give both")
    start = read_start(init_image, mask or None)[0] if init_image else None
    strengths = _mapping("subjects", subjects, "a strength for each name: {'my-dog': 0.8}")
    wrong = [name for name, strength in strengths.items() if not _is_number(strength)]
    if wrong:
        raise StudioError(f"the strength of {wrong[0]!r} is {strengths[wrong[0]]!r}, expected a number")
    given = _mapping("settings", settings, f"values by name, among {', '.join(SETTINGS)}")
    if unknown := sorted(given.keys() - SETTINGS.keys()):
        raise StudioError(f"there is no setting {unknown[0]!r}; there are {', '.join(SETTINGS)}")
    layers = _mapping("layers", given.pop("layers", None), "a factor for each kind of layer")
    if unknown := sorted(layers.keys() - LAYERS.keys()):
        raise StudioError(f"there is no kind of layer {unknown[0]!r}; there are {', '.join(LAYERS)}")
    given, layers = (
        {name: _checked(table[name], value) for name, value in found.items() if value is not None}
        for table, found in ((SETTINGS, given), (LAYERS, layers))
    )
    return DrawRequest(prompt, subjects=strengths, layers=LayerStrengths(**layers), start=start, **given)


def _checked(setting: Setting, value: Any) -> Any:
    """A value of the setting's kind."""
    if not (isinstance(value, str) if setting.kind is str else _is_number(value)):
        raise StudioError(f"{setting.name} is {value!r}, expected {'a text' if setting.kind is str else 'a number'}")
    if setting.choices and value not in setting.choices:
        raise StudioError(f"{setting.name} is {value!r}, expected {' or '.join(setting.choices)}")
    if setting.kind is int and isinstance(value, float) and not value.is_integer():
        raise StudioError(f"{setting.name} is {value}, expected a whole number")
    return int(value) if setting.kind is int else value


def _mapping(name: str, value: Any, expected: str) -> dict[str, Any]:
    if value is None or value == "":
        return {}
    if not isinstance(value, Mapping):
        raise StudioError(f"{name} is {str(value)[:80]!r}, expected {expected}")
    return {str(key): one for key, one in value.items()}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
