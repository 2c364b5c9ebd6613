"""Recombined attention on CUDA: what launches the kernels of `triton_kernels`, as one differentiable operator.

Legend: B batch, H heads, N query tokens, M key tokens, D channels per head.
"""

from contextlib import nullcontext
from typing import Any

import torch
import triton
from jaxtyping import Bool, Float
from torch import Tensor

from .triton_kernels import (
    INTERPRETED,
    LOG2_E,
    Heads,
    Mask,
    mix_kernel,
    score_grad_kernel,
    shares_kernel,
    stats_kernel,
)
from .triton_tiles import CONFIGS, STATS_CONFIGS, fitting_here, split_channels, tuned

_stats = tuned(stats_kernel, STATS_CONFIGS)
_mix = tuned(mix_kernel, CONFIGS, fitting_here("mix"))
_shares = tuned(shares_kernel, CONFIGS, fitting_here("shares"))
_score_grad = tuned(score_grad_kernel, CONFIGS, fitting_here("score_grad"))


# ---- launches --------------------------------------------------------------------------------------------------------


def _heads(x: Tensor) -> Heads:
    x = x if x.stride(-1) == 1 else x.contiguous()
    return Heads(x, *x.stride()[:3])


def _mask(mask: Tensor | None, key_rows: bool = False) -> tuple[Mask, str]:
    """A mask [B, H, N, M] for a kernel whose rows are queries, or keys; and the kind of mask."""
    if mask is None:
        return Mask(0, 0, 0, 0, 0), "none"
    batch, head, query, key = mask.stride()
    row, column = (key, query) if key_rows else (query, key)
    if mask.dtype == torch.bool:
        return Mask(mask.view(torch.uint8), batch, head, row, column), "bool"
    return Mask(mask, batch, head, row, column), "bias"


def _empty_like(x: Tensor) -> Tensor:
    """[B, H, rows, D] over [B, rows, H, D]: what joins or splits the heads around attention needs no copy."""
    batch, heads, rows, channels = x.shape
    return x.new_empty(batch, rows, heads, channels).transpose(1, 2)


def _gradients(query: Tensor, key: Tensor, value: Tensor, needed: list[bool]) -> list[Tensor]:
    """Space for those of the three gradients that are needed."""
    inputs = zip((query, key, value), needed[:3], strict=True)
    return [_empty_like(x) if need else x.new_empty(0) for x, need in inputs]


def _launch(
    kernel: Any, query: Tensor, rows: int, columns: int, *arguments: Any, axes: int = 1, **constants: Any
) -> None:
    """Run `kernel` for every block of rows, every sample, and every head, group, or pair of groups (`axes` 0, 1, 2)."""
    batch, heads, _, channels = query.shape
    if batch * heads * rows == 0:
        return
    d0, d1 = split_channels(channels)

    def grid(meta: dict[str, Any]) -> tuple[int, int, int]:
        return triton.cdiv(rows, meta["R"]), triton.cdiv(heads, meta["G"]) ** axes if axes else heads, batch

    # What is timed once: sizes within a factor of two, and the width of the dtype.
    constants["kind"] = (rows.bit_length() << 16) + (columns.bit_length() << 8) + query.element_size()
    with torch.cuda.device(query.device) if query.is_cuda else nullcontext():
        kernel[grid](*arguments, rows=rows, columns=columns, H=heads, D=channels, D0=d0, D1=d1, **constants)


def _forward(
    query: Tensor, key: Tensor, value: Tensor, weight: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """out [B, H, N, D] and stats [B, H, 2, N]. The weight is [B, H, H], the mask [B, H, N, M]."""
    n, m = query.shape[2], key.shape[2]
    out, stats = _forward_shapes(query)
    masked, kind = _mask(mask)
    common: dict[str, Any] = {"mask": masked, "MASK": kind, "scale": scale * LOG2_E}
    q, k, v, w = (_heads(x) for x in (query, key, value, weight))
    _launch(_stats, query, n, m, q, k, _heads(stats), axes=0, **common)
    _launch(_mix, query, n, m, q, k, v, _heads(stats), w, _heads(out), KEY_ROWS=False, **common)
    return out, stats


def _backward(
    dout: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Tensor,
    stats: Tensor,
    mask: Tensor | None,
    scale: float,
    needed: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of query, key, value and weight; an empty tensor for one that is not `needed`."""
    (batch, heads, n, _), m = query.shape, key.shape[2]
    dquery, dkey, dvalue = _gradients(query, key, value, needed)
    dweight = weight.new_empty(weight.shape if needed[3] else 0)
    by_query: dict[str, Any] = {"mask": _mask(mask)[0], "KEY_ROWS": False}
    by_key: dict[str, Any] = {"mask": _mask(mask, key_rows=True)[0], "KEY_ROWS": True}
    common: dict[str, Any] = {"MASK": _mask(mask)[1], "scale": scale * LOG2_E}
    q, k, v, w, do, row_stats = (_heads(x) for x in (query, key, value, weight, dout, stats))
    if needed[2]:
        _launch(_mix, query, m, n, k, q, do, row_stats, w, _heads(dvalue), **by_key, **common)
    if not (needed[0] or needed[1] or needed[3]):
        return dquery, dkey, dvalue, dweight
    shares = stats.new_empty(batch, heads * heads, 1, n)
    _launch(_shares, query, n, m, q, k, v, do, row_stats, _heads(shares), axes=2, mask=by_query["mask"], **common)
    shares = shares.view(batch, heads, heads, n)
    if needed[3]:
        dweight = shares.sum(-1)  # [B, H, H]
    mean = _heads((weight[..., None] * shares).sum(1)[:, :, None])  # [B, H, 1, N]
    if needed[0]:
        arguments = (q, k, do, v, row_stats, mean, w, _heads(dquery))
        _launch(_score_grad, query, n, m, *arguments, out_scale=scale, **by_query, **common)
    if needed[1]:
        arguments = (k, q, v, do, row_stats, mean, w, _heads(dkey))
        _launch(_score_grad, query, m, n, *arguments, out_scale=scale, **by_key, **common)
    return dquery, dkey, dvalue, dweight


# Operators of their own, so that `torch.compile` need not look inside. (`torch.library.custom_op` would import the
# compiler on the first call of every program.)
FORWARD = "coeff_diffusion::triton_attention"
BACKWARD = "coeff_diffusion::triton_attention_backward"
_INPUTS = "Tensor query, Tensor key, Tensor value, Tensor weight"
torch.library.define(FORWARD, f"({_INPUTS}, Tensor? mask, float scale) -> (Tensor, Tensor)")
torch.library.define(
    BACKWARD,
    f"(Tensor dout, {_INPUTS}, Tensor stats, Tensor? mask, float scale, bool[] needed)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
for _device in ("cpu", "cuda"):  # the CPU for the interpreter
    torch.library.impl(FORWARD, _device, _forward)
    torch.library.impl(BACKWARD, _device, _backward)


@torch.library.register_fake(FORWARD)
def _forward_shapes(query: Tensor, *_rest: Any) -> tuple[Tensor, Tensor]:
    batch, heads, n, _ = query.shape
    return _empty_like(query), query.new_empty(batch, heads, 2, n, dtype=torch.float32)


@torch.library.register_fake(BACKWARD)
def _backward_shapes(
    _dout: Tensor, query: Tensor, key: Tensor, value: Tensor, weight: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    dquery, dkey, dvalue = _gradients(query, key, value, rest[-1])
    return dquery, dkey, dvalue, weight.new_empty(weight.shape if rest[-1][3] else 0)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, mask, ctx.scale = inputs
    ctx.save_for_backward(*tensors, output[1], mask)


def _differentiate(ctx: Any, dout: Tensor, _dstats: Tensor) -> tuple[Tensor | None, ...]:
    needed = list(ctx.needs_input_grad[:4])
    *tensors, mask = ctx.saved_tensors
    grads = torch.ops.coeff_diffusion.triton_attention_backward(dout, *tensors, mask, ctx.scale, needed)
    return *(grad if need else None for grad, need in zip(grads, needed, strict=True)), None, None


torch.library.register_autograd(FORWARD, _differentiate, setup_context=_remember)


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
    weight = torch.eye(heads, dtype=torch.float32, device=coeff.device) + coeff.float()
    weight = weight.contiguous().expand(batch, heads, heads)
    mask = None if attn_mask is None else attn_mask.expand(batch, heads, queries, key.shape[2])
    out: Tensor
    out, _ = torch.ops.coeff_diffusion.triton_attention(query, key, value, weight, mask, scale)
    return out
