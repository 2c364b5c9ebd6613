"""Studio: a base and its loaded subjects -> pictures.

The one sampling path of the house: training previews, the command line and the page all draw through `Studio.draw`,
which calls the stock `StableDiffusionPipeline`.
"""

import math
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from .coefficients import Coefficients
from .drawing import MAX_SEED, DrawCancelled, DrawProgress, DrawRequest, Picture, StudioError, problems
from .pictures import format_parameters
from .pipeline import base_name
from .recipe import placed, recorded
from .schedulers import (
    ZERO_SNR_GUIDANCE_RESCALE,
    SchedulerError,
    compatible_schedulers,
    has_zero_terminal_snr,
    make_scheduler,
    scheduler_label,
)
from .subjects import load_coefficients, loaded_coefficients, set_coefficients, unload_coefficients
from .trigger import contains_trigger, replace_trigger


class Studio:
    """Draws with one pipeline. Safe to call from several threads: one picture is drawn at a time, the rest wait.

    Args:
        pipe: a stock pipeline (see `load_base`). The studio changes its scheduler and its subjects while it draws and
            puts back what it found; between drawings no subject of the studio acts.
    """

    def __init__(self, pipe: StableDiffusionPipeline) -> None:
        self.pipe = pipe
        self._lock = threading.RLock()

    @property
    def base(self) -> str:
        """The base's name, fit for sharing."""
        return base_name(self.pipe)

    @property
    def subjects(self) -> dict[str, Coefficients]:
        """The loaded subjects by name."""
        with self._lock:
            return dict(loaded_coefficients(self.pipe))

    @property
    def schedulers(self) -> list[str]:
        """The samplers that can draw with this base, its own first."""
        with self._lock:  # a drawing exchanges the pipeline's scheduler for its own
            base = self.pipe.scheduler
        own = scheduler_label(base)
        return [own, *(name for name in compatible_schedulers(base) if name != own)]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels that the base was trained at."""
        side = self.pipe.unet.config.sample_size
        height, width = (side, side) if isinstance(side, int) else side
        return width * self.pipe.vae_scale_factor, height * self.pipe.vae_scale_factor

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep other threads out for several calls that belong together."""
        with self._lock:
            yield

    def load(self, source: str | Path | Coefficients, name: str | None = None) -> str:
        """Load a subject (file, folder, card, Hub id) and return its name. It acts in the drawings that ask for it.

        Raises:
            CoefficientsError: it is damaged, does not fit the base, or its name or trigger is taken.
        """
        with self._lock:
            name = load_coefficients(self.pipe, source, name=name)
            self._rest()
            return name

    def unload(self, name: str) -> None:
        """Take a subject out again, its trigger included."""
        with self._lock:
            if name not in self.subjects:
                raise StudioError(f"no subject {name!r} is loaded; loaded are {_names(self.subjects)}")
            unload_coefficients(self.pipe, name)

    def notes(self, request: DrawRequest) -> list[str]:
        """What is probably not meant: one sentence each, for the user, before or after drawing."""
        notes = []
        for name, subject in self.subjects.items():
            info, strength = subject.info, request.subjects.get(name)
            called = bool(info.trigger) and contains_trigger(request.prompt, info.trigger)
            if strength and info.trigger and not called and (request.gate or info.gate) == "trigger":
                notes.append(f"the prompt does not contain {info.trigger!r}, so {name!r} does not act")
            if strength is None and called and subject.tokens:
                notes.append(f"{name!r} does not take part, but the prompt contains its learned word {info.trigger!r}")
        return notes

    def draw(
        self,
        request: DrawRequest,
        on_step: Callable[[DrawProgress], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> list[Picture]:
        """Draw `request.batch_size` pictures; the one at position i has the seed `seed + i`.

        Args:
            on_step: called after every denoising step, from the calling thread.
            should_stop: asked after every step; once true, drawing ends.

        Raises:
            StudioError: the request cannot be drawn; SchedulerError: its sampler cannot draw with this base.
            DrawCancelled: `should_stop` said so.
        """
        with self._lock:
            if should_stop is not None and should_stop():  # cancelled while it waited its turn
                raise DrawCancelled
            request = self._resolve(request)
            assert request.seed is not None
            seeds = [request.seed + i for i in range(request.batch_size)]
            with self._prepared(request):
                images = self._sample(request, seeds, on_step, should_stop)
                recipe = recorded(self.pipe, request, scheduler_label(self.pipe.scheduler))
            subjects = {name: self.subjects[name] for name in recipe.subjects}
        return [
            Picture(
                image,
                replace(request, seed=seed, batch_size=1),
                seed,
                format_parameters(placed(recipe, place, len(seeds))),
                subjects,
            )
            for place, (image, seed) in enumerate(zip(images, seeds, strict=True))
        ]

    def compare(
        self,
        request: DrawRequest,
        base_prompt: str | None = None,
        on_step: Callable[[DrawProgress], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> tuple[list[Picture], list[Picture]]:
        """Draw twice from the same noise: by the base alone and with the subjects.

        Args:
            base_prompt: what the base draws; by default the prompt with each trigger replaced by its class word,
                since the base does not know the trigger.

        Returns:
            The base's pictures and the subjects' pictures, pairwise of the same seed.
        """
        with self._lock:
            request = self._resolve(request)
            prompt = self.base_prompt(request.prompt) if base_prompt is None else base_prompt
            first, second = (None, None) if on_step is None else (_part(on_step, i, 2) for i in range(2))
            base = self.draw(replace(request, prompt=prompt, subjects={}), first, should_stop)
            return base, self.draw(request, second, should_stop)

    def base_prompt(self, prompt: str) -> str:
        """The prompt in words the base knows: every loaded subject's trigger becomes its class word.

        Raises:
            StudioError: a trigger in the prompt belongs to a subject that does not record its class word.
        """
        for name, subject in self.subjects.items():
            trigger, class_word = subject.info.trigger, subject.info.class_word
            if not trigger or not contains_trigger(prompt, trigger):
                continue
            if not class_word:
                raise StudioError(
                    f"subject {name!r} does not record its class word, so the base's prompt cannot be derived from "
                    f"{trigger!r}; give the base its own prompt"
                )
            prompt = replace_trigger(prompt, trigger, class_word)
        return prompt

    # --- one drawing --------------------------------------------------------------------------------------------------

    def _resolve(self, request: DrawRequest) -> DrawRequest:
        """The request with every open choice made, or an error that lists all that is wrong with it."""
        width, height = self.size
        request = replace(
            request,
            seed=secrets.randbelow(MAX_SEED - max(0, request.batch_size)) if request.seed is None else request.seed,
            width=width if request.width is None else request.width,
            height=height if request.height is None else request.height,
            guidance_rescale=self._rescale(request) if request.guidance_rescale is None else request.guidance_rescale,
        )
        wrong = problems(request, self._multiple, int(self.pipe.scheduler.config.num_train_timesteps))
        unknown = [name for name in request.subjects if name not in self.subjects]
        if unknown:
            wrong.append(f"no subject {', '.join(map(repr, unknown))} is loaded; loaded are {_names(self.subjects)}")
        try:
            make_scheduler(request.scheduler, self.pipe.scheduler)
        except SchedulerError as error:
            wrong.append(str(error))
        if wrong:
            raise StudioError("; ".join(wrong))
        return request

    def _rescale(self, request: DrawRequest) -> float:
        guided = request.guidance_scale > 1
        return ZERO_SNR_GUIDANCE_RESCALE if guided and has_zero_terminal_snr(self.pipe.scheduler) else 0.0

    @property
    def _multiple(self) -> int:
        return math.lcm(8, self.pipe.vae_scale_factor)  # 8 is what the pipeline insists on

    @contextmanager
    def _prepared(self, request: DrawRequest) -> Iterator[None]:
        """The pipeline set up for one drawing: sampler, subjects, evaluation mode, quiet. All put back afterwards."""
        pipe = self.pipe
        scheduler, bar = pipe.scheduler, getattr(pipe, "_progress_bar_config", {})
        training = [m for part in (pipe.unet, pipe.text_encoder, pipe.vae) for m in part.modules() if m.training]
        try:
            for module in training:  # a preview in the middle of training must not draw with dropout
                module.training = False
            pipe.scheduler = make_scheduler(request.scheduler, scheduler)
            pipe.set_progress_bar_config(**{**bar, "disable": True})
            if self.subjects:
                strengths = {name: float(strength) for name, strength in request.subjects.items()}
                set_coefficients(pipe, strengths, gate=request.gate)
            yield
        finally:
            for module in training:
                module.training = True
            pipe.scheduler = scheduler
            pipe.set_progress_bar_config(**bar)
            self._rest()

    def _rest(self) -> None:
        """Between drawings no subject acts. Untouched where none is loaded: a trainer's own attachment stays."""
        if self.subjects:
            set_coefficients(self.pipe, {})

    def _sample(
        self,
        request: DrawRequest,
        seeds: list[int],
        on_step: Callable[[DrawProgress], None] | None,
        should_stop: Callable[[], bool] | None,
    ) -> list[Image.Image]:
        started = time.monotonic()

        def after_step(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            step, total, latents = index + 1, pipe.num_timesteps, tensors["latents"]
            if step == total and not bool(torch.isfinite(latents).all()):
                raise StudioError(
                    "the picture broke up into infinities; lower the strength of the subjects or the guidance"
                    + ("" if latents.dtype == torch.float32 else f", or use float32 instead of {latents.dtype}")
                )
            if on_step is not None:
                on_step(DrawProgress(step, total, (time.monotonic() - started) / step, latents))
            if should_stop is not None and should_stop():
                raise DrawCancelled
            return {}

        try:
            output = self.pipe(
                prompt=[request.prompt] * len(seeds),
                negative_prompt=[request.negative_prompt] * len(seeds),
                height=request.height,
                width=request.width,
                num_inference_steps=request.steps,
                guidance_scale=request.guidance_scale,
                guidance_rescale=request.guidance_rescale or 0.0,
                # One generator per picture, on the CPU: any device draws the same noise, and any picture of a batch
                # can be drawn again alone.
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                callback_on_step_end=after_step,
            )
        finally:
            self.pipe.maybe_free_model_hooks()
        images: list[Image.Image] = output.images
        return images


def _part(on_step: Callable[[DrawProgress], None], index: int, parts: int) -> Callable[[DrawProgress], None]:
    """Report one of several drawings of equal length as a part of the whole."""

    def report(progress: DrawProgress) -> None:
        step, total = index * progress.total + progress.step, parts * progress.total
        on_step(replace(progress, step=step, total=total))

    return report


def _names(subjects: Mapping[str, Coefficients]) -> str:
    return ", ".join(map(repr, subjects)) or "none"
