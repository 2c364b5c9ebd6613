"""How far predictions are off, and how much each timestep counts.

Shapes: B pictures of a batch; C, h, w channels and size of the latents.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..families.process import PREDICTION_TYPES


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


def training_noise(shape: Sequence[int], offset: float, generator: torch.Generator) -> Tensor:
    """Noise for latents, `[B, C, h, w]` on the CPU.

    Args:
        offset: how much of it is the same all over a channel (Guttenberg 2023, "Diffusion with Offset Noise").
    """
    noise = torch.randn(tuple(shape), generator=generator)
    return noise + offset * torch.randn(*shape[:2], 1, 1, generator=generator) if offset else noise


def squared_errors(prediction: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean squared error of each picture, `[B, C, h, w]` twice -> `[B]`, in float32.

    Args:
        weights: how much each place counts, `[B, 1, h, w]`; None where all count alike.
    """
    errors = (prediction.float() - target.float()).square()
    return (errors if weights is None else errors * weights).flatten(1).mean(1)


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
