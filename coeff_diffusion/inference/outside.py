"""Requests from outside, as scripts send them: every kind of value is checked before it becomes a `DrawRequest`."""

import sys
import unicodedata
from collections.abc import Mapping
from typing import Any

from ..images.control_picture import read_control
from ..images.drawing_settings import LAYERS, SETTINGS, DrawRequest
from ..images.start_picture import read_start
from ..subject.errors import shown
from ..subject.layer_strengths import LayerStrengths
from ..subject.setting import Setting
from .request import RefinerName, StudioError


def draw_request(
    prompt: Any,
    subjects: Any,
    settings: Any,
    init_image: str | None = None,
    mask: str | None = None,
    control_image: str | None = None,
    controlnet: Any = None,
    refiner: Any = None,
) -> DrawRequest:
    """What a script asks for, checked: it comes from outside.

    Args:
        init_image, mask: files of the picture to start from, and of what of it is drawn anew; never what was sent.
        control_image: a file as well; controlnet: what holds the drawing to it; refiner: what finishes it.

    Raises:
        StudioError: an unknown setting, or a value of the wrong kind.
        DatasetError, PictureError: a picture cannot be read, or the mask does not fit it.
    """
    if mask and not init_image:
        raise StudioError("mask says what of init_image is drawn anew; give both")
    start = read_start(init_image, mask or None)[0] if init_image else None
    if bool(control_image) != bool(controlnet) or not isinstance(controlnet or "", str):
        raise StudioError("a ControlNet, named by a text, holds the drawing to control_image; give both, or none")
    control = read_control(control_image, controlnet)[0] if control_image else None
    if not isinstance(refiner or "", str):
        raise StudioError(f"refiner is {shown(refiner)}, expected a text")
    if not isinstance(prompt, str):
        raise StudioError(f"prompt is {shown(prompt)}, expected a text")
    strengths = _mapping("subjects", subjects, "a strength for each name: {'my-dog': 0.8}")
    strengths = {unicodedata.normalize("NFC", name): strength for name, strength in strengths.items()}
    wrong = [name for name, strength in strengths.items() if not _is_number(strength)]
    if wrong:
        raise StudioError(f"the strength of {shown(wrong[0])} is {shown(strengths[wrong[0]])}, expected a number")
    given = _mapping("settings", settings, f"values by name, among {', '.join(SETTINGS)}")
    if unknown := sorted(given.keys() - SETTINGS.keys()):
        raise StudioError(f"there is no setting {shown(unknown[0])}; there are {', '.join(SETTINGS)}")
    layers = _mapping("layers", given.pop("layers", None), "a factor for each kind of layer")
    if unknown := sorted(layers.keys() - LAYERS.keys()):
        raise StudioError(f"there is no kind of layer {shown(unknown[0])}; there are {', '.join(LAYERS)}")
    given, layers = (
        {name: _checked(table[name], value) for name, value in found.items() if value is not None}
        for table, found in ((SETTINGS, given), (LAYERS, layers))
    )
    return DrawRequest(
        prompt,
        subjects=strengths,
        layers=LayerStrengths(**layers),
        start=start,
        control=control,
        refiner=RefinerName(refiner) if refiner else None,
        **given,
    )


def style_names(value: Any) -> list[str]:
    """The names of styles that a script sends; none where it sends nothing. Raises StudioError: it is no such list."""
    if value is None or value == "":
        return []
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise StudioError(f"styles is {shown(value)}, expected a list of names: ['watercolour']")
    return value


def _checked(setting: Setting, value: Any) -> Any:
    """A value of the setting's kind."""
    if not (isinstance(value, str) if setting.kind is str else _is_number(value)):
        raise StudioError(
            f"{setting.name} is {shown(value)}, expected {'a text' if setting.kind is str else 'a number'}"
        )
    if setting.choices and value not in setting.choices:
        raise StudioError(f"{setting.name} is {shown(value)}, expected {' or '.join(setting.choices)}")
    if setting.kind is int and isinstance(value, float) and not value.is_integer():
        raise StudioError(f"{setting.name} is {value}, expected a whole number")
    return int(value) if setting.kind is int else value


def _mapping(name: str, value: Any, expected: str) -> dict[str, Any]:
    if value is None or value == "":
        return {}
    if not isinstance(value, Mapping):
        raise StudioError(f"{name} is {shown(value)}, expected {expected}")
    return {str(key): one for key, one in value.items()}


def _is_number(value: Any) -> bool:
    """Whether it is a number, and no whole one beyond what can be computed with: JSON sets those no end."""
    return isinstance(value, float) or (type(value) is int and abs(value) <= sys.float_info.max)
