"""One batch through the stock pipeline: set up, watched at every step, and put back as it was."""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, SchedulerMixin, UniPCMultistepScheduler
from PIL import Image

from ..families.controlnets import ControlNet
from ..families.registry import family_of
from ..subject.layer_strengths import LayerStrengths
from .cut_off import told
from .from_picture import Inpainting, finished, picture_options, pipeline_for, taken_by
from .pipeline_subjects import loaded_coefficients, set_coefficients
from .request import DrawCancelled, DrawProgress, DrawRequest, StudioError


def sample(
    pipe: Any,
    scheduler: SchedulerMixin,
    requests: Sequence[DrawRequest],
    on_step: Callable[[DrawProgress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    controlnet: ControlNet | None = None,
) -> list[Image.Image]:
    """Draw one picture per request, all at once.

    Args:
        scheduler: the sampler, for this batch alone.
        requests: with every choice made, alike but for prompts, subjects and seeds.
        controlnet: that of the requests, if they have a control picture.

    Raises:
        StudioError: the numbers broke up. DrawCancelled: `should_stop` said so.
    """
    first, started, estimate = requests[0], time.monotonic(), Estimate(scheduler)
    steps, mask = first.steps, None if first.start is None else first.start.mask
    inpainting = None if mask is None else Inpainting(scheduler, mask, pipe.vae_scale_factor)
    assert steps is not None

    def after_step(drawing: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        step, total, latents = index + 1, drawing.num_timesteps, tensors["latents"]
        if inpainting is not None:
            latents = inpainting.kept(latents, step, total)
        if step == total and not bool(torch.isfinite(latents).all()):
            raise StudioError(
                "the picture broke up into infinities; lower the strength of the subjects or the guidance"
                + ("" if latents.dtype == torch.float32 else f", or use float32 instead of {latents.dtype}")
            )
        if on_step is not None:
            on_step(DrawProgress(step, total, (time.monotonic() - started) / step, latents, estimate.latest))
        if should_stop is not None and should_stop():
            raise DrawCancelled
        # Heun and PLMS call the UNet more often than there are steps. Its calls, spread evenly, hit the steps exactly.
        done, coming = index * steps // total, step * steps // total
        if step < total and first.acts_in(coming) != first.acts_in(done):
            _let_act(pipe, requests, coming)
        return {"latents": latents}

    with _prepared(pipe, scheduler), told(pipe), _seeing(pipe):
        _let_act(pipe, requests, 0)
        drawing = pipeline_for(pipe, first, controlnet)
        taken, negative = taken_by(drawing), [request.negative_prompt for request in requests]
        accepted = [name for name in family_of(pipe).drawing if name in taken]
        options = {
            "prompt_2": [request.prompt_2 or request.prompt for request in requests],
            # None at all is not the same as an empty one to Stable Diffusion XL.
            "negative_prompt": negative if any(negative) else None,
            "guidance_scale": first.guidance_scale,
            "guidance_rescale": first.guidance_rescale or 0.0,
        }
        size = {"height": first.height, "width": first.width}
        try:
            output = drawing(
                prompt=[request.prompt for request in requests],
                num_inference_steps=steps,
                **{name: value for name, value in size.items() if name in taken},
                **{name: value for name, value in options.items() if name in accepted},
                **picture_options(requests),
                generator=[_generator(request) for request in requests],
                callback_on_step_end=after_step,
            )
        finally:
            pipe.maybe_free_model_hooks()
    return [finished(image, request) for image, request in zip(output.images, requests, strict=True)]


@contextmanager
def _seeing(pipe: Any) -> Iterator[None]:
    """Where the autoencoder's numbers overflow, an error instead of a black picture."""

    def check(decoder: torch.nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor) and not bool(torch.isfinite(output).all()):
            raise StudioError(
                f"the autoencoder of this base overflows in {output.dtype}, so the picture would be black; draw in "
                "bfloat16 or float32 (--dtype), or give an autoencoder that is made for float16 "
                "(--pretrained_vae_model_name_or_path)"
            )

    handle = pipe.vae.decoder.register_forward_hook(check)
    try:
        yield
    finally:
        handle.remove()


def rest(pipe: Any) -> None:
    """Between drawings no subject acts. Untouched where none is loaded: a trainer's own attachment stays."""
    if loaded_coefficients(pipe):
        set_coefficients(pipe, {})


class Estimate:
    """What a sampler takes the finished latents to be, caught at each of its steps: the pipeline throws it away.

    Attributes:
        latest: of the last step, like the latents `[P, C, h, w]`; None before it, and where the sampler has none.
    """

    def __init__(self, scheduler: SchedulerMixin) -> None:
        self.latest: torch.Tensor | None = None
        step = scheduler.step

        @functools.wraps(step)  # the pipeline looks at the signature
        def watched(*args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
            output = step(*args, **kwargs)
            self.latest = _denoised(scheduler, output)
            return output if return_dict else output.to_tuple()

        scheduler.step = watched


def _denoised(scheduler: SchedulerMixin, output: Any) -> torch.Tensor | None:
    """The estimate in the output of a sampler's step, or in what a multistep sampler keeps for the next one."""
    if isinstance(scheduler, DPMSolverMultistepScheduler):
        kept = scheduler.config.algorithm_type in ("dpmsolver++", "sde-dpmsolver++")
    else:
        kept = isinstance(scheduler, UniPCMultistepScheduler) and scheduler.config.predict_x0
    estimate: torch.Tensor | None = scheduler.model_outputs[-1] if kept else output.get("pred_original_sample")
    return estimate


def _let_act(pipe: Any, requests: Sequence[DrawRequest], step: int) -> None:
    """Let subjects act in this step and the next ones, or leave these to the base."""
    first = requests[0]
    if loaded_coefficients(pipe):
        strengths = [{name: float(value) for name, value in request.subjects.items()} for request in requests]
        # The prompts are read once, before the first step: words and text encoders have their strengths in any case.
        layers, adapter = first.layers, first.adapter_strength
        if not first.acts_in(step):
            layers, adapter = LayerStrengths(self_attention=0, cross_attention=0, text=layers.text), 0.0
        set_coefficients(pipe, per_sample=strengths, gate=first.gate, layers=layers, adapter_strength=adapter)


def _generator(request: DrawRequest) -> torch.Generator:
    """Its own for each picture, on the CPU: any device draws the same noise, and any picture can be drawn alone."""
    assert request.seed is not None
    return torch.Generator().manual_seed(request.seed)


@contextmanager
def _prepared(pipe: Any, scheduler: SchedulerMixin) -> Iterator[None]:
    """The pipeline with this sampler, in evaluation mode and quiet. All put back afterwards, and no subject acts."""
    own, bar = pipe.scheduler, getattr(pipe, "_progress_bar_config", {})
    networks = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    training = [module for network in networks for module in network.modules() if module.training]
    try:
        for module in training:  # a preview in the middle of training must not draw with dropout
            module.training = False
        pipe.scheduler = scheduler
        pipe.set_progress_bar_config(**{**bar, "disable": True})
        yield
    finally:
        for module in training:
            module.training = True
        pipe.scheduler = own
        pipe.set_progress_bar_config(**bar)
        rest(pipe)
