"""The last part of a drawing by a refiner: the base stops where noise is left, and the refiner goes on from there.

Bit by bit what diffusers documents for Stable Diffusion XL: the base with `denoising_end`, the refiner with
`denoising_start`. No subject acts in the refiner: its layers are other ones than those that coefficients belong to.

Legend: P pictures of a batch; C, h, w channels and size of the latents.
"""

from collections.abc import Callable, Sequence
from typing import Any

from diffusers import HeunDiscreteScheduler, PNDMScheduler, SchedulerMixin
from PIL import Image
from torch import Tensor

from ..families.refiners import Refiner
from .cut_off import told
from .pass_progress import Pass, told_as_one
from .request import DrawProgress, DrawRequest
from .samplers import SchedulerError, compatible_schedulers, make_scheduler
from .sampling import Watch, generators_of, prepared, sample_until, seeing, text_options

IN_ONE_GO = (HeunDiscreteScheduler, PNDMScheduler)
"""Samplers whose steps lean on the calls before them: what begins in the middle loses one."""


def refiner_problems(request: DrawRequest, own: SchedulerMixin) -> list[str]:
    """Why a request, every choice made, cannot be finished by its refiner.

    Args:
        own: the base's scheduler.

    Raises:
        SchedulerError: its sampler cannot change the network on the way.
    """
    wrong = []
    if others := [words for part, words in NOT_WITH.items() if request.has(part)]:
        wrong.append(f"the refiner finishes drawings from noise in one pass; leave it out, or {' and '.join(others)}")
    first, second = calls_of(request, own)
    if not first or not second:
        stage = "refiner" if first else "base"
        wrong.append(
            f"refiner_switch_at {request.refiner_switch_at:g} of {request.steps} steps leaves none to the {stage}; "
            "take more steps, or switch elsewhere"
        )
    return wrong


NOT_WITH = {"start": "the picture to start from", "control": "the ControlNet", "hires_scale": "the second pass"}


def calls_of(request: DrawRequest, own: SchedulerMixin) -> tuple[int, int]:
    """How often the base and the refiner are called, which is a step each.

    Raises:
        SchedulerError: the sampler cannot change the network on the way.
    """
    scheduler = make_scheduler(request.scheduler, own)
    if isinstance(scheduler, IN_ONE_GO):
        able = [one for one in compatible_schedulers(own) if not isinstance(make_scheduler(one, own), IN_ONE_GO)]
        raise SchedulerError(
            f"scheduler {request.scheduler!r} cannot hand over to a refiner in the middle; use one of {', '.join(able)}"
        )
    assert request.refiner_switch_at is not None
    scheduler.set_timesteps(request.steps)
    total = scheduler.config.num_train_timesteps
    first = int((scheduler.timesteps >= round(total - request.refiner_switch_at * total)).sum())
    return first, len(scheduler.timesteps) - first


def draw_refined(
    pipe: Any,
    refiner: Refiner,
    requests: Sequence[DrawRequest],
    texts: Sequence[DrawRequest],
    on_step: Callable[[DrawProgress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> list[Image.Image]:
    """Draw one picture per request, both stages told as one.

    Args:
        texts: the same requests with prompts in words that the refiner knows.

    Raises: as `sample`.
    """
    first, own = requests[0], pipe.scheduler
    calls = calls_of(first, own)
    tell_base, tell_refiner = told_as_one(on_step, [Pass(count) for count in calls])
    generators = generators_of(requests)  # they go on where the base's last step leaves them
    assert first.refiner_switch_at is not None
    at = float(first.refiner_switch_at)
    scheduler = make_scheduler(first.scheduler, own)
    latents = sample_until(pipe, scheduler, requests, at, generators, tell_base, should_stop)
    scheduler = make_scheduler(first.scheduler, own)
    with prepared(refiner.pipe, scheduler), told(refiner.pipe), seeing(pipe):
        return _refined(refiner.pipe, scheduler, texts, latents, generators, tell_refiner, should_stop)


def _refined(
    drawing: Any,
    scheduler: SchedulerMixin,
    texts: Sequence[DrawRequest],
    latents: Tensor,
    generators: list[Any],
    on_step: Callable[[DrawProgress], None] | None,
    should_stop: Callable[[], bool] | None,
) -> list[Image.Image]:
    """The pictures that the refiner makes of unfinished latents `[P, C, h, w]`."""
    first, watch = texts[0], Watch(scheduler, on_step, should_stop)
    read = [request.texts(["text_encoder_2"])["text_encoder_2"] for request in texts]  # the only encoder it has

    def after_step(drawing: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        watch.after(index + 1, drawing.num_timesteps, tensors["latents"])
        return {}

    output = drawing(
        prompt=read,
        image=latents,
        num_inference_steps=first.steps,
        denoising_start=float(first.refiner_switch_at or 0),
        **{name: value for name, value in text_options(texts).items() if name != "prompt_2"},
        generator=generators,
        callback_on_step_end=after_step,
    )
    images: list[Image.Image] = output.images
    return images
