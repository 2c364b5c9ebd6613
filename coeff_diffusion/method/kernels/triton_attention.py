"""Recombined attention on CUDA: what launches the kernels of `triton_kernels` and `triton_wide`, differentiable.

Legend: B batch, H heads, N query tokens, M key tokens, D channels per head.
"""

from typing import Any

import torch
import triton
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import cuda_attention
from .cuda_attention import LOG2_E
from .triton_kernels import mix_kernel, score_grad_kernel, stats_kernel
from .triton_launch import (
    NO_HEADS,
    Launcher,
    as_coefficients,
    as_groups,
    as_heads,
    as_mask,
    empty_like,
    launcher_of,
    on_device,
)
from .triton_maps import INTERPRETED
from .triton_tiles import FEW
from .triton_wide import shares_kernel, wide_kernel, wide_score_grad_kernel

# ---- forward and backward --------------------------------------------------------------------------------------------


def _forward(
    query: Tensor, key: Tensor, value: Tensor, coeff: Tensor, mask: Tensor | None, scale: float, keep: bool
) -> tuple[Tensor, Tensor | None]:
    """out [B, H, N, D], and if it is to be kept for the backward, stats [B, H, 2, N]. The mask is [B, H, N, M]."""
    if mask is None and cuda_attention.supports(query, key, value, scale):
        return cuda_attention.cuda_attention(query, key, value, coeff, scale, with_stats=keep)
    (batch, heads, n, _), m = query.shape, key.shape[2]
    launcher = launcher_of(mask, keep, query, key, value, coeff)
    out = empty_like(query)
    wide = launcher.tiles("wide_few" if m <= FEW else "wide")
    stats = query.new_empty(batch, heads, 2, n, dtype=torch.float32) if keep or wide is None else None
    q, k, w = as_heads(query), as_heads(key), as_coefficients(coeff)
    row_stats = NO_HEADS if stats is None else as_heads(stats)
    sizes = (as_mask(mask), n, m, scale * LOG2_E)
    with on_device(query.device):
        if wide is not None:
            g = wide.group
            tensors: tuple[Any, ...] = (q, k, as_groups(value, g), row_stats, w, as_groups(out, g))
            launcher.launch(wide_kernel, wide, heads // g, tensors, sizes, KEY_ROWS=False, KEEP=keep)
        else:
            launcher.launch(stats_kernel, launcher.tiles("stats"), heads, (q, k, row_stats), sizes)
            tiles = launcher.tiles("mix")
            tensors = (q, k, as_heads(value), row_stats, w, as_heads(out))
            launcher.launch(mix_kernel, tiles, triton.cdiv(heads, tiles.group), tensors, sizes, KEY_ROWS=False)
    return out, stats


def _shares(
    launcher: Launcher,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dout: Tensor,
    coeff: Tensor,
    stats: Tensor,
    sizes: Any,
) -> tuple[Tensor, Tensor]:
    """`mean` [B, H, 1, N] of `triton_kernels`, and the gradient of the coefficients, in their shape and dtype."""
    batch, heads, n, channels = query.shape
    tiles = launcher.tiles("shares")
    groups, blocks = heads // tiles.group, triton.cdiv(n, tiles.rows)
    mean = stats.new_empty(batch, heads, groups, n)
    sums = stats.new_empty(batch, heads, blocks, heads * channels)
    wide = (as_groups(value, tiles.group), as_groups(dout, tiles.group))
    q, k, w = as_heads(query), as_heads(key), as_coefficients(coeff)
    tensors = (q, k, *wide, as_heads(stats), w, as_heads(mean), as_heads(sums))
    launcher.launch(shares_kernel, tiles, groups * heads, tensors, sizes)
    added = (2, 4) if coeff.dim() == 3 else (0, 2, 4)
    dcoeff = sums.view(batch, heads, blocks, heads, channels).sum(added).transpose(-1, -2)
    return mean if groups == 1 else mean.sum(2, keepdim=True), dcoeff.to(coeff.dtype)


def _backward(
    dout: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    coeff: Tensor,
    stats: Tensor,
    mask: Tensor | None,
    scale: float,
    needed: tuple[bool, ...],
    rehearsed: bool = False,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of query, key, value and coeff; None for one that is not `needed`. Rehearsed, none has a value."""
    (_, heads, n, _), m = query.shape, key.shape[2]
    launcher = launcher_of(mask, False, query, key, value, coeff, dout, rehearsed=rehearsed)
    dquery, dkey, dvalue = (
        empty_like(x) if need else None for x, need in zip((query, key, value), needed[:3], strict=True)
    )
    dcoeff = None
    by_query = (as_mask(mask), n, m, scale * LOG2_E)
    by_key = (as_mask(mask, key_rows=True), m, n, scale * LOG2_E)
    q, k, w, row_stats = as_heads(query), as_heads(key), as_coefficients(coeff), as_heads(stats)
    with on_device(query.device):
        if dvalue is not None:
            wide = launcher.tiles("wide")
            tiles = wide or launcher.tiles("dvalue")
            g = tiles.group
            if wide:
                tensors: tuple[Any, ...] = (k, q, as_groups(dout, g), row_stats, w, as_groups(dvalue, g))
                launcher.launch(wide_kernel, wide, heads // g, tensors, by_key, KEY_ROWS=True, KEEP=False)
            else:
                tensors = (k, q, as_heads(dout), row_stats, w, as_heads(dvalue))
                launcher.launch(mix_kernel, tiles, triton.cdiv(heads, g), tensors, by_key, KEY_ROWS=True)
        if needed[0] or needed[1] or needed[3]:
            mean, dcoeff = _shares(launcher, query, key, value, dout, coeff, stats, by_query)
        wide = launcher.tiles("wide_score_grad")
        tiles = wide or launcher.tiles("score_grad")
        kernel = wide_score_grad_kernel if wide else score_grad_kernel
        do, v = (as_groups(x, tiles.group) if wide else as_heads(x) for x in (dout, value))
        programs = heads if wide else triton.cdiv(heads, tiles.group)
        if dquery is not None:
            tensors = (q, k, do, v, row_stats, as_heads(mean), w, as_heads(dquery))
            launcher.launch(kernel, tiles, programs, tensors, (*by_query, scale), KEY_ROWS=False)
        if dkey is not None:
            tensors = (k, q, v, do, row_stats, as_heads(mean), w, as_heads(dkey))
            launcher.launch(kernel, tiles, programs, tensors, (*by_key, scale), KEY_ROWS=True)
    return dquery, dkey, dvalue, dcoeff if needed[3] else None


_rehearsed: set[Any] = set()


def _rehearse_backward(
    query: Tensor, key: Tensor, value: Tensor, coeff: Tensor, stats: Tensor, mask: Tensor | None, scale: float,
    needed: tuple[bool, ...],
) -> None:  # fmt: skip
    """Begin to compile what the backward of such a layer is going to launch, the first time that there is one."""
    what = launcher_of(mask, False, query, key, value, coeff).key, needed
    if what not in _rehearsed:
        _rehearsed.add(what)
        _backward(empty_like(query), query, key, value, coeff, stats, mask, scale, needed, rehearsed=True)


class _Attention(torch.autograd.Function):
    """Recombined attention where something learns."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, coeff: Tensor, mask: Tensor | None, scale: float
    ) -> Tensor:
        out, stats = _forward(query, key, value, coeff, mask, scale, keep=True)
        if stats is not None and not INTERPRETED:
            _rehearse_backward(query, key, value, coeff, stats, mask, scale, ctx.needs_input_grad[:4])
        ctx.save_for_backward(query, key, value, coeff, stats, mask)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, coeff, stats, mask = ctx.saved_tensors
        needed = ctx.needs_input_grad[:4]
        return *_backward(dout, query, key, value, coeff, stats, mask, ctx.scale, needed), None, None


# ---- the function ----------------------------------------------------------------------------------------------------


def supports(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> bool:
    """Whether `triton_attention` can take these: on CUDA (or in Triton's interpreter), float32, float16 or bfloat16."""
    if query.is_cuda:
        dtypes = {torch.float32, torch.float16, torch.bfloat16}
        runs = torch.version.hip is None and torch.cuda.get_device_capability(query.device) >= (8, 0)
    else:
        dtypes, runs = {torch.float32, torch.float16}, INTERPRETED  # its products of bfloat16 are wrong
    plain = attn_mask is None or (
        attn_mask.dtype in {torch.bool, torch.float32, torch.float16, torch.bfloat16} and not attn_mask.requires_grad
    )
    alike = query.dtype == key.dtype == value.dtype and query.shape[-1] == value.shape[-1] <= 256
    return runs and plain and alike and query.dtype in dtypes


def triton_attention(
    query: Float[Tensor, "batch heads queries channels"],
    key: Float[Tensor, "batch heads keys channels"],
    value: Float[Tensor, "batch heads keys channels"],
    coeff: Float[Tensor, "heads heads"] | Float[Tensor, "batch heads heads"],
    attn_mask: Bool[Tensor, "..."] | Float[Tensor, "..."] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "batch heads queries channels"]:
    """`kernels.recombined_attention` for inputs that `supports` accepts; differentiable once, in all but the mask.

    The maps are mixed in float32, and their sums rounded to the inputs' dtype for the product with the values.
    """
    batch, heads, queries, channels = query.shape
    scale = channels**-0.5 if scale is None else scale
    mask = None if attn_mask is None else attn_mask.expand(batch, heads, queries, key.shape[2])
    if torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value, coeff)):
        out: Tensor = _Attention.apply(query, key, value, coeff, mask, float(scale))
    else:
        out, _ = _forward(query, key, value, coeff, mask, float(scale), keep=False)
    return out
