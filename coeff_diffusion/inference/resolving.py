"""What a request leaves open is decided by the base: a request with every choice made, or all that is wrong with it."""

import secrets
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from ..families.controlnets import ControlNet
from ..families.refiners import Refiner
from ..families.registry import family_of
from ..families.usual import usual_of
from ..images.drawing_settings import SETTINGS
from ..images.start_picture import StartPicture
from ..subject.errors import shown
from .beside import Kept
from .from_picture import pipeline_for, size_from, taken_by
from .refining import refiner_problems
from .request import MAX_SEED, DrawRequest, RefinerName, StudioError, problems
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
from .second_pass import second_problems


class Resolver:
    """Makes the open choices of requests for one base. Its scheduler has to be its own, so not while it draws.

    Args:
        pipe: of the base.
        controlnets, refiners: what it draws with beside it.
    """

    def __init__(self, pipe: Any, controlnets: Kept[ControlNet], refiners: Kept[Refiner]) -> None:
        self.pipe, self.controlnets, self.refiners = pipe, controlnets, refiners
        self.family = family_of(pipe)

    @property
    def schedulers(self) -> list[str]:
        """See `Studio.schedulers`."""
        base, usual = self.pipe.scheduler, usual_of(self.pipe).scheduler
        first = filter(None, (usual, scheduler_label(base)))
        return list(dict.fromkeys([*first, *compatible_schedulers(base)]))

    @property
    def usual(self) -> dict[str, Any]:
        """See `Studio.usual`."""
        width, height = self.family.size(self.pipe)
        return {"width": width, "height": height, **usual_of(self.pipe)._asdict()}

    def resolved(self, request: DrawRequest, known: Collection[str]) -> DrawRequest:
        """See `Studio.resolved`."""
        request = self._filled(request)
        rescales = "guidance_rescale" in taken_by(self._pipeline_for(request))
        if request.guidance_rescale is None:
            request = replace(request, guidance_rescale=self._rescale(request) if rescales else 0.0)
        wrong = self._problems(request)
        if request.guidance_rescale and not rescales:
            wrong.append(f"guidance_rescale is {request.guidance_rescale}, but drawings from a picture have none here")
        unknown = [name for name in request.subjects if name not in known]
        if unknown:
            wrong.append(f"no subject {', '.join(map(repr, unknown))} is loaded; loaded are {names_of(known)}")
        if wrong:
            raise StudioError("; ".join(wrong))
        assert request.width is not None
        assert request.height is not None
        size, start, control = (request.width, request.height), request.start, request.control
        return replace(request, start=start and start.fitted(size), control=control and control.fitted(size))

    def _filled(self, request: DrawRequest) -> DrawRequest:
        """The request with what is usual in place of what is left out."""
        usual = self.usual | {"seed": secrets.randbelow(MAX_SEED - max(0, request.batch_size))}
        usual |= {one.name: one.usual for one in SETTINGS.values() if one.usual is not None and request.has(one.of)}
        if request.control is not None:
            usual |= self._size_from(request.control)
            net = self.controlnets.get(request.control.net, request.control.net_digits)
            request = replace(request, control=replace(request.control, net=net.name, net_digits=net.digits))
        if request.refiner is not None:
            refiner = self.refiners.get(request.refiner.name, request.refiner.digits)
            request = replace(request, refiner=RefinerName(refiner.name, refiner.digits))
        if request.start is not None:
            usual |= self._size_from(request.start)
            if request.start.mask is None:
                del usual["mask_blur"]
        return replace(request, **{name: one for name, one in usual.items() if getattr(request, name) is None})

    def _problems(self, request: DrawRequest) -> list[str]:
        own, multiple, steps = self.pipe.scheduler, self.family.multiple(self.pipe), request.steps
        assert steps is not None
        wrong = problems(request, multiple, most_steps(own))
        if steps > 0 and (near := steps_near(own, steps)) != steps:
            wrong.append(f"steps is {steps}, a number that this base's timesteps do not allow; take {near}")
        if request.prompt_2 and "prompt_2" not in self.family.drawing:
            wrong.append(f"prompt_2 is {shown(request.prompt_2)}, but {self.family.title} has one text encoder")
        try:
            make_scheduler(request.scheduler, own)
        except SchedulerError as error:
            wrong.append(str(error))
        if request.has("hires_scale") and not wrong:
            wrong += second_problems(request, own, multiple)
        if request.refiner is not None and not wrong:
            wrong += refiner_problems(request, own)
        return wrong

    def _pipeline_for(self, request: DrawRequest) -> Any:
        control = request.control
        controlnet = None if control is None else self.controlnets.get(control.net, control.net_digits)
        return pipeline_for(self.pipe, request, controlnet)

    def _size_from(self, picture: StartPicture) -> dict[str, Any]:
        """Width and height where they are left out."""
        width, height = size_from(picture, self.family.size(self.pipe), self.family.multiple(self.pipe))
        return {"width": width, "height": height}

    def _rescale(self, request: DrawRequest) -> float:
        guided = (request.guidance_scale or 0) > 1
        return ZERO_SNR_GUIDANCE_RESCALE if guided and has_zero_terminal_snr(self.pipe.scheduler) else 0.0


def names_of(subjects: Collection[str]) -> str:
    """Names in a sentence."""
    return ", ".join(map(repr, subjects)) or "none"
