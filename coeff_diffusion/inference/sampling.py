"""One batch through the stock pipeline: set up, watched at every step, and put back as it was."""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, SchedulerMixin, UniPCMultistepScheduler
from PIL import Image
from torch import Tensor

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
    watch = Watch(scheduler, on_step, should_stop)
    images = _sampled(pipe, scheduler, requests, watch, generators_of(requests), controlnet)
    return [finished(image, request) for image, request in zip(images, requests, strict=True)]


def sample_until(
    pipe: Any,
    scheduler: SchedulerMixin,
    requests: Sequence[DrawRequest],
    end: float,
    generators: list[torch.Generator],
    on_step: Callable[[DrawProgress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Tensor:
    """The same, from noise, up to a part of denoising: the latents with the noise that is left, `[P, C, h, w]`."""
    watch = Watch(scheduler, on_step, should_stop)
    latents: Tensor = _sampled(pipe, scheduler, requests, watch, generators, end=end)
    return latents


def _sampled(
    pipe: Any,
    scheduler: SchedulerMixin,
    requests: Sequence[DrawRequest],
    watch: "Watch",
    generators: list[torch.Generator],
    controlnet: ControlNet | None = None,
    end: float | None = None,
) -> Any:
    """Pictures, or the latents where they stop at `end`."""
    first = requests[0]
    steps, mask = first.steps, None if first.start is None else first.start.mask
    inpainting = None if mask is None else Inpainting(scheduler, mask, pipe.vae_scale_factor)
    assert steps is not None

    def after_step(drawing: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        step, total, latents = index + 1, drawing.num_timesteps, tensors["latents"]
        if inpainting is not None:
            latents = inpainting.kept(latents, step, total)
        watch.after(step, total, latents)
        # Heun and PLMS call the UNet more often than there are steps. Its calls, spread evenly, hit the steps exactly.
        calls = total if end is None else len(scheduler.timesteps)
        done, coming = index * steps // calls, step * steps // calls
        if step < total and first.acts_in(coming) != first.acts_in(done):
            _let_act(pipe, requests, coming)
        return {"latents": latents}

    with prepared(pipe, scheduler), told(pipe), seeing(pipe):
        _let_act(pipe, requests, 0)
        drawing = pipeline_for(pipe, first, controlnet)
        taken = taken_by(drawing)
        accepted = [name for name in family_of(pipe).drawing if name in taken]
        size = {"height": first.height, "width": first.width}
        stop = {} if end is None else {"denoising_end": end, "output_type": "latent"}
        try:
            output = drawing(
                prompt=[request.prompt for request in requests],
                num_inference_steps=steps,
                **{name: value for name, value in size.items() if name in taken},
                **{name: value for name, value in text_options(requests).items() if name in accepted},
                **picture_options(requests),
                **stop,
                generator=generators,
                callback_on_step_end=after_step,
            )
        finally:
            pipe.maybe_free_model_hooks()
    return output.images


def text_options(requests: Sequence[DrawRequest]) -> dict[str, Any]:
    """What a drawing call gets beside the prompts, as far as it takes it."""
    first, negative = requests[0], [request.negative_prompt for request in requests]
    return {
        "prompt_2": [request.prompt_2 or request.prompt for request in requests],
        # None at all is not the same as an empty one to Stable Diffusion XL.
        "negative_prompt": negative if any(negative) else None,
        "guidance_scale": first.guidance_scale,
        "guidance_rescale": first.guidance_rescale or 0.0,
    }


class Watch:
    """Looks at every step of a pass: are the numbers sound, who wants to know, shall it end."""

    def __init__(
        self,
        scheduler: SchedulerMixin,
        on_step: Callable[[DrawProgress], None] | None,
        should_stop: Callable[[], bool] | None,
    ) -> None:
        self.on_step, self.should_stop = on_step, should_stop
        self.started, self.estimate = time.monotonic(), Estimate(scheduler)

    def after(self, step: int, total: int, latents: Tensor) -> None:
        """So many steps are done, with these latents `[P, C, h, w]`.

        Raises:
            StudioError: the numbers broke up. DrawCancelled: `should_stop` said so.
        """
        if step == total and not bool(torch.isfinite(latents).all()):
            raise StudioError(
                "the picture broke up into infinities; lower the strength of the subjects or the guidance"
                + ("" if latents.dtype == torch.float32 else f", or use float32 instead of {latents.dtype}")
            )
        if self.on_step is not None:
            seconds = (time.monotonic() - self.started) / step
            self.on_step(DrawProgress(step, total, seconds, latents, self.estimate.latest))
        if self.should_stop is not None and self.should_stop():
            raise DrawCancelled


@contextmanager
def seeing(pipe: Any) -> Iterator[None]:
    """Where the autoencoder's numbers overflow, an error instead of a black picture."""

    def check(decoder: torch.nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
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
        self.latest: Tensor | None = None
        step = scheduler.step

        @functools.wraps(step)  # the pipeline looks at the signature
        def watched(*args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
            output = step(*args, **kwargs)
            self.latest = _denoised(scheduler, output)
            return output if return_dict else output.to_tuple()

        scheduler.step = watched


def _denoised(scheduler: SchedulerMixin, output: Any) -> Tensor | None:
    """The estimate in the output of a sampler's step, or in what a multistep sampler keeps for the next one."""
    if isinstance(scheduler, DPMSolverMultistepScheduler):
        kept = scheduler.config.algorithm_type in ("dpmsolver++", "sde-dpmsolver++")
    else:
        kept = isinstance(scheduler, UniPCMultistepScheduler) and scheduler.config.predict_x0
    estimate: Tensor | None = scheduler.model_outputs[-1] if kept else output.get("pred_original_sample")
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


def generators_of(requests: Sequence[DrawRequest]) -> list[torch.Generator]:
    """One for each picture, on the CPU: any device draws the same noise, and any picture can be drawn alone."""
    return [torch.Generator().manual_seed(request.seed) for request in requests if request.seed is not None]


@contextmanager
def prepared(pipe: Any, scheduler: SchedulerMixin) -> Iterator[None]:
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
