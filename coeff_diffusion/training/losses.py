"""What a denoiser is asked to predict, how much each timestep counts, and what a subject has learned.

Shapes: B pictures of a batch; C, h, w channels and size of the latents.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
# Shares of the noise schedule at which a subject's effect is measured: the middle, where subjects take shape.
PROBED = (0.1, 0.3, 0.5, 0.7, 0.9)


def training_schedule(scheduler_config: Mapping[str, Any]) -> DDPMScheduler:
    """The forward process that a base was trained with, from the config of whatever sampler it ships with.

    Betas, zero terminal SNR and the prediction type are the base's own.

    Raises:
        ValueError: the config is not of a diffusion process with betas (flow matching), or predicts something unknown.
    """
    name = scheduler_config.get("_class_name", "scheduler")
    if "beta_start" not in scheduler_config and "trained_betas" not in scheduler_config:
        raise ValueError(f"the base's {name} has no betas (flow matching?); expected Stable Diffusion 1.x or 2.x")
    schedule = DDPMScheduler.from_config(dict(scheduler_config))
    if schedule.config.prediction_type not in PREDICTION_TYPES:
        raise ValueError(
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


def min_snr_weights(snr: Tensor, gamma: float | None, prediction_type: str) -> Tensor:
    """Weight of each picture's squared error, `[B]` (Hang et al. 2023, arXiv 2303.09556, equations 6 to 8).

    In terms of the error of the predicted latents all three are `min(snr, gamma)`: epsilon divides it by `snr`,
    v_prediction by `snr + 1`. Finite also at `snr = 0`, where epsilon's quotient has the limit 1. gamma None: all ones.
    """
    if gamma is None:
        return torch.ones_like(snr)
    if prediction_type == "epsilon":
        return gamma / snr.clamp(min=gamma)  # = min(snr, gamma) / snr, without 0 / 0
    if prediction_type == "v_prediction":
        return snr.clamp(max=gamma) / (snr + 1)
    if prediction_type == "sample":
        return snr.clamp(max=gamma)
    raise ValueError(f"unknown prediction type {prediction_type!r}; expected one of {PREDICTION_TYPES}")


def squared_errors(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each picture, `[B, C, h, w]` twice -> `[B]`, in float32."""
    return (prediction.float() - target.float()).square().flatten(1).mean(1)


def training_loss(errors: Tensor, weights: Tensor, num_class: int = 0, prior_loss_weight: float = 1.0) -> Tensor:
    """Mean weighted error of the subject's pictures, plus `prior_loss_weight` times that of the class pictures.

    Args:
        errors, weights: `[B]`, the last `num_class` of them of class pictures.
    """
    weighted = errors * weights
    if not num_class:
        return weighted.mean()
    return weighted[:-num_class].mean() + prior_loss_weight * weighted[-num_class:].mean()


# --- what was learned -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Effect:
    """What training changed in the prediction of the very same noised pictures of the subject.

    Attributes:
        change: root mean square of the change, as a share of the prediction's own.
        loss_before, loss_after: mean squared error against the truth, before training and with the subject.
    """

    change: float
    loss_before: float
    loss_after: float

    @property
    def improvement(self) -> float:
        """Share of the loss that training took away; negative where it made things worse."""
        return 1 - self.loss_after / self.loss_before if self.loss_before else 0.0

    def to_dict(self) -> dict[str, float]:
        return {
            name: float(f"{value:.6g}") for name, value in (asdict(self) | {"improvement": self.improvement}).items()
        }

    def advice(self) -> str | None:
        """One sentence of what went wrong and what to do, or None where the subject was learned."""
        if self.change < LEAST_CHANGE:
            return (
                f"the subject learned nothing: it changes the predictions by {self.change:.2%} (expected at least "
                f"{LEAST_CHANGE:.0%}). Raise --learning_rate and --token_learning_rate or --max_train_steps, and check "
                "that the trigger stands in the prompt or the captions"
            )
        if self.improvement < LEAST_IMPROVEMENT:
            return (
                f"the subject learned next to nothing: the loss on its pictures went from {self.loss_before:.4f} to "
                f"{self.loss_after:.4f} ({self.improvement:+.2%} better, expected {LEAST_IMPROVEMENT:.1%} or more). "
                + (
                    "The predictions moved without getting better: lower the learning rates"
                    if self.improvement < 0
                    else "Raise --max_train_steps or the learning rates"
                )
                + ", and check that the pictures show one subject, of the given class word"
            )
        return None


LEAST_CHANGE = 0.01
LEAST_IMPROVEMENT = 0.005


@dataclass(frozen=True)
class Probe:
    """Fixed noised pictures of the subject, drawn once, to ask the denoiser about before and after training.

    Attributes:
        noised, target: `[N, C, h, w]`; timesteps: `[N]`; pictures: which picture each one shows.
    """

    noised: Tensor
    target: Tensor
    timesteps: Tensor
    pictures: Sequence[int]

    @classmethod
    def draw(cls, schedule: DDPMScheduler, latents: Tensor, seed: int, most: int = 8) -> "Probe":
        """The first `most` latents `[P, C, h, w]`, each at every timestep of `PROBED`."""
        chosen = latents[:most]
        count = schedule.config.num_train_timesteps
        steps = torch.tensor([min(count - 1, round(share * count)) for share in PROBED])
        pictures = [picture for picture in range(len(chosen)) for _ in PROBED]
        clean = chosen[pictures]  # [N, C, h, w]
        timesteps = steps.repeat(len(chosen))
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed)).to(clean)
        timesteps = timesteps.to(clean.device)
        noised = schedule.add_noise(clean, noise, timesteps)
        return cls(noised, prediction_target(schedule, clean, noise, timesteps), timesteps, pictures)

    @torch.no_grad()
    def predict(self, denoise: Callable[[Tensor, Tensor, Sequence[int]], Tensor], batch_size: int) -> Tensor:
        """`denoise(noised, timesteps, pictures)` over the whole probe in batches, `[N, C, h, w]` float32."""
        spans = [slice(i, i + batch_size) for i in range(0, len(self.timesteps), batch_size)]
        return torch.cat([denoise(self.noised[s], self.timesteps[s], self.pictures[s]).float() for s in spans])

    def effect(self, before: Tensor, after: Tensor) -> Effect:
        """Compare two results of `predict`."""
        change = (after - before).square().mean().sqrt() / before.square().mean().sqrt().clamp(min=1e-12)
        errors = [float(squared_errors(prediction, self.target).mean()) for prediction in (before, after)]
        return Effect(float(change), *errors)
