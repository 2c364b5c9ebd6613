"""Recombined attention as one operator that `torch.compile` takes as it is, without looking into its loops."""

from typing import Any

import torch
from torch import Tensor

from .eager import eager_attention


@torch.library.custom_op("coeff_diffusion::recombined_attention", mutates_args=())
def forward_op(
    query: Tensor, key: Tensor, value: Tensor, coeff: Tensor, attn_mask: Tensor | None, scale: float
) -> Tensor:
    """The operator: what is done outside `torch.compile`."""
    return eager_attention(query, key, value, coeff, attn_mask, scale)


@forward_op.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, coeff: Tensor, attn_mask: Tensor | None, scale: float) -> Tensor:
    batch, heads, queries, _ = query.shape
    return query.new_empty(batch, queries, heads, value.shape[-1]).transpose(1, 2)


@torch.library.custom_op("coeff_diffusion::recombined_attention_backward", mutates_args=())
def backward_op(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, coeff: Tensor, attn_mask: Tensor | None, scale: float,
    needed: list[bool],
) -> list[Tensor]:  # fmt: skip
    """The gradients of query, key, value and coeff; empty tensors for those that are not needed."""
    inputs = [x.detach().requires_grad_(need) for x, need in zip((query, key, value, coeff), needed, strict=True)]
    query, key, value, coeff = inputs
    with torch.enable_grad():
        output = eager_attention(query, key, value, coeff, attn_mask, scale)
    grads = iter(torch.autograd.grad(output, [x for x in inputs if x.requires_grad], grad))
    return [next(grads).contiguous() if need else grad.new_empty(0) for need in needed]  # strides as promised below


@backward_op.register_fake
def _(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, coeff: Tensor, attn_mask: Tensor | None, scale: float,
    needed: list[bool],
) -> list[Tensor]:  # fmt: skip
    inputs = (query, key, value, coeff)
    return [x.new_empty(x.shape) if need else grad.new_empty(0) for x, need in zip(inputs, needed, strict=True)]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _grads(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needed = [bool(need) for need in ctx.needs_input_grad[:4]]
    found = backward_op(grad, *ctx.saved_tensors, ctx.scale, needed)
    return (*(one if need else None for one, need in zip(found, needed, strict=True)), None, None)


forward_op.register_autograd(_grads, setup_context=_save)


def compiled_attention(
    query: Tensor, key: Tensor, value: Tensor, coeff: Tensor, attn_mask: Tensor | None, scale: float | None
) -> Tensor:
    """See `kernels.recombined_attention`."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    output: Tensor = forward_op(query, key, value, coeff, attn_mask, scale)
    return output
