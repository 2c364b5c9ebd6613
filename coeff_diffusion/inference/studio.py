"""Studio: a base and its loaded subjects -> pictures.

The one sampling path of the house: training previews, the command line and the page all draw through `Studio.draw`,
which calls a stock pipeline of diffusers.
"""

import threading
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from ..families.controlnets import ControlNet, load_controlnet
from ..families.load import base_name
from ..families.refiners import Refiner, load_refiner
from ..families.registry import family_of, tokenizers_of
from ..images.control_picture import ControlPicture
from ..images.generation_info import format_parameters
from ..subject.coefficients import Coefficients
from .base_words import for_refiner, in_base_words
from .beside import Kept
from .pipeline_subjects import load_coefficients, loaded_coefficients, unload_coefficients
from .preview import Preview
from .prompt_reader import PromptReader
from .recorded import placed, recorded
from .refining import draw_refined
from .request import (
    DrawCancelled,
    DrawProgress,
    DrawRequest,
    Picture,
    RefinerName,
    StudioError,
    disagreements,
    part_of,
    shared_values,
)
from .request_notes import request_notes, unread_notes
from .resolving import Resolver, names_of
from .samplers import make_scheduler, scheduler_label
from .sampling import rest
from .second_pass import draw_passes
from .upscaling import Upscaler


class Studio:
    """Draws with one pipeline. Safe to call from several threads: one picture is drawn at a time, the rest wait.

    Args:
        pipe: a stock pipeline (see `load_base`). The studio changes its scheduler and its subjects while it draws and
            puts back what it found; between drawings no subject of the studio acts.

    Attributes:
        reader: reads prompts as this base does, also while it draws.
        upscaler: makes pictures larger where a request asks for that.

    Raises:
        FamilyError: the pipeline is of no known family.
    """

    def __init__(self, pipe: Any) -> None:
        self.pipe: Any = pipe
        self.family = family_of(pipe)
        self._lock = threading.RLock()
        self._preview: Any = Preview(pipe)
        self.reader, self.upscaler = PromptReader(pipe), Upscaler()
        self._controlnets: Any = Kept("ControlNet", lambda name: load_controlnet(name, self.pipe))
        self._refiners: Any = Kept("refiner", lambda name: load_refiner(name, self.pipe))
        self._resolver: Any = Resolver(pipe, self._controlnets, self._refiners)

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
        """The samplers that can draw with this base, the one it is usually drawn with first, then its own."""
        with self._lock:  # a drawing exchanges the pipeline's scheduler for its own
            found: list[str] = self._resolver.schedulers
            return found

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels that the base was trained at."""
        return self.family.size(self.pipe)

    @property
    def usual(self) -> dict[str, Any]:
        """What settings that are left out are with this base, by name."""
        with self._lock:  # as in `schedulers`
            found: dict[str, Any] = self._resolver.usual
            return found

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep other threads out for several calls that belong together."""
        with self._lock:
            yield

    def let_go(self, why: str) -> None:
        """Hold the base no longer. Whoever wants something of it from now on is told why it is gone."""
        with self._lock:
            unload_coefficients(self.pipe)
            self.pipe = self._preview = self._controlnets = self._refiners = self._resolver = Gone(why)

    def load(self, source: str | Path | Coefficients, name: str | None = None) -> str:
        """Load a subject (file, folder, card, Hub id) and return its name. It acts in the drawings that ask for it.

        Raises:
            CoefficientsError: it is damaged, does not fit the base, or its name or trigger is taken.
        """
        with self._lock:
            name = load_coefficients(self.pipe, source, name=name)
            rest(self.pipe)
            return name

    def unload(self, name: str) -> None:
        """Take a subject out again, its trigger included."""
        with self._lock:
            if name not in self.subjects:
                raise StudioError(f"no subject {name!r} is loaded; loaded are {names_of(self.subjects)}")
            unload_coefficients(self.pipe, name)

    def controlnet(self, control: ControlPicture) -> ControlNet:
        """The ControlNet of a control picture (see `Kept.get`)."""
        with self._lock:
            found: ControlNet = self._controlnets.get(control.net, control.net_digits)
            return found

    def refiner(self, asked: RefinerName) -> Refiner:
        """The refiner that goes by this (see `Kept.get`)."""
        with self._lock:
            found: Refiner = self._refiners.get(asked.name, asked.digits)
            return found

    def forget_networks(self) -> None:
        """Give back the memory of the ControlNet and the refiner that were used last; they are loaded again where they
        are asked for."""
        with self._lock:
            self._controlnets.forget()
            self._refiners.forget()

    def notes(self, request: DrawRequest) -> list[str]:
        """What is probably not meant: one sentence each, for the user, before or after drawing.

        Among it is what the base does not read of a long prompt. Drawing itself does not say so.

        Raises:
            StudioError, SchedulerError: the request cannot be drawn.
        """
        with self._lock:
            return request_notes(tokenizers_of(self.pipe), self.subjects, self.resolved(request))

    def unread_notes(self, request: DrawRequest) -> list[str]:
        """Of `notes` those about words that the base does not read."""
        with self._lock:
            return unread_notes(tokenizers_of(self.pipe), self.subjects, self.resolved(request))

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
            _stop_if_asked(should_stop)
            request = self.resolved(request)
            assert request.seed is not None
            alone = [replace(request, seed=request.seed + i, batch_size=1) for i in range(request.batch_size)]
            return self._draw(alone, on_step, should_stop, is_one_request=True)

    def draw_batch(
        self,
        requests: Sequence[DrawRequest],
        on_step: Callable[[DrawProgress], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> list[Picture]:
        """Draw one picture per request, all at once, each with the subjects and strengths of its own.

        What a picture says of how it was drawn is for drawing it alone. That rounds in another order, so the last bits
        may differ. A subject that does not act in a picture leaves it, bitwise, as this batch is without that subject.

        Args:
            requests: may differ in prompt, negative prompt, subjects and seed; each is for one picture.
            on_step, should_stop: see `draw`.

        Raises:
            StudioError: a request cannot be drawn, or they differ in more than that.
            SchedulerError, DrawCancelled: see `draw`.
        """
        with self._lock:
            _stop_if_asked(should_stop)
            return self._draw(self._resolve_all(requests), on_step, should_stop, is_one_request=False)

    def batch_key(self, request: DrawRequest) -> Hashable:
        """What must be equal among resolved requests for one batch of `draw_batch`."""
        tells_apart = self.pipe.config.get("force_zeros_for_empty_prompt", False)
        return (*shared_values(request), bool(request.negative_prompt) if tells_apart else None)

    def preview(self, progress: DrawProgress) -> list[Image.Image]:
        """What forms, one picture of full size for each of the batch, decoded cheaply; best called from `on_step`.

        Never raises: where a base's autoencoder cannot be asked so, a warning says why, once, and the list is empty.
        """
        return self._preview(progress.latents if progress.denoised is None else progress.denoised)

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
            request = self.resolved(request)
            prompt = self.base_prompt(request.prompt) if base_prompt is None else base_prompt
            first, second = (None, None) if on_step is None else (part_of(on_step, i, 2) for i in range(2))
            second_prompt = self.base_prompt(request.prompt_2)
            base = self.draw(replace(request, prompt=prompt, prompt_2=second_prompt, subjects={}), first, should_stop)
            return base, self.draw(request, second, should_stop)

    def base_prompt(self, prompt: str) -> str:
        """The prompt in words the base knows: every loaded subject's trigger becomes its class word.

        Raises:
            StudioError: a trigger in the prompt belongs to a subject that does not record its class word.
        """
        return in_base_words(prompt, self.subjects)

    # --- one drawing --------------------------------------------------------------------------------------------------

    def _draw(
        self,
        requests: Sequence[DrawRequest],
        on_step: Callable[[DrawProgress], None] | None,
        should_stop: Callable[[], bool] | None,
        is_one_request: bool,
    ) -> list[Picture]:
        """One batch of resolved requests.

        Args:
            is_one_request: then the pictures record their place in the batch, and it can be drawn again, bit by bit.
        """
        control = requests[0].control
        controlnet = None if control is None else self.controlnet(control)
        sampler = scheduler_label(make_scheduler(requests[0].scheduler, self.pipe.scheduler))
        if requests[0].refiner is None:
            images = draw_passes(self.pipe, requests, self.upscaler, on_step, should_stop, controlnet)
        else:
            refiner, texts = self.refiner(requests[0].refiner), [for_refiner(one, self.subjects) for one in requests]
            images = draw_refined(self.pipe, refiner, requests, texts, on_step, should_stop)
        pictures = []
        for place, (image, request) in enumerate(zip(images, requests, strict=True)):
            assert request.seed is not None
            parameters = recorded(self.pipe, request, sampler, self.upscaler)
            image = self.upscaler.enlarged(image, (image.width * request.upscale, image.height * request.upscale))
            if is_one_request:
                parameters = placed(parameters, place, len(requests))
            subjects = {name: self.subjects[name] for name in parameters.subjects}
            pictures.append(Picture(image, request, request.seed, format_parameters(parameters), subjects))
        return pictures

    def _resolve_all(self, requests: Sequence[DrawRequest]) -> list[DrawRequest]:
        """The requests of one batch with every open choice made, or an error that lists all that is wrong with them."""
        if not requests:
            raise StudioError("there is nothing to draw; give at least one request")
        resolved: list[DrawRequest] = []
        wrong: dict[str, str] = {}
        for number, request in enumerate(requests, start=1):
            try:
                resolved.append(self.resolved(request))
            except StudioError as error:
                wrong.setdefault(str(error), f"picture {number}: {error}")  # what all have wrong is said once
        errors = list(wrong.values()) or disagreements(resolved)
        if not errors and len(set(map(self.batch_key, resolved))) > 1:
            errors = [
                "some pictures of the batch have a negative prompt and some have none; give all of them one, or none"
            ]
        if errors:
            raise StudioError("; ".join(errors))
        return resolved

    def resolved(self, request: DrawRequest, known: Collection[str] | None = None) -> DrawRequest:
        """The request with every open choice made.

        Args:
            known: names of subjects that it may ask for; by default those that are loaded.

        Raises:
            StudioError: it cannot be drawn; the message lists all that is wrong with it.
        """
        with self._lock:
            return self._resolver.resolved(request, self.subjects if known is None else known)

    @property
    def multiple(self) -> int:
        """What width and height in pixels have to be a multiple of."""
        return self.family.multiple(self.pipe)


class Gone:
    """Stands where a base was: whatever it is asked for, it says why it is gone."""

    def __init__(self, why: str) -> None:
        self._why = why

    def __getattr__(self, name: str) -> Any:
        raise StudioError(self._why)


def _stop_if_asked(should_stop: Callable[[], bool] | None) -> None:
    """A drawing may have been cancelled while it waited its turn."""
    if should_stop is not None and should_stop():
        raise DrawCancelled
