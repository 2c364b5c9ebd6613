"""Recombined attention on CPUs: `native.cpp` as one differentiable operator, in float32 whatever the inputs are.

Legend: B samples, H heads, N queries, M keys, D channels of a key, E of a value.
"""

import ctypes
import functools
import threading
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import recombination
from .build_error import BuildError
from .native_build import load
from .native_interface import Shape, View

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
Needed = tuple[bool, bool, bool, bool]  # whether the gradients of query, key, value and coeff are wanted
KEPT_ROOM = 64 * 1024 * 1024  # floats
TOLERANCE = 1e-5  # of the check after loading: a wrong result is off by its own size


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernel; None where there is none for this machine or, with one warning, where it cannot be had."""
    try:
        found = load()
        if found is not None:
            _check(found)
    except BuildError as error:
        warnings.warn(f"recombined attention runs without its CPU kernel, slower: {error}", stacklevel=2)
        return None
    return found


def supports(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None) -> bool:
    """Whether the kernel computes this: on a CPU, at most float32, with a mask that does not learn or none."""
    return (
        query.device.type == "cpu"
        and query.dtype in DTYPES
        and query.dtype == key.dtype == value.dtype
        and (attn_mask is None or (attn_mask.device.type == "cpu" and not attn_mask.requires_grad))
        and library() is not None
    )


def native_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    coeff: Tensor,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """See `kernels.recombined_attention`; differentiable once in query, key, value and coeff."""
    kernel = library()
    assert kernel is not None, "ask `supports` first"
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if query.dtype != torch.float32:
        inputs = query.float(), key.float(), value.float()
        return native_attention(*inputs, coeff, attn_mask, scale).to(query.dtype)
    mask = None if attn_mask is None else _added(attn_mask, (*query.shape[:3], key.shape[2]))
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value, coeff)):
        output: Tensor = NativeAttention.apply(query, key, value, coeff, mask, scale)
        return output
    return _forward(kernel, query, key, value, coeff, mask, scale, None)


class NativeAttention(torch.autograd.Function):
    """Saves the inputs and of every row of the scores what makes it one of the maps (`RowScale`), `[B, H, N, 2]`."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, coeff: Tensor, mask: Tensor | None, scale: float
    ) -> Tensor:
        row_scales = query.new_empty(*query.shape[:3], 2)
        ctx.save_for_backward(query, key, value, coeff, mask, row_scales)
        ctx.scale = scale
        return _forward(library(), query, key, value, coeff, mask, scale, row_scales)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, coeff, mask, row_scales = ctx.saved_tensors
        needed = ctx.needs_input_grad[:4]
        found = _backward(library(), grad, query, key, value, coeff, mask, row_scales, ctx.scale, needed)
        return (*found, None, None)


def _forward(
    kernel: Any, query: Tensor, key: Tensor, value: Tensor, coeff: Tensor, mask: Tensor | None, scale: float,
    row_scales: Tensor | None,
) -> Tensor:  # fmt: skip
    """The output, `[B, H, N, E]`, laid out as `[B, N, H, E]` in memory: joining the heads costs nothing."""
    query, key, value, coeff = _readable(query), _readable(key), _readable(value), _matrices(coeff)
    shape, threads = _shape(query, key, value), torch.get_num_threads()
    output = _empty(query, value.shape[3])
    room = _room(kernel.coeff_forward_room(shape, threads), keep=row_scales is not None)
    kernel.coeff_forward(
        shape, scale, _view(query), _view(key), _view(value), coeff.data_ptr(), _distance(coeff), _view(mask),
        _view(output), None if row_scales is None else row_scales.data_ptr(), room.data_ptr(), threads,
    )  # fmt: skip
    return output


def _backward(
    kernel: Any, grad: Tensor, query: Tensor, key: Tensor, value: Tensor, coeff: Tensor, mask: Tensor | None,
    row_scales: Tensor, scale: float, needed: Needed,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """The gradients of query, key, value and coeff that are needed."""
    grad, query, key, value = _readable(grad), _readable(query), _readable(key), _readable(value)
    matrices, shape, threads = _matrices(coeff), _shape(query, key, value), torch.get_num_threads()
    grads = [_empty(x, x.shape[3]) if need else None for x, need in zip((query, key, value), needed, strict=False)]
    coeff_grad = query.new_empty(len(query), *coeff.shape[-2:]) if needed[3] else None
    room = _room(kernel.coeff_backward_room(shape, threads), keep=True)
    kernel.coeff_backward(
        shape, scale, _view(grad), _view(query), _view(key), _view(value), matrices.data_ptr(), _distance(matrices),
        _view(mask), row_scales.data_ptr(), *map(_view, grads), None if coeff_grad is None else coeff_grad.data_ptr(),
        room.data_ptr(), threads,
    )  # fmt: skip
    if coeff_grad is not None:
        coeff_grad = (coeff_grad if coeff.ndim == 3 else coeff_grad.sum(0)).to(coeff.dtype)
    return (*grads, coeff_grad)


class _Kept(threading.local):
    """Scratch memory that a thread's training uses again: fresh pages for every layer cost 6 to 9 % of its time."""

    room: Tensor | None = None


_kept = _Kept()


def _room(floats: int, keep: bool) -> Tensor:
    """Scratch memory; sampling gives it back, which other layers' peaks are lower for."""
    if not keep or floats > KEPT_ROOM:
        return torch.empty(floats, dtype=torch.float32, device="cpu")
    if _kept.room is None or len(_kept.room) < floats:
        _kept.room = torch.empty(floats, dtype=torch.float32, device="cpu")
    return _kept.room


def _readable(x: Tensor) -> Tensor:
    """Channels side by side; the other dimensions may lie anyhow."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _added(attn_mask: Tensor, shape: tuple[int, ...]) -> Tensor:
    """What is added to the scores, `[B, H, N, M]`; what the mask repeats is not copied, but for one score of a row."""
    mask = attn_mask
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=torch.float32).masked_fill_(~mask, -torch.inf)
    return _readable(mask.to(torch.float32).expand(*mask.shape[:-1], shape[-1])).expand(shape)


def _matrices(coeff: Tensor) -> Tensor:
    return coeff.to(torch.float32).contiguous()


def _distance(coeff: Tensor) -> int:
    """From one sample's matrix to the next one's."""
    return coeff.stride(0) if coeff.ndim == 3 else 0


def _shape(query: Tensor, key: Tensor, value: Tensor) -> Shape:
    """What the kernel goes by; it would read past the end of tensors that do not fit."""
    batch, heads, queries, channels = query.shape
    if key.shape[:2] != query.shape[:2] or key.shape[3] != channels or value.shape[:3] != key.shape[:3]:
        shapes = ", ".join(str(list(x.shape)) for x in (query, key, value))
        raise ValueError(f"query, key and value do not fit each other: {shapes}")
    return Shape(batch, heads, queries, key.shape[2], channels, value.shape[3])


def _view(x: Tensor | None) -> View:
    return View(None, 0, 0, 0) if x is None else View(x.data_ptr(), *x.stride()[:3])


def _empty(like: Tensor, channels: int) -> Tensor:
    """`[B, H, rows, channels]` over `[B, rows, H, channels]`."""
    batch, heads, rows, _ = like.shape
    return like.new_empty(batch, rows, heads, channels).transpose(1, 2)


@torch.no_grad()
def _check(kernel: ctypes.CDLL) -> None:
    """A compiler can be wrong about a CPU: compute something small and look.

    Raises:
        BuildError: the result is wrong.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.device("cpu"):  # whatever the default may be
        query, key, value = (torch.randn(1, 3, rows, 12, generator=generator) for rows in (37, 45, 45))
        coeff = torch.randn(3, 3, generator=generator)
    actual = _forward(kernel, query, key, value, coeff, None, 0.3, None)
    expected = recombination.recombined_attention(query, key, value, coeff, None, 0.3)
    if not torch.allclose(actual, expected, rtol=TOLERANCE, atol=TOLERANCE):
        raise BuildError("what was compiled computes something else")
