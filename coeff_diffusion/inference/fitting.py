"""What a picture asks for, as far as it can be drawn here: every value that has to be another one is said."""

import math
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

from ..images.drawing_settings import LAYERS, SETTINGS
from ..images.sampler_names import find_sampler
from ..subject.errors import shown
from ..subject.layer_strengths import LayerStrengths
from ..subject.setting import Setting
from .request import MAX_SEED, DrawRequest
from .samplers import SchedulerError, make_scheduler, most_steps, scheduler_label, steps_near
from .studio import Studio

Bounds = tuple[float, float]


def fitted(
    studio: Studio,
    request: DrawRequest,
    bounds: Callable[[Setting], Bounds | None] = lambda one: None,
    layer_bounds: Bounds = (-math.inf, math.inf),
    chosen: Collection[str] = (),
) -> tuple[DrawRequest, list[str]]:
    """The request with each value where it can be, and a note on each that was elsewhere. Its subjects stay.

    Args:
        bounds: from where to where a setting may go, where that is narrower than what the base can draw.
        layer_bounds: the same of strengths by kind of layer.
        chosen: fields that the user has set: they stay, to be refused if they cannot be drawn.
    """
    notes: list[str] = []
    own = studio.usual
    changes: dict[str, Any] = {}
    for name, one in SETTINGS.items():
        value, reach = getattr(request, name), bounds(one) or _possible(studio, one)
        if name not in chosen and reach is not None and value is not None:
            usual = own.get(name, one.default or 0)
            changes[name] = one.kind(near(one.called, value, reach, usual, notes))
    for side in ("width", "height"):
        if (pixels := changes.get(side, 0)) % studio.multiple:
            changes[side] = pixels - pixels % studio.multiple
            was = f"its {side} was {getattr(request, side)}; here it is {changes[side]}"
            notes.append(f"{was}, a multiple of {studio.multiple}")
    if steps := changes.get("steps"):
        changes["steps"] = steps_near(studio.pipe.scheduler, steps)
        if changes["steps"] != steps:
            why = "a number that this base's timesteps do not allow"
            notes.append(f"its number of steps was {steps}, {why}; here it is {changes['steps']}")
    if "seed" not in chosen and request.seed is not None:
        changes["seed"] = _seed(request.seed, changes.get("batch_size", request.batch_size), notes)
    layers = {
        name: near(f"strength in {name} layers", getattr(request.layers, name), layer_bounds, 1, notes)
        for name in LAYERS
    }
    if request.prompt_2 and "prompt_2" not in studio.family.drawing and "prompt_2" not in chosen:
        notes.append(f"its second prompt {shown(request.prompt_2)} is left out: this base has one text encoder")
        changes["prompt_2"] = ""
    if "scheduler" not in chosen:
        changes["scheduler"] = _sampler(request.scheduler, studio, notes)
    found = replace(request, **changes, layers=LayerStrengths(**layers))
    if found.begin >= found.end and not {"begin", "end"} & set(chosen):
        notes.append(
            f"its subjects acted from {found.begin:g} to {found.end:g} of denoising; here they act all the time"
        )
        found = replace(found, begin=0.0, end=1.0)
    return found, notes


def near(what: str, value: float, bounds: Bounds, otherwise: float, notes: list[str]) -> float:
    """The value, or the nearest one within the bounds, which is noted; `otherwise` for what is no number."""
    low, high = bounds
    if low <= value <= high and math.isfinite(value):
        return value
    nearest = low if value < low else high if value > high else otherwise
    if math.isinf(nearest):
        nearest = otherwise
    notes.append(f"its {what} was {shown(value) if isinstance(value, int) else f'{value:g}'}; here it is {nearest:g}")
    return nearest


def _possible(studio: Studio, one: Setting) -> Bounds | None:
    """From where to where the base can draw at all; None for what is no number, or looked at by itself."""
    if one.name == "seed" or one.kind not in (int, float):
        return None
    if one.name in ("width", "height"):
        return studio.multiple, math.inf
    highest = {"steps": most_steps(studio.pipe.scheduler)}
    low, high = one.low, highest.get(one.name, one.high)
    return (-math.inf if low is None else low), (math.inf if high is None else high)


def _seed(seed: int, pictures: int, notes: list[str]) -> int | None:
    """Seeds have 64 bits in some programs, and -1 is a random one."""
    highest = MAX_SEED - pictures + 1
    if 0 <= seed <= highest:
        return seed
    found = None if seed < 0 else seed % (highest + 1)
    words = "a random one is taken" if found is None else f"here it is {found}"
    notes.append(f"its seed was {seed}, expected 0 to {highest}; {words}")
    return found


def _sampler(name: str | None, studio: Studio, notes: list[str]) -> str | None:
    """The sampler, or the usual one for one that cannot draw with this base."""
    if name is None:
        return None
    with studio.exclusive():  # a drawing exchanges the pipeline's scheduler for its own
        base, usual = studio.pipe.scheduler, studio.schedulers[0]
    try:
        made = scheduler_label(make_scheduler(name, base))
    except SchedulerError as error:
        reason = find_sampler(name).note or str(error).partition("; use one of")[0]
        notes.append(f"its sampler {shown(name)} cannot draw with this base ({reason}); {usual!r} is chosen")
        return usual
    return name if name == scheduler_label(base) else made
