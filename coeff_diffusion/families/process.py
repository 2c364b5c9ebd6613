"""The noise process that a base was trained with: what is added to latents, and what is predicted of it.

Shapes: B pictures of a batch; C, h, w channels and size of the latents.
"""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from .errors import BaseModelError

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


def training_schedule(scheduler_config: Mapping[str, Any]) -> DDPMScheduler:
    """The forward process that a base was trained with, from the config of whatever sampler it ships with.

    Betas, zero terminal SNR and the prediction type are the base's own.

    Raises:
        BaseModelError: the config is not of a diffusion process with betas (EDM, flow matching), or predicts something
            unknown.
    """
    name = scheduler_config.get("_class_name", "scheduler")
    if "beta_start" not in scheduler_config and "trained_betas" not in scheduler_config:
        raise BaseModelError(
            f"the base's {name} has no betas (EDM, as Playground v2.5, or flow matching), and training and refiners "
            "need a base with betas; expected Stable Diffusion 1.x, 2.x or XL, or what was made from them"
        )
    schedule = DDPMScheduler.from_config(dict(scheduler_config))
    if schedule.config.prediction_type not in PREDICTION_TYPES:
        raise BaseModelError(
            f"the base's {name} predicts {schedule.config.prediction_type!r}; expected one of {PREDICTION_TYPES}"
        )
    return schedule


def prediction_target(schedule: DDPMScheduler, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the denoiser should say about `schedule.add_noise(latents, noise, timesteps)`, `[B, C, h, w]`.

    epsilon: the noise. sample: the latents. v_prediction: `sqrt(a) * noise - sqrt(1 - a) * latents`, with the
    schedule's a = alphas_cumprod at the timestep.
    """
    kind = schedule.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "sample":
        return latents
    if kind == "v_prediction":
        return schedule.get_velocity(latents, noise, timesteps)
    raise ValueError(f"unknown prediction type {kind!r}; expected one of {PREDICTION_TYPES}")


def signal_to_noise(schedule: DDPMScheduler, timesteps: Tensor) -> Tensor:
    """Signal-to-noise ratio `a / (1 - a)` at each timestep, `[B]`, float32; 0 at a zero terminal SNR."""
    alphas = schedule.alphas_cumprod.to(device=timesteps.device, dtype=torch.float32)[timesteps]  # [B]
    return alphas / (1 - alphas)
