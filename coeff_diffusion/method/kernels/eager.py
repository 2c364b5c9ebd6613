"""Chooses how recombined attention is computed outside `torch.compile`."""

import functools
import warnings
from typing import Any

import torch
from torch import Tensor

from .. import recombination
from . import cuda_attention, native
from .blocked import blocked_attention


@functools.cache
def _triton_kernels() -> Any:
    """The kernels for CUDA; None, with one warning, where Triton is missing or too old."""
    try:
        from . import triton_attention
    except ImportError as error:
        warnings.warn(f"recombined attention runs without its CUDA kernels, slower: {error}", stacklevel=2)
        return None
    return triton_attention


def _learns(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def eager_attention(
    query: Tensor, key: Tensor, value: Tensor, coeff: Tensor, attn_mask: Tensor | None, scale: float | None
) -> Tensor:
    """See `kernels.recombined_attention`; the inputs fit each other."""
    if (attn_mask is not None and attn_mask.requires_grad) or 0 in (*query.shape, key.shape[2], value.shape[3]):
        return recombination.recombined_attention(query, key, value, coeff, attn_mask, scale)
    if query.is_cuda and attn_mask is None and not _learns(query, key, value, coeff):
        factor = query.shape[3] ** -0.5 if scale is None else scale
        if cuda_attention.supports(query, key, value, factor):  # without Triton, too
            return cuda_attention.cuda_attention(query, key, value, coeff, factor)[0]
    kernels = _triton_kernels() if query.is_cuda else None
    if kernels is not None and kernels.supports(query, key, value, attn_mask):
        output: Tensor = kernels.triton_attention(query, key, value, coeff, attn_mask, scale)
        return output
    if native.supports(query, key, value, attn_mask):
        return native.native_attention(query, key, value, coeff, attn_mask, scale)
    return blocked_attention(query, key, value, coeff, attn_mask, scale)
