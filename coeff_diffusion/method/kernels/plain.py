"""Coefficients that need no recombination: a diagonal matrix scales each head's output, and so its values."""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def diagonal_of(coeff: Tensor) -> Tensor | None:
    """The diagonal, `[H]` or `[B, H]`, of coefficients `[H, H]` or `[B, H, H]` that are zero elsewhere; else None."""
    diagonal = coeff.diagonal(dim1=-2, dim2=-1)
    return diagonal if torch.equal(coeff, torch.diag_embed(diagonal)) else None


def scaled_attention(
    query: Tensor, key: Tensor, value: Tensor, diagonal: Tensor, attn_mask: Tensor | None, scale: float | None
) -> Tensor:
    """Recombined attention with `coeff = diag(diagonal)`: PyTorch's own, over values that are scaled per head."""
    gain = (1 + diagonal.float())[..., None, None]  # [H, 1, 1] or [B, H, 1, 1]
    scaled = (value * gain).to(value.dtype)
    return scaled_dot_product_attention(query, key, scaled, attn_mask=attn_mask, scale=scale)
