"""How a base is usually drawn with: what whoever leaves a setting out gets."""

from typing import Any, NamedTuple

from diffusers import EulerAncestralDiscreteScheduler, EulerDiscreteScheduler, LCMScheduler, TCDScheduler

from .load import EMBEDDED, base_name

FEW_STEPS = (LCMScheduler, TCDScheduler)
EULER = (EulerDiscreteScheduler, EulerAncestralDiscreteScheduler)


class Usual(NamedTuple):
    """Number of denoising steps, guidance scale, and sampler; None is the base's own."""

    steps: int = 20
    guidance_scale: float = 7.5
    scheduler: str | None = None


USUAL = Usual()
OF_EMBEDDED = Usual(steps=12, guidance_scale=4.0, scheduler="DPM++ 2M")  # more steps look alike, more guidance distorts
OF_DISTILLED = Usual(steps=4, guidance_scale=1.0)  # guidance was distilled into them; more of it burns their pictures


def usual_of(pipe: Any) -> Usual:
    """Of a base that is made for few steps (LCM, TCD, Turbo), of the embedded one, or of any other."""
    if is_distilled(pipe.scheduler):
        return OF_DISTILLED
    return OF_EMBEDDED if base_name(pipe) == EMBEDDED else USUAL


def is_distilled(scheduler: Any) -> bool:
    """Whether a base's own sampler says that it is made for few steps.

    SD Turbo and SDXL Turbo come with a sampler of Euler's on trailing timesteps. So do bases with zero terminal SNR,
    which are none of these.
    """
    if isinstance(scheduler, FEW_STEPS):
        return True
    config = scheduler.config
    trailing = config.get("timestep_spacing") == "trailing" and config.get("prediction_type") == "epsilon"
    return isinstance(scheduler, EULER) and trailing and not config.get("rescale_betas_zero_snr")
