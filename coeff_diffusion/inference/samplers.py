"""The samplers by the names people know: A1111's ("Euler a", "DPM++ 2M") and diffusers' class names.

A scheduler is always made anew from the base's own scheduler config, so the noise schedule, the prediction type, the
timestep spacing and zero terminal SNR survive the change of sampler. One that cannot honour them is refused.
"""

import inspect
import json
import math
from functools import lru_cache
from typing import Any

import numpy as np
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)

from ..images.sampler_names import UNKNOWN, find_sampler
from ..subject.errors import UserError

SCHEDULERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "DDIM": (DDIMScheduler, {}),
    "DDPM": (DDPMScheduler, {}),
    "Euler": (EulerDiscreteScheduler, {}),
    "Euler Karras": (EulerDiscreteScheduler, {"use_karras_sigmas": True}),
    "Euler a": (EulerAncestralDiscreteScheduler, {}),
    "DPM++ 2M": (DPMSolverMultistepScheduler, {}),
    "DPM++ 2M Karras": (DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    "DPM++ 2M SDE": (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    "DPM++ 2M SDE Karras": (
        DPMSolverMultistepScheduler,
        {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
    ),
    "UniPC": (UniPCMultistepScheduler, {}),
    "Heun": (HeunDiscreteScheduler, {}),
    "PLMS": (PNDMScheduler, {"skip_prk_steps": True}),
}

USUAL_PREDICTIONS = ("epsilon", "v_prediction", "sample")
PREDICTIONS: dict[Any, tuple[str, ...]] = {
    EulerAncestralDiscreteScheduler: ("epsilon", "v_prediction"),
    PNDMScheduler: ("epsilon", "v_prediction"),
    DPMSolverMultistepScheduler: (*USUAL_PREDICTIONS, "flow_prediction"),
    UniPCMultistepScheduler: (*USUAL_PREDICTIONS, "flow_prediction"),
}
"""What a base may predict, where a sampler knows other things than the usual ones."""
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
"""Noise schedules that all samplers know."""
DIVIDING = (DDIMScheduler, DDPMScheduler)
"""Samplers that divide by what is left of the signal; the others take a little for nothing."""
MAX_SIGMA, MAX_ANCESTRAL = 1_000, 5_000
"""The largest sigma of a noise schedule, 15 on Stable Diffusion, up to which Karras, Heun and Euler a draw well."""

# Under zero terminal SNR guidance overexposes; section 3.4 of arXiv 2305.08891 rescales it and recommends this factor.
ZERO_SNR_GUIDANCE_RESCALE = 0.7


class SchedulerError(UserError, ValueError):
    """A sampler is unknown, or cannot honour the base's noise schedule."""


def make_scheduler(name: str | None, base: SchedulerMixin) -> SchedulerMixin:
    """A fresh scheduler for `base`'s noise schedule; None, or the base's own label, copies the base's own.

    Raises:
        SchedulerError: no such sampler, or one that would silently drop what the base was trained with.
    """
    if name is None or name == scheduler_label(base):
        return type(base).from_config(base.config)
    label = find_scheduler(name)
    reason = _incompatible(label, base)
    if reason is not None:
        others = ", ".join(compatible_schedulers(base))
        advice = f"use one of {others}" if others else f"use the base's own, {scheduler_label(base)}"
        raise SchedulerError(f"scheduler {label!r} {reason}; {advice}")
    return SCHEDULERS[label][0].from_config(base.config, **_options(label))


def find_scheduler(name: str) -> str:
    """The label in `SCHEDULERS` that a name means: class names do, and other programs' ("dpmpp_2m" with "_karras").

    Raises:
        SchedulerError: none of them does, or not all of the name can be honoured.
    """
    wanted = _key(name)
    for label, (kind, _) in SCHEDULERS.items():
        if wanted in (_key(label), _key(kind.__name__), _key(kind.__name__.removesuffix("Scheduler"))):
            return label
    found = find_sampler(name)
    if found.label and not found.note:
        return found.label
    reason = "" if found.note == UNKNOWN else f" ({found.note})"
    raise SchedulerError(f"no scheduler {name!r}{reason}; use one of {', '.join(SCHEDULERS)}")


def compatible_schedulers(base: SchedulerMixin) -> list[str]:
    """The labels that can draw with this base."""
    return [label for label in SCHEDULERS if _incompatible(label, base) is None]


def scheduler_label(scheduler: SchedulerMixin) -> str:
    """The label of a scheduler at hand, or its class name when the table has none."""
    for label, (kind, _) in SCHEDULERS.items():
        if type(scheduler) is kind and all(scheduler.config.get(k) == v for k, v in _options(label).items()):
            return label
    return type(scheduler).__name__


def has_zero_terminal_snr(scheduler: SchedulerMixin) -> bool:
    """Whether the last training timestep is pure noise (arXiv 2305.08891), so that guidance needs rescaling."""
    return bool(scheduler.config.get("rescale_betas_zero_snr", False))


def _options(label: str) -> dict[str, Any]:
    """All that makes a sampler the one of this label: its own options, and the defaults of those others set.

    What the options of another sampler left in a config (say, Karras sigmas) is no part of the noise schedule.
    """
    kind, options = SCHEDULERS[label]
    accepted = inspect.signature(kind.__init__).parameters
    shared = {key: accepted[key].default for key in ("use_karras_sigmas", "algorithm_type") if key in accepted}
    return {**shared, **options}


def _incompatible(label: str, base: SchedulerMixin) -> str | None:
    """Why this sampler cannot draw with the base, or None when it can."""
    kind, options = SCHEDULERS[label]
    accepted = inspect.signature(kind.__init__).parameters
    config = base.config
    prediction, spacing = config.get("prediction_type", "epsilon"), config.get("timestep_spacing")
    if "beta_schedule" not in config:
        return f"needs a base with a beta schedule, not {type(base).__name__}"
    if config["beta_schedule"] not in BETA_SCHEDULES and config.get("trained_betas") is None:
        return f"knows no beta schedule {config['beta_schedule']!r}, which this base has"
    zero_snr = has_zero_terminal_snr(base)
    if zero_snr and "rescale_betas_zero_snr" not in accepted:
        return "knows no zero terminal SNR, which this base was trained with"
    if prediction not in PREDICTIONS.get(kind, USUAL_PREDICTIONS):
        return f"knows no {prediction!r}, which this base was trained to predict"
    if spacing == "trailing" and "timestep_spacing" not in accepted:
        return "knows no trailing timesteps, which this base wants"
    if zero_snr and prediction == "epsilon" and kind in DIVIDING and spacing != "leading":
        return "divides by zero in the first step of a base that predicts noise and has zero terminal SNR"
    highest = _largest_sigma(base)
    if options.get("use_karras_sigmas") and highest > MAX_SIGMA:
        # The largest sigma is 4096 and more instead of about 15: two thirds of Karras' steps would go to pure noise,
        # and in diffusers several of them fall on one timestep, which multistep samplers do not survive.
        return f"spends most of its steps on pure noise with this base's noise schedule (sigma {highest:,.0f})"
    if kind is HeunDiscreteScheduler and highest > MAX_SIGMA:
        return f"overshoots with this base's noise schedule (sigma {highest:,.0f})"
    if kind is EulerAncestralDiscreteScheduler and highest > MAX_ANCESTRAL and not zero_snr:
        return f"is not precise enough for this base's noise schedule (sigma {highest:,.0f})"
    return None


def most_steps(base: SchedulerMixin) -> int:
    """How many steps a drawing can have at most: with all training timesteps some samplers run past the last one."""
    return max(1, int(base.config.num_train_timesteps) - 2)


def steps_near(base: SchedulerMixin, steps: int) -> int:
    """The number of steps that a drawing can have on the base's timesteps: this one, at least 1, or the next lower one.

    Diffusers lays trailing timesteps by adding up fractions. For some numbers (61, 103, 121, ... of 1,000) that gives
    one too many, behind the last one, and its step puts all the noise back into the picture.
    """
    total = int(base.config.num_train_timesteps)
    while base.config.get("timestep_spacing") == "trailing" and np.arange(total, 0, -total / steps)[-1] < 0.5:
        steps -= 1
    return steps


def _largest_sigma(base: SchedulerMixin) -> float:
    """Of the base's noise schedule: noise over signal at the last training timestep; infinite where nothing is left."""
    return _largest_sigma_of(base.to_json_string())


@lru_cache
def _largest_sigma_of(config: str) -> float:
    """As `_largest_sigma`, of a config in JSON. A page asks for every sampler in every control; it takes its time."""
    last = float(DDIMScheduler.from_config(json.loads(config)).alphas_cumprod[-1])
    return math.sqrt((1 - last) / last) if last > 0 else math.inf


def _key(name: str) -> str:
    return "".join(name.split()).lower()
