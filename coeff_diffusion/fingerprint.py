"""Which base a UNet is: what `CoefficientsInfo` records of it, so that a file can tell whether it fits another."""

import hashlib
import json
from typing import Any

import torch
from diffusers.models import UNet2DConditionModel
from torch import Tensor

from .attachment import CoeffConfig, layer_heads, select_layers
from .coefficients import Coefficients, CoefficientsError, listed

SAME_WEIGHTS_TOLERANCE = 0.01
# The text width and the channels of the first level, which no two families share.
FAMILIES = {
    (768, 320): "stable-diffusion-v1",
    (1024, 320): "stable-diffusion-v2",
    (2048, 320): "stable-diffusion-xl-v1-base",
}


def describe_base(unet: UNet2DConditionModel) -> dict[str, Any]:
    """The fields of `CoefficientsInfo` that a UNet itself knows: architecture, fingerprint, a sample of its weights."""
    return {
        "base_architecture": architecture(unet),
        "base_fingerprint": fingerprint(unet),
        "base_sample": weight_sample(unet),
    }


def architecture(unet: UNet2DConditionModel) -> str:
    """The family's name as in ModelSpec, "custom" where it is none that we know."""
    config: Any = unet.config
    return FAMILIES.get((config.cross_attention_dim, config.block_out_channels[0]), "custom")


def fingerprint(unet: UNet2DConditionModel) -> str:
    """Hex SHA-256 of the attention topology: path, heads, inner width and context width of every attention layer."""
    topology = [
        (path, attn.heads, attn.inner_dim, attn.cross_attention_dim) for path, attn in select_layers(unet).items()
    ]
    return hashlib.sha256(json.dumps(topology).encode()).hexdigest()


def weight_sample(unet: UNet2DConditionModel) -> tuple[float, ...]:
    """16 weights, evenly spread over the first and the last convolution: they tell a base from its fine-tunes."""
    return tuple(value for conv in (unet.conv_in, unet.conv_out) for value in _spread(conv.weight, 8))


def same_weights(first: tuple[float, ...], second: tuple[float, ...]) -> bool:
    """Whether two samples are of the same weights, give or take the rounding of half precision."""
    if len(first) != len(second):
        return False
    largest = max(map(abs, (*first, *second)), default=0.0)
    return all(abs(a - b) <= SAME_WEIGHTS_TOLERANCE * largest for a, b in zip(first, second, strict=True))


def check_fits(coefficients: Coefficients, unet: UNet2DConditionModel) -> None:
    """Make sure that coefficients belong to this UNet's attention layers. Looks at no weight; works on the meta device.

    Raises:
        CoefficientsError: a layer that this UNet does not have, one with another number of heads, one that was trained
            but is missing, or layers of another width. The message names the first offenders and both sides.
    """
    info, heads = coefficients.info, layer_heads(unet)
    wrong = [f"{path} is no attention layer of this base" for path in coefficients if path not in heads]
    wrong += [
        f"{path} has {len(coeff)} heads, in this base {heads[path]}"
        for path, coeff in coefficients.items()
        if path in heads and len(coeff) != heads[path]
    ]
    if coefficients and not wrong:
        expected = layer_heads(unet, CoeffConfig(layers=info.layers, blocks=info.blocks))
        wrong += [f"{path} has no coefficients" for path in expected if path not in coefficients]
    if not wrong and info.base_fingerprint not in ("", fingerprint(unet)):
        wrong.append("the attention layers have other widths")
    if wrong:
        raise CoefficientsError(
            f"the subject is for {info.base_model or 'a base'} ({info.base_architecture or 'unknown family'}, "
            f"{len(coefficients)} layers), this base is {architecture(unet)} with {len(heads)} layers: {listed(wrong)}"
        )


def _spread(weight: Tensor, count: int) -> list[float]:
    flat = weight.detach().flatten()
    index = torch.linspace(0, flat.numel() - 1, count).long().to(flat.device)
    return [float(f"{value:.6g}") for value in flat[index].float().tolist()]
