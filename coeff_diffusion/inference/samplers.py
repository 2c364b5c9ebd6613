"""The samplers by the names people know: A1111's ("Euler a", "DPM++ 2M") and diffusers' class names.

A scheduler is always made anew from the base's own scheduler config, so the noise schedule, the prediction type, the
timestep spacing and zero terminal SNR survive the change of sampler. One that cannot honour them is refused.
"""

import inspect
from typing import Any

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
        raise SchedulerError(f"scheduler {label!r} {reason}; use one of {', '.join(compatible_schedulers(base))}")
    return SCHEDULERS[label][0].from_config(base.config, **_options(label))


def find_scheduler(name: str) -> str:
    """The label in `SCHEDULERS` that a name means: case and blanks do not matter, class names do as well."""
    wanted = _key(name)
    for label, (kind, _) in SCHEDULERS.items():
        if wanted in (_key(label), _key(kind.__name__), _key(kind.__name__.removesuffix("Scheduler"))):
            return label
    if wanted == "pndm":
        return "PLMS"
    raise SchedulerError(f"no scheduler {name!r}; use one of {', '.join(SCHEDULERS)}")


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
    prediction = base.config.get("prediction_type", "epsilon")
    if "beta_schedule" not in base.config:
        return f"needs a base with a beta schedule, not {type(base).__name__}"
    if has_zero_terminal_snr(base) and "rescale_betas_zero_snr" not in accepted:
        return "knows no zero terminal SNR, which this base was trained with"
    if has_zero_terminal_snr(base) and options.get("use_karras_sigmas"):
        # The largest sigma is 4096 instead of about 15: two thirds of Karras' steps would go to pure noise.
        return "spends most of its steps on pure noise under zero terminal SNR, which this base was trained with"
    if prediction != "epsilon" and "prediction_type" not in accepted:
        return f"knows no {prediction!r}, which this base was trained to predict"
    if base.config.get("timestep_spacing") == "trailing" and "timestep_spacing" not in accepted:
        return "knows no trailing timesteps, which this base wants"
    return None


def _key(name: str) -> str:
    return "".join(name.split()).lower()
