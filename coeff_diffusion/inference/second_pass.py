"""The second pass of a drawing: what was drawn is made larger, and drawn again from that (A1111's Hires. fix).

The base draws the whole at the size it knows, and then adds what detail the larger size has room for.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from diffusers import SchedulerMixin
from PIL import Image

from ..families.controlnets import ControlNet
from ..families.registry import family_of
from ..images.start_picture import StartPicture
from .pass_progress import Pass, told_as_one
from .request import DrawProgress, DrawRequest
from .samplers import make_scheduler, most_steps, steps_near
from .sampling import sample
from .upscaling import Upscaler


def second_size(request: DrawRequest, multiple: int) -> tuple[int, int]:
    """Width and height of the second pass in pixels: so many times those of the first, down to the next multiple."""
    assert request.width is not None
    assert request.height is not None
    width, height = (
        int(round(side * request.hires_scale, 6)) // multiple * multiple for side in (request.width, request.height)
    )
    return width, height


def second_problems(request: DrawRequest, scheduler: SchedulerMixin, multiple: int) -> list[str]:
    """Why the second pass of a request, every choice made, cannot be drawn.

    Args:
        scheduler: the base's own.
    """
    found, first = [], (request.width, request.height)
    if second_size(request, multiple) == first:
        found.append(f"hires_scale is {request.hires_scale:g}, which makes {first[0]} x {first[1]} pixels no larger")
    if steps_to_ask(request, scheduler) is None:
        strength, steps = request.hires_denoising_strength, steps_of(request)
        found.append(
            f"hires_denoising_strength is {strength:g}, at which this base cannot draw a second pass of {steps} steps "
            "(hires_steps); take another number of steps, or a higher strength"
        )
    return found


def steps_to_ask(request: DrawRequest, scheduler: SchedulerMixin) -> int | None:
    """The number of steps of which image to image takes as many as the second pass is to have; None if there is none.

    Image to image takes the part `hires_denoising_strength` of its steps; A1111 counts those that are taken.
    """
    taken, strength = steps_of(request), request.hires_denoising_strength
    assert strength is not None
    if not strength:
        return None
    steps = int(taken / strength)
    while steps <= most_steps(scheduler) and (part := int(steps * strength)) <= taken:
        if part == taken and steps_near(scheduler, steps) == steps:
            return steps
        steps += 1
    return None


def draw_passes(
    pipe: Any,
    requests: Sequence[DrawRequest],
    upscaler: Upscaler,
    on_step: Callable[[DrawProgress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    controlnet: ControlNet | None = None,
) -> list[Image.Image]:
    """Draw one picture per request, in one pass or in two, which are told as one.

    The prompts, the subjects and when in a pass they act, the seeds, the sampler and the ControlNet are those of both.

    Raises: as `sample`.
    """
    first, own = requests[0], pipe.scheduler
    if not first.has("hires_scale"):
        return sample(pipe, make_scheduler(first.scheduler, own), requests, on_step, should_stop, controlnet)
    size, steps = second_size(first, family_of(pipe).multiple(pipe)), steps_to_ask(first, own)
    assert first.steps is not None
    assert first.width is not None
    assert first.height is not None
    assert steps is not None
    cost = size[0] * size[1] / (first.width * first.height)
    calls = Pass(_calls(first, first.steps, first.steps, own)), Pass(_calls(first, steps, steps_of(first), own), cost)
    tell_first, tell_second = told_as_one(on_step, calls)
    drawn = sample(pipe, make_scheduler(first.scheduler, own), requests, tell_first, should_stop, controlnet)
    again = [
        replace(
            request,
            start=StartPicture(upscaler.enlarged(image, size)),
            control=request.control and request.control.fitted(size),
            denoising_strength=request.hires_denoising_strength,
            steps=steps,
            width=size[0],
            height=size[1],
        )
        for image, request in zip(drawn, requests, strict=True)
    ]
    return sample(pipe, make_scheduler(first.scheduler, own), again, tell_second, should_stop, controlnet)


def steps_of(request: DrawRequest) -> int:
    """How many steps the second pass takes."""
    assert request.steps is not None
    return request.hires_steps or request.steps


def _calls(request: DrawRequest, steps: int, taken: int, own: SchedulerMixin) -> int:
    """How often the last `taken` of so many steps call the denoiser; of some samplers a step does so twice."""
    scheduler = make_scheduler(request.scheduler, own)
    scheduler.set_timesteps(steps)
    return len(scheduler.timesteps) - (steps - taken) * scheduler.order
