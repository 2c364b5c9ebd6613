"""What to draw, how far it is, and what came out: the plain data that goes in and out of `Studio`."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from PIL import Image

from ..images.control_picture import ControlPicture
from ..images.drawing_settings import MAX_SEED as MAX_SEED  # what is written so is a part of what this module offers
from ..images.drawing_settings import SETTINGS
from ..images.drawing_settings import DrawRequest as DrawRequest
from ..images.refiner_name import RefinerName as RefinerName
from ..images.start_picture import StartPicture
from ..subject.coefficients import Coefficients
from ..subject.errors import UserError, shown
from ..subject.layer_strengths import LayerStrengths as LayerStrengths
from ..subject.user_file import user_path

OWN_FIELDS = (
    "prompt", "negative_prompt", "prompt_2", "template", "negative_template", "styles", "subjects", "seed"
)  # fmt: skip
"""In what requests that are drawn in one batch may differ (see `Studio.draw_batch`)."""
SHARED_FIELDS = tuple(one.name for one in fields(DrawRequest) if one.name not in (*OWN_FIELDS, "batch_size"))
"""In what they may not."""

PARTS = {
    "start": StartPicture.called.removeprefix("a "),
    "control": ControlPicture.called.removeprefix("a "),
    "refiner": "refiner",
    "hires_scale": "second pass (hires_scale)",
}
"""What some settings mean nothing without (see `Setting.of`), in words."""


class StudioError(UserError, ValueError):
    """A picture cannot be drawn as asked. The message lists everything that is wrong with the request."""


class DrawCancelled(Exception):  # noqa: N818 - not an error: the caller asked for it
    """Drawing ended early because `should_stop` said so."""


@dataclass(frozen=True)
class DrawProgress:
    """One denoising step is done.

    Attributes:
        latents: `[pictures, channels, height, width]`, the picture as it forms; read it, do not change it.
        denoised: of the same shape, the sampler's estimate of the latents at the end; None where it makes none (PLMS).
            See `Studio.preview`.
    """

    step: int
    total: int
    seconds_per_step: float
    latents: torch.Tensor
    denoised: torch.Tensor | None = None

    @property
    def seconds_left(self) -> float:
        """An estimate from the steps so far."""
        return self.seconds_per_step * (self.total - self.step)


def part_of(on_step: Callable[[DrawProgress], None], index: int, parts: int) -> Callable[[DrawProgress], None]:
    """Report one of several drawings of equal length as a part of the whole."""

    def report(progress: DrawProgress) -> None:
        step, total = index * progress.total + progress.step, parts * progress.total
        on_step(replace(progress, step=step, total=total))

    return report


@dataclass(frozen=True)
class Picture:
    """A picture and all it takes to draw it again: `studio.draw(picture.request)` gives this one alone.

    Attributes:
        parameters: the text for the PNG (see `images.files.save_picture`).
        subjects: what took part in it, by name: what the picture has to carry to be drawn again elsewhere.
    """

    image: Image.Image
    request: DrawRequest
    seed: int
    parameters: str
    subjects: Mapping[str, Coefficients] = field(default_factory=dict)


def problems(request: DrawRequest, multiple: int, max_steps: int) -> list[str]:
    """Everything in a request that no base could draw."""
    problems = []
    highest = {"seed": MAX_SEED - request.batch_size + 1, "steps": max_steps}
    for one in SETTINGS.values():
        value, low, high = getattr(request, one.name), one.low, highest.get(one.name, one.high)
        if low is not None and value is not None and not low <= value <= (math.inf if high is None else high):
            expected = f"at least {low}" if high is None else f"{low} to {high}"
            problems.append(f"{one.name} is {value}, expected {expected}")
    for side in ("width", "height"):
        pixels = getattr(request, side)
        if pixels < multiple or pixels % multiple:
            problems.append(f"{side} is {pixels}, expected a multiple of {multiple}")
    problems += [
        f"{name} is {shown(getattr(request, name))}, expected text in UTF-8"
        for name in ("prompt", "negative_prompt", "prompt_2")
        if any("\ud800" <= letter <= "\udfff" for letter in getattr(request, name))
    ]
    for name, strength in request.subjects.items():
        if not math.isfinite(strength):
            problems.append(f"the strength of subject {name!r} is {strength}, expected a finite number")
    problems += request.layers.problems()
    for part, called in PARTS.items():
        if not request.has(part):
            given = [
                one.name for one in SETTINGS.values() if one.of == part and getattr(request, one.name) != one.default
            ]
            problems += [f"{name} is given, but no {called}" for name in given]
    if request.has("hires_scale") and request.start is not None:
        problems.append(
            f"hires_scale is {request.hires_scale:g}, but a drawing from a picture has one pass; leave one of them "
            "out, or draw from a larger picture"
        )
    if request.start is not None and (request.steps or 0) * (request.denoising_strength or 0) < 1:
        problems.append(
            f"denoising_strength {request.denoising_strength} of {request.steps} steps is less than one step, so "
            "nothing would change; take more of either"
        )
    if request.mask_blur is not None and request.start is not None and request.start.mask is None:
        problems.append("mask_blur is given, but no mask")
    if request.begin >= request.end:
        problems.append(f"begin is {request.begin} and end is {request.end}, expected begin before end")
    first, last = request.control_guidance_start, request.control_guidance_end
    if first is not None and last is not None and first >= last:
        problems.append(
            f"control_guidance_start is {first} and control_guidance_end is {last}, expected start before end"
        )
    return problems


def shared_values(request: DrawRequest) -> tuple[Any, ...]:
    """The values of `SHARED_FIELDS`."""
    return tuple(getattr(request, name) for name in SHARED_FIELDS)


def disagreements(requests: Sequence[DrawRequest]) -> list[str]:
    """Why requests cannot be drawn in one batch, a picture each: what differs among them and may not."""
    found = [
        f"batch_size is {one.batch_size}, expected 1 in a batch of requests" for one in requests if one.batch_size > 1
    ]
    for name, values in zip(SHARED_FIELDS, zip(*map(shared_values, requests), strict=True), strict=True):
        other = next((value for value in values if value != values[0]), values[0])
        if other != values[0]:
            found.append(f"{name} is {values[0]!r} and {other!r}, expected the same for all pictures of a batch")
    return list(dict.fromkeys(found))


def split_strength(text: str) -> tuple[str, float]:
    """`"dog.safetensors:0.8"` -> `("dog.safetensors", 0.8)`; without a number after the last colon the strength is 1.

    A file or folder whose own name ends so (`run_12:30:45`) is meant as it stands.

    Raises:
        StudioError: the strength is not finite, or there are files of both names.
    """
    source, colon, number = text.rpartition(":")
    try:
        strength = float(number)
    except ValueError:
        return text, 1.0  # no strength: the colon, if any, is part of the path (C:\\subjects\\dog.safetensors)
    if not colon or not source:
        return text, 1.0
    if user_path(text).exists():
        if user_path(source).exists():
            raise StudioError(f"{text} and {source} are both there; write {text}:1 or {source}:{strength}")
        return text, 1.0
    if not math.isfinite(strength):
        raise StudioError(f"the strength in {text!r} is {number}, expected a finite number")
    return source, strength
