"""Recombined attention on CUDA: what launches the kernels of `triton_kernels` and `triton_wide`, differentiable.

Legend: B batch, H heads, N query tokens, M key tokens, D channels per head.
"""

import functools
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import triton
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import cuda_attention
from .cuda_attention import LOG2_E
from .triton_kernels import mix_kernel, score_grad_kernel, stats_kernel
from .triton_maps import INTERPRETED, Coefficients, Heads, Mask
from .triton_tiles import FEW, Tiles, split_channels, tiles_of
from .triton_wide import shares_kernel, wide_kernel, wide_score_grad_kernel

# ---- what kernels are given ------------------------------------------------------------------------------------------


def _heads(x: Tensor) -> Heads:
    x = x if x.stride(-1) == 1 else x.contiguous()
    return Heads(x, *x.stride()[:3])


NO_HEADS = Heads(0, 0, 0, 0)


def _by_groups(x: Tensor, group: int) -> Heads:
    """[B, H, rows, D] as [B, H/G, rows, G D]: a view where heads lie side by side, as attention layers lay them."""
    if x.stride(3) != 1 or x.stride(1) != x.shape[3]:
        x = _empty_like(x).copy_(x)
    batch, head, row, _ = x.stride()
    return Heads(x, batch, group * head, row)


def _coefficients(coeff: Tensor) -> Coefficients:
    return Coefficients(coeff, *coeff.stride()) if coeff.dim() == 3 else Coefficients(coeff, 0, *coeff.stride())


def _mask(mask: Tensor | None, key_rows: bool = False) -> Mask:
    """A mask [B, H, N, M] for a kernel whose rows are queries, or keys."""
    if mask is None:
        return Mask(0, 0, 0, 0, 0)
    batch, head, query, key = mask.stride()
    row, column = (key, query) if key_rows else (query, key)
    return Mask(mask.view(torch.uint8) if mask.dtype == torch.bool else mask, batch, head, row, column)


def _empty_like(x: Tensor) -> Tensor:
    """[B, H, rows, D] over [B, rows, H, D]: what joins or splits the heads around attention needs no copy."""
    batch, heads, rows, channels = x.shape
    return x.new_empty(batch, rows, heads, channels).transpose(1, 2)


# ---- launches --------------------------------------------------------------------------------------------------------

# Triton looks at every argument of every launch to find the compiled kernel, in Python: more time than a small layer
# takes on the GPU. Found once, it is kept with the constants among its arguments, by all that it depends on.
_known: dict[Any, tuple[Any, tuple[Any, ...]]] = {}
_KNOWN_AT_MOST = 4096


class _Layer(NamedTuple):
    """What the launches of one call have in common."""

    shape: torch.Size  # of the query
    device: torch.device
    itemsize: int
    mask: str  # its kind
    key: tuple[Any, ...]  # device, sizes, strides, dtypes and alignment: all that compiled kernels depend on

    def tiles(self, kernel: str) -> Any:
        return _tiles(kernel, self.shape[1], self.shape[3], self.itemsize, self.device)

    def launch(
        self,
        kernel: Any,
        tiles: Tiles,
        programs: int,
        tensors: tuple[Any, ...],
        sizes: tuple[Any, ...],
        **constants: Any,
    ) -> None:
        """Run `kernel` for every block of rows, for `programs` heads or groups, and for every sample.

        Args:
            kernel: one of `triton_kernels` or `triton_wide`.
            tiles: how it is cut.
            programs: how many there are for each sample and block of rows.
            tensors: the kernel's first arguments.
            sizes: those that follow: the mask, the number of rows, that of columns, and factors.
            constants: those of the kernel's constants that neither the layer nor `tiles` says.
        """
        key = (kernel.fn, constants.get("KEY_ROWS"), self.key)
        known = _known.get(key)
        if known is not None:
            run, last = known
            run(*tensors, *sizes, *last)
            return
        batch, heads, _, channels = self.shape
        rows, columns = sizes[1:3]
        width = tiles.group * channels
        constants |= {"H": heads, "D": channels, "W": width, "MASK": self.mask}
        constants |= dict(zip(("D0", "D1", "W0", "W1"), split_channels(channels) + split_channels(width), strict=True))
        constants |= {"R": tiles.rows, "C": tiles.columns, "G": tiles.group}
        constants["EVEN"] = rows % tiles.rows == 0 and columns % tiles.columns == 0
        last = tuple(constants[name] for name in kernel.arg_names[len(tensors) + len(sizes) :])
        grid = (triton.cdiv(rows, tiles.rows), programs, batch)
        compiled = kernel[grid](*tensors, *sizes, *last, num_warps=tiles.warps, num_stages=tiles.stages)
        if not INTERPRETED:
            if len(_known) >= _KNOWN_AT_MOST:
                _known.clear()
            _known[key] = compiled[grid], last


@functools.cache
def _tiles(kernel: str, heads: int, channels: int, itemsize: int, device: torch.device) -> Tiles | None:
    capability = (8, 0) if INTERPRETED else torch.cuda.get_device_capability(device)
    return tiles_of(kernel, heads, channels, itemsize, capability)


def _layer(mask: Tensor | None, keep: bool, *tensors: Tensor) -> _Layer:
    """The layer of a query, and of what else a call depends on; `keep` tells calls apart."""
    query = tensors[0]
    kind = "none" if mask is None else "bool" if mask.dtype == torch.bool else "bias"
    given = tensors if mask is None else (*tensors, mask)
    key = tuple((x.shape, x.stride(), x.dtype, x.data_ptr() % 16) for x in given)
    return _Layer(query.shape, query.device, query.element_size(), kind, (query.device, keep, kind, key))


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Where kernels are launched: choosing the device that is chosen already takes time."""
    elsewhere = device.type == "cuda" and device.index != torch.cuda.current_device()
    return torch.cuda.device(device) if elsewhere else nullcontext()


# ---- forward and backward --------------------------------------------------------------------------------------------


def _forward(
    query: Tensor, key: Tensor, value: Tensor, coeff: Tensor, mask: Tensor | None, scale: float, keep: bool
) -> tuple[Tensor, Tensor | None]:
    """out [B, H, N, D], and if it is to be kept for the backward, stats [B, H, 2, N]. The mask is [B, H, N, M]."""
    if mask is None and cuda_attention.supports(query, key, value, scale):
        return cuda_attention.cuda_attention(query, key, value, coeff, scale, with_stats=keep)
    (batch, heads, n, _), m = query.shape, key.shape[2]
    layer = _layer(mask, keep, query, key, value, coeff)
    out = _empty_like(query)
    wide = layer.tiles("wide_few" if m <= FEW else "wide")
    stats = query.new_empty(batch, heads, 2, n, dtype=torch.float32) if keep or wide is None else None
    q, k, w, row_stats = _heads(query), _heads(key), _coefficients(coeff), NO_HEADS if stats is None else _heads(stats)
    sizes = (_mask(mask), n, m, scale * LOG2_E)
    with _on(query.device):
        if wide is not None:
            g = wide.group
            tensors: tuple[Any, ...] = (q, k, _by_groups(value, g), row_stats, w, _by_groups(out, g))
            layer.launch(wide_kernel, wide, heads // g, tensors, sizes, KEY_ROWS=False, KEEP=keep)
        else:
            layer.launch(stats_kernel, layer.tiles("stats"), heads, (q, k, row_stats), sizes)
            tiles = layer.tiles("mix")
            tensors = (q, k, _heads(value), row_stats, w, _heads(out))
            layer.launch(mix_kernel, tiles, triton.cdiv(heads, tiles.group), tensors, sizes, KEY_ROWS=False)
    return out, stats


def _shares(
    layer: _Layer, query: Tensor, key: Tensor, value: Tensor, dout: Tensor, coeff: Tensor, stats: Tensor, sizes: Any
) -> tuple[Tensor, Tensor]:
    """`mean` [B, H, 1, N] of `triton_kernels`, and the gradient of the coefficients, in their shape and dtype."""
    batch, heads, n, channels = query.shape
    tiles = layer.tiles("shares")
    groups, blocks = heads // tiles.group, triton.cdiv(n, tiles.rows)
    mean = stats.new_empty(batch, heads, groups, n)
    sums = stats.new_empty(batch, heads, blocks, heads * channels)
    wide = (_by_groups(value, tiles.group), _by_groups(dout, tiles.group))
    tensors = (_heads(query), _heads(key), *wide, _heads(stats), _coefficients(coeff), _heads(mean), _heads(sums))
    layer.launch(shares_kernel, tiles, groups * heads, tensors, sizes)
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
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of query, key, value and coeff; None for one that is not `needed`."""
    (_, heads, n, _), m = query.shape, key.shape[2]
    layer = _layer(mask, False, query, key, value, coeff, dout)
    dquery, dkey, dvalue = (
        _empty_like(x) if need else None for x, need in zip((query, key, value), needed[:3], strict=True)
    )
    dcoeff = None
    by_query = (_mask(mask), n, m, scale * LOG2_E)
    by_key = (_mask(mask, key_rows=True), m, n, scale * LOG2_E)
    q, k, w, row_stats = _heads(query), _heads(key), _coefficients(coeff), _heads(stats)
    with _on(query.device):
        if dvalue is not None:
            wide = layer.tiles("wide")
            tiles = wide or layer.tiles("dvalue")
            g = tiles.group
            if wide:
                tensors: tuple[Any, ...] = (k, q, _by_groups(dout, g), row_stats, w, _by_groups(dvalue, g))
                layer.launch(wide_kernel, wide, heads // g, tensors, by_key, KEY_ROWS=True, KEEP=False)
            else:
                tensors = (k, q, _heads(dout), row_stats, w, _heads(dvalue))
                layer.launch(mix_kernel, tiles, triton.cdiv(heads, g), tensors, by_key, KEY_ROWS=True)
        if needed[0] or needed[1] or needed[3]:
            mean, dcoeff = _shares(layer, query, key, value, dout, coeff, stats, by_query)
        wide = layer.tiles("wide_score_grad")
        tiles = wide or layer.tiles("score_grad")
        kernel = wide_score_grad_kernel if wide else score_grad_kernel
        do, v = (_by_groups(x, tiles.group) if wide else _heads(x) for x in (dout, value))
        programs = heads if wide else triton.cdiv(heads, tiles.group)
        if dquery is not None:
            tensors = (q, k, do, v, row_stats, _heads(mean), w, _heads(dquery))
            layer.launch(kernel, tiles, programs, tensors, (*by_query, scale), KEY_ROWS=False)
        if dkey is not None:
            tensors = (k, q, v, do, row_stats, _heads(mean), w, _heads(dkey))
            layer.launch(kernel, tiles, programs, tensors, (*by_key, scale), KEY_ROWS=True)
    return dquery, dkey, dvalue, dcoeff if needed[3] else None


class _Attention(torch.autograd.Function):
    """Recombined attention where something learns."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, coeff: Tensor, mask: Tensor | None, scale: float
    ) -> Tensor:
        out, stats = _forward(query, key, value, coeff, mask, scale, keep=True)
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
