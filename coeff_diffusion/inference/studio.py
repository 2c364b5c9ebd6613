"""Studio: a base and its loaded subjects -> pictures.

The one sampling path of the house: training previews, the command line and the page all draw through `Studio.draw`,
which calls a stock pipeline of diffusers.
"""

import secrets
import threading
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from ..families.controlnets import ControlNet
from ..families.load import base_name
from ..families.registry import family_of, tokenizers_of
from ..families.usual import usual_of
from ..images.control_picture import ControlPicture
from ..images.generation_info import format_parameters
from ..images.start_picture import StartPicture
from ..subject.coefficients import Coefficients
from ..subject.errors import shown
from .controlled import ControlNets
from .from_picture import USUAL_BLUR, USUAL_CONTROL, USUAL_STRENGTH, pipeline_for, size_from, taken_by
from .pipeline_subjects import load_coefficients, loaded_coefficients, unload_coefficients
from .preview import Preview
from .prompt_reader import PromptReader
from .replay import placed, recorded
from .request import (
    MAX_SEED,
    DrawCancelled,
    DrawProgress,
    DrawRequest,
    Picture,
    StudioError,
    disagreements,
    part_of,
    problems,
    shared_values,
)
from .request_notes import request_notes, unread_notes
from .samplers import (
    ZERO_SNR_GUIDANCE_RESCALE,
    SchedulerError,
    compatible_schedulers,
    has_zero_terminal_snr,
    make_scheduler,
    most_steps,
    scheduler_label,
    steps_near,
)
from .sampling import rest, sample
from .trigger import contains_trigger, replace_trigger
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
        self._controlnets: Any = ControlNets(pipe)

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
            base, usual = self.pipe.scheduler, usual_of(self.pipe).scheduler
        first = filter(None, (usual, scheduler_label(base)))
        return list(dict.fromkeys([*first, *compatible_schedulers(base)]))

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels that the base was trained at."""
        return self.family.size(self.pipe)

    @property
    def usual(self) -> dict[str, Any]:
        """What settings that are left out are with this base, by name."""
        width, height = self.size
        with self._lock:  # as in `schedulers`
            usual = usual_of(self.pipe)
        return {"width": width, "height": height, **usual._asdict()}

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep other threads out for several calls that belong together."""
        with self._lock:
            yield

    def let_go(self, why: str) -> None:
        """Hold the base no longer. Whoever wants something of it from now on is told why it is gone."""
        with self._lock:
            unload_coefficients(self.pipe)
            self.pipe = self._preview = self._controlnets = Gone(why)

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
                raise StudioError(f"no subject {name!r} is loaded; loaded are {_names(self.subjects)}")
            unload_coefficients(self.pipe, name)

    def controlnet(self, control: ControlPicture) -> ControlNet:
        """See `ControlNets.get`."""
        with self._lock:
            found: ControlNet = self._controlnets.get(control)
            return found

    def forget_controlnet(self) -> None:
        """Give back the memory of the ControlNet that was used last; it is loaded again where it is asked for."""
        with self._lock:
            self._controlnets.forget()

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
        scheduler = make_scheduler(requests[0].scheduler, self.pipe.scheduler)
        control = requests[0].control
        controlnet = None if control is None else self.controlnet(control)
        images = sample(self.pipe, scheduler, requests, on_step, should_stop, controlnet)
        pictures = []
        for place, (image, request) in enumerate(zip(images, requests, strict=True)):
            assert request.seed is not None
            parameters = recorded(self.pipe, request, scheduler_label(scheduler), self.upscaler)
            image = self.upscaler.enlarged(image, request.upscale)
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
        usual = self.usual | {"seed": secrets.randbelow(MAX_SEED - max(0, request.batch_size))}
        if request.control is not None:
            usual |= USUAL_CONTROL | self._size_from(request.control)
            request = replace(request, control=self._controlnets.named(request.control))
        if request.start is not None:
            usual |= self._size_from(request.start) | {"denoising_strength": USUAL_STRENGTH}
            usual |= {} if request.start.mask is None else {"mask_blur": USUAL_BLUR}
        request = replace(request, **{name: one for name, one in usual.items() if getattr(request, name) is None})
        rescales = "guidance_rescale" in taken_by(self._pipeline_for(request))
        if request.guidance_rescale is None:
            request = replace(request, guidance_rescale=self._rescale(request) if rescales else 0.0)
        assert request.steps is not None
        wrong = problems(request, self.multiple, most_steps(self.pipe.scheduler))
        if request.steps > 0 and (near := steps_near(self.pipe.scheduler, request.steps)) != request.steps:
            wrong.append(f"steps is {request.steps}, a number that this base's timesteps do not allow; take {near}")
        if request.prompt_2 and "prompt_2" not in self.family.drawing:
            wrong.append(f"prompt_2 is {shown(request.prompt_2)}, but {self.family.title} has one text encoder")
        if request.guidance_rescale and not rescales:
            wrong.append(f"guidance_rescale is {request.guidance_rescale}, but drawings from a picture have none here")
        known = self.subjects if known is None else known
        unknown = [name for name in request.subjects if name not in known]
        if unknown:
            wrong.append(f"no subject {', '.join(map(repr, unknown))} is loaded; loaded are {_names(known)}")
        try:
            make_scheduler(request.scheduler, self.pipe.scheduler)
        except SchedulerError as error:
            wrong.append(str(error))
        if wrong:
            raise StudioError("; ".join(wrong))
        assert request.width is not None
        assert request.height is not None
        size, start, control = (request.width, request.height), request.start, request.control
        return replace(request, start=start and start.fitted(size), control=control and control.fitted(size))

    def _pipeline_for(self, request: DrawRequest) -> Any:
        controlnet = None if request.control is None else self.controlnet(request.control)
        return pipeline_for(self.pipe, request, controlnet)

    def _size_from(self, picture: StartPicture) -> dict[str, Any]:
        """Width and height where they are left out."""
        width, height = size_from(picture, self.size, self.multiple)
        return {"width": width, "height": height}

    def _rescale(self, request: DrawRequest) -> float:
        guided = (request.guidance_scale or 0) > 1
        return ZERO_SNR_GUIDANCE_RESCALE if guided and has_zero_terminal_snr(self.pipe.scheduler) else 0.0

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


def _names(subjects: Collection[str]) -> str:
    return ", ".join(map(repr, subjects)) or "none"
