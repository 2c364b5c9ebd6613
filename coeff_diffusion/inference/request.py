"""What to draw, how far it is, and what came out: the plain data that goes in and out of `Studio`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Literal

import torch
from PIL import Image

from ..subject.coefficients import Coefficients
from ..subject.errors import UserError
from ..subject.layer_strengths import LayerStrengths as LayerStrengths  # a part of what this module offers

MAX_SEED = 2**32 - 1
OWN_FIELDS = ("prompt", "negative_prompt", "subjects", "seed")
"""In what requests that are drawn in one batch may differ (see `Studio.draw_batch`)."""


class StudioError(UserError, ValueError):
    """A picture cannot be drawn as asked. The message lists everything that is wrong with the request."""


class DrawCancelled(Exception):  # noqa: N818 - not an error: the caller asked for it
    """Drawing ended early because `should_stop` said so."""


@dataclass(frozen=True)
class DrawRequest:
    """What to draw. Every field but the prompt has a default."""

    prompt: str
    """What the picture shows; a subject is called up by its trigger."""
    negative_prompt: str = ""
    """What the picture should not show."""
    subjects: Mapping[str, float] = field(default_factory=dict)
    """Strength of the coefficients of each loaded subject that takes part: 1 as trained, 0 off. A learned trigger has
    no strength: while its subject is loaded, it is a word like any other."""
    seed: int | None = None
    """Seed of the first picture, the next ones count up from it; None draws one at random."""
    steps: int = 20
    """Denoising steps."""
    guidance_scale: float = 7.5
    """How strongly the picture follows the prompt; 1 turns guidance off."""
    guidance_rescale: float | None = None
    """Correction of overexposure by guidance, 0 to 1; None is 0.7 for a base with zero terminal SNR, else 0."""
    scheduler: str | None = None
    """Sampler, by A1111's or diffusers' name; None is the base's own."""
    width: int | None = None
    """Pixels; None is the size the base was trained at."""
    height: int | None = None
    """Pixels; None is the size the base was trained at."""
    batch_size: int = 1
    """Pictures drawn at once."""
    gate: Literal["trigger", "always"] | None = None
    """Act on prompts with the trigger only, or on all; None is what each subject was saved with."""
    layers: LayerStrengths = field(default_factory=LayerStrengths)
    """Factors on the strength of every subject, by kind of attention layer."""
    begin: float = 0.0
    """Subjects act from this part of denoising on, 0 to 1. A learned trigger stays in the prompt all the time: what is
    limited are the coefficients."""
    end: float = 1.0
    """Subjects act before this part of denoising: in step i of n, counted from 0, if begin <= i / n < end."""

    def acts_in(self, step: int) -> bool:
        """Whether subjects act in this denoising step, counted from 0."""
        return self.begin <= step / self.steps < self.end


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


@dataclass(frozen=True)
class Picture:
    """A picture and all it takes to draw it again: `studio.draw(picture.request)` gives this one alone.

    Attributes:
        parameters: the text for the PNG (see `pictures.save_picture`).
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
    if request.batch_size < 1:
        problems.append(f"batch_size is {request.batch_size}, expected at least 1")
    if not 0 <= (request.seed or 0) <= MAX_SEED - request.batch_size + 1:
        problems.append(f"seed is {request.seed}, expected 0 to {MAX_SEED - request.batch_size + 1}")
    if not 1 <= request.steps <= max_steps:
        problems.append(f"steps is {request.steps}, expected 1 to {max_steps}")
    if not 0 <= request.guidance_scale <= 100:
        problems.append(f"guidance_scale is {request.guidance_scale}, expected 0 to 100")
    if not 0 <= (request.guidance_rescale or 0) <= 1:
        problems.append(f"guidance_rescale is {request.guidance_rescale}, expected 0 to 1")
    for side in ("width", "height"):
        pixels = getattr(request, side)
        if pixels < multiple or pixels % multiple:
            problems.append(f"{side} is {pixels}, expected a multiple of {multiple}")
    for name, strength in request.subjects.items():
        if not math.isfinite(strength):
            problems.append(f"the strength of subject {name!r} is {strength}, expected a finite number")
    problems += request.layers.problems()
    for limit in ("begin", "end"):
        if not 0 <= getattr(request, limit) <= 1:
            problems.append(f"{limit} is {getattr(request, limit)}, expected 0 to 1")
    if request.begin >= request.end:
        problems.append(f"begin is {request.begin} and end is {request.end}, expected begin before end")
    return problems


def disagreements(requests: Sequence[DrawRequest]) -> list[str]:
    """Why requests cannot be drawn in one batch, a picture each: what differs among them and may not."""
    found = [
        f"batch_size is {one.batch_size}, expected 1 in a batch of requests" for one in requests if one.batch_size > 1
    ]
    for name in (one.name for one in fields(DrawRequest) if one.name not in (*OWN_FIELDS, "batch_size")):
        values = [getattr(request, name) for request in requests]
        other = next((value for value in values if value != values[0]), values[0])
        if other != values[0]:
            found.append(f"{name} is {values[0]!r} and {other!r}, expected the same for all pictures of a batch")
    return list(dict.fromkeys(found))


def split_strength(text: str) -> tuple[str, float]:
    """`"dog.safetensors:0.8"` -> `("dog.safetensors", 0.8)`; without a number after the last colon the strength is 1.

    Raises:
        StudioError: the strength is not finite.
    """
    source, colon, number = text.rpartition(":")
    try:
        strength = float(number)
    except ValueError:
        return text, 1.0  # no strength: the colon, if any, is part of the path (C:\\subjects\\dog.safetensors)
    if not colon or not source:
        return text, 1.0
    if not math.isfinite(strength):
        raise StudioError(f"the strength in {text!r} is {number}, expected a finite number")
    return source, strength
