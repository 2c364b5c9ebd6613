"""Recombined attention in blocks of queries, wherever there is no kernel of its own.

A block's maps live in buffers that every block uses again. The backward computes them again, block by block, so
training holds nothing but the inputs, and a tensor of all maps never exists.

The work of a block is split so that a core keeps what it has written: buffers are group-major, `[G, H, n, M]`, and a
group (a sample, or a part of its queries) is one thread's through all four steps. Splitting each step by itself makes
the cores fetch each other's maps, which costs more than the mixing.

Legend: B samples, H heads, N queries, M keys, D channels per head; T groups of queries in a sample, G = B * T groups,
n queries of a group in a block. Buffers keep G and H in one dimension where a product wants it so.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Entries of one head's map in a block, and in the part of it that is mixed at once: larger blocks read the keys and
# values less often, smaller parts stay in a core's own cache. Measured with 8 heads on cores of 1 MB.
BLOCK_MAP = 256 * 1024
MIXED_MAP = 32 * 1024


def blocked_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    coeff: Tensor,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """See `kernels.recombined_attention`; differentiable once in query, key, value and coeff."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value, coeff)):
        output: Tensor = BlockedAttention.apply(query, key, value, coeff, attn_mask, scale)
        return output
    return forward_in_blocks(query, key, value, coeff, attn_mask, scale)


class BlockedAttention(torch.autograd.Function):
    """Saves the inputs alone; the maps are computed again on the way back."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, coeff: Tensor, attn_mask: Tensor | None, scale: float
    ) -> Tensor:
        ctx.save_for_backward(query, key, value, coeff, attn_mask)
        ctx.scale = scale
        return forward_in_blocks(query, key, value, coeff, attn_mask, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, coeff, attn_mask = ctx.saved_tensors
        needed = ctx.needs_input_grad[:4]
        return (*backward_in_blocks(grad, query, key, value, coeff, attn_mask, ctx.scale, needed), None, None)


@dataclass(frozen=True)
class Plan:
    """How the work of one call is cut."""

    groups: int  # T
    queries: int  # of a group, N / T
    block: int  # most queries of a group in a block
    part: int  # most queries of a block whose maps are mixed at once

    @classmethod
    def of(cls, query: Tensor, key: Tensor) -> "Plan":
        (batch, _, queries, _), keys = query.shape, key.shape[2]
        block = max(16, BLOCK_MAP // keys)
        groups = 1
        if query.device.type == "cpu" and batch < torch.get_num_threads() and queries > block:
            groups = max(t for t in range(1, torch.get_num_threads() // batch + 1) if queries % t == 0)
        block = min(block, queries // groups)
        return cls(groups, queries // groups, block, min(block, max(4, MIXED_MAP // keys)))

    def blocks(self) -> Iterator[slice]:
        """The queries of each block, within a group."""
        for start in range(0, self.queries, self.block):
            yield slice(start, min(start + self.block, self.queries))

    def split(self, x: Tensor, dtype: torch.dtype, scale: float = 1) -> Tensor:
        """A copy of queries `[B, H, N, D]`, scaled, as `[G * H, N / T, D]`."""
        grouped = x.unflatten(2, (self.groups, self.queries)).transpose(1, 2).to(dtype)
        scaled = torch.mul(grouped, scale, out=x.new_empty(grouped.shape, dtype=dtype))
        return scaled.view(-1, self.queries, x.shape[3])

    def shared(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Keys or values `[B, H, M, D]` for each group, `[G * H, M, D]`."""
        return x.to(dtype).unsqueeze(1).expand(-1, self.groups, -1, -1, -1).reshape(-1, *x.shape[2:]).contiguous()

    def joined(self, x: Tensor, batch: int) -> Tensor:
        """What `split` did to queries, undone: `[G * H, N / T, D]` as `[B, H, N, D]`."""
        return x.view(batch, self.groups, -1, *x.shape[1:]).transpose(1, 2).flatten(2, 3)

    def summed(self, x: Tensor, batch: int) -> Tensor:
        """Gradients of keys or values of all groups, `[G * H, M, D]`, as those of the samples, `[B, H, M, D]`."""
        return x.unflatten(0, (batch, self.groups, -1)).sum(1)

    def mask(self, attn_mask: Tensor | None, shape: tuple[int, int, int, int]) -> "Mask | None":
        """The mask for maps `[B, H, N, M]`."""
        return None if attn_mask is None else Mask.of(attn_mask, self, shape)


@dataclass(frozen=True)
class Mask:
    """What is added to the scores, and the queries that may attend to nothing: their maps are zero.

    Attributes:
        added: `[B, T, H, N / T, M]`, a view of what was given.
        blind: `[B, T, H, N / T, 1]`; None where there is no such query.
    """

    added: Tensor
    blind: Tensor | None

    @classmethod
    def of(cls, attn_mask: Tensor, plan: Plan, shape: tuple[int, int, int, int]) -> "Mask":
        added = attn_mask
        if attn_mask.dtype == torch.bool:
            added = torch.zeros_like(attn_mask, dtype=torch.float32).masked_fill_(~attn_mask, -torch.inf)
        blind = (added == -torch.inf).all(-1, keepdim=True)
        added = torch.where(blind, 0, added)

        def grouped(x: Tensor) -> Tensor:
            return x.expand(*shape[:3], -1).unflatten(2, (plan.groups, plan.queries)).transpose(1, 2)

        return cls(grouped(added.expand(*added.shape[:-1], shape[3])), grouped(blind) if bool(blind.any()) else None)

    def add_to(self, scores: Tensor, rows: slice) -> None:
        """Add to the scores of a block, `[G * H, n, M]`, in place."""
        part = self.added[..., rows, :]
        scores.view(part.shape).add_(part)

    def clear(self, maps: Tensor, rows: slice) -> None:
        """Set the maps of queries that may attend to nothing to zero, in place."""
        if self.blind is not None:
            part = self.blind[..., rows, :]
            maps.view(*part.shape[:-1], -1).masked_fill_(part, 0)


def _maps(query: Tensor, key: Tensor, mask: Mask | None, rows: slice, out: Tensor) -> None:
    """The softmax maps of a block, `[G * H, n, M]`, into `out`; the query is scaled already."""
    torch.bmm(query[:, rows], key.mT, out=out)
    if mask is not None:
        mask.add_to(out, rows)
    torch.softmax(out, -1, out=out)
    if mask is not None:
        mask.clear(out, rows)


class Mixer:
    """Recombines the maps of a block; in place a few queries at a time, through a small buffer.

    Args:
        weight: `[G, H, H]`.
        like: decides about dtype and device of the buffer.
    """

    def __init__(self, weight: Tensor, plan: Plan, keys: int, like: Tensor) -> None:
        self.weight, self.part, self.keys, self.like = weight, plan.part, keys, like

    def __call__(self, maps: Tensor, out: Tensor, transposed: bool = False) -> None:
        """`out[h] = sum_j weight[h, j] maps[j]` (or `weight[j, h]`); both `[G * H, n, M]`, and `out` may be `maps`."""
        weight = self.weight.mT if transposed else self.weight
        groups, heads, _ = weight.shape
        maps, out = (x.view(groups, heads, *x.shape[1:]) for x in (maps, out))
        if maps.data_ptr() != out.data_ptr() and maps.dtype == out.dtype:
            torch.bmm(weight, maps.flatten(2), out=out.flatten(2))
            return
        for start in range(0, maps.shape[2], self.part):
            source, target = (x[:, :, start : start + self.part].flatten(2) for x in (maps, out))
            mixed = self.room[: source.numel()].view(source.shape)
            torch.bmm(weight, source, out=mixed)
            target.copy_(mixed)

    @cached_property
    def room(self) -> Tensor:
        """For the parts that are mixed in place."""
        return self.like.new_empty(self.weight.shape[0] * self.weight.shape[1] * self.part * self.keys)


@torch.no_grad()
def forward_in_blocks(
    query: Tensor, key: Tensor, value: Tensor, coeff: Tensor, attn_mask: Tensor | None, scale: float
) -> Tensor:
    """The output, `[B, H, N, Dv]`, laid out as `[B, N, H, Dv]` in memory: joining the heads costs nothing."""
    (batch, heads, queries, _), keys, channels = query.shape, key.shape[2], value.shape[-1]
    dtype = torch.promote_types(query.dtype, torch.float32)
    # As PyTorch's own attention does, maps meet the values in bfloat16 where those are; scores and mixing stay float32.
    # A CPU is slower in float16 than in float32, so that is not used at all.
    narrow = torch.bfloat16 if value.dtype == torch.bfloat16 else dtype
    plan = Plan.of(query, key)
    with torch.autocast(query.device.type, enabled=False):  # which would round the products
        q, k, v = plan.split(query, dtype, scale), plan.shared(key, dtype), plan.shared(value, narrow)
        mask = plan.mask(attn_mask, (batch, heads, queries, keys))
        mix = Mixer(_weights(coeff, batch, plan.groups, dtype), plan, keys, q)
        size = len(q) * plan.block * keys
        room = q.new_empty(size)
        mixed_room = room if narrow == dtype else q.new_empty(size, dtype=narrow)
        out_room = v.new_empty(len(q) * plan.block * channels)
        result = query.new_empty(batch, queries, heads, channels)
        target = result.view(batch, plan.groups, plan.queries, heads, channels).permute(0, 1, 3, 4, 2)
        for block in plan.blocks():
            maps = _view(room, len(q), block, keys)
            mixed = _view(mixed_room, len(q), block, keys)
            output = _view(out_room, len(q), block, channels).view(len(q), channels, -1)
            _maps(q, k, mask, block, maps)
            mix(maps, mixed)
            torch.bmm(v.mT, mixed.mT, out=output)  # [G * H, Dv, n]: this way round is faster
            target[..., block].copy_(output.view(batch, plan.groups, heads, channels, -1))
    return result.transpose(1, 2)


@torch.no_grad()
def backward_in_blocks(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    coeff: Tensor,
    attn_mask: Tensor | None,
    scale: float,
    needed: tuple[bool, bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of query, key, value and coeff that are needed.

    With A the maps, W = I + coeff, dO the gradient of the output:

        dW[h, j] = sum dM[h] * A[j]        dM[h] = dO[h] V[h]^T        dV[h] = (sum_j W[h, j] A[j])^T dO[h]
        dS[j]    = A[j] * (dA[j] - rowsum(dA[j] * A[j]))               dA[j] = sum_h W[h, j] dM[h]

    and from the scores' gradient dS to query and key as ever. The row sum is that of the maps themselves: flash
    attention's shortcut, rowsum(dO * O), holds only where a head uses its own map.
    """
    (batch, heads, queries, _), keys = query.shape, key.shape[2]
    query_needed, key_needed, value_needed, coeff_needed = needed
    dtype = torch.promote_types(query.dtype, torch.float32)
    plan = Plan.of(query, key)
    with torch.autocast(query.device.type, enabled=False):
        q, k, v = plan.split(query, dtype, scale), plan.shared(key, dtype), plan.shared(value, dtype)
        d_out = plan.split(grad, dtype)
        weight, mask = _weights(coeff, batch, plan.groups, dtype), plan.mask(attn_mask, (batch, heads, queries, keys))
        mix = Mixer(weight, plan, keys, q)
        rooms = [q.new_empty(len(q) * plan.block * keys) for _ in range(2)]
        row_room = q.new_empty(len(q) * plan.block * q.shape[-1])
        d_query = torch.empty_like(q) if query_needed else None
        d_key = torch.zeros_like(k.mT, memory_format=torch.contiguous_format) if key_needed else None  # [G * H, D, M]
        d_value = torch.zeros_like(v.mT, memory_format=torch.contiguous_format) if value_needed else None
        d_weight = torch.zeros_like(weight) if coeff_needed else None
        for block in plan.blocks():
            maps, d_maps = (_view(room, len(q), block, keys) for room in rooms)
            _maps(q, k, mask, block, maps)
            torch.bmm(d_out[:, block], v.mT, out=d_maps)  # dM
            if d_weight is not None:
                d_weight.baddbmm_(_by_group(d_maps, len(weight)), _by_group(maps, len(weight)).mT)
            if d_query is not None or d_key is not None:
                mix(d_maps, d_maps, transposed=True)  # dA
                d_scores = torch.ops.aten._softmax_backward_data.out(d_maps, maps, -1, dtype, grad_input=d_maps)
                if d_query is not None:
                    rows = _view(row_room, len(q), block, q.shape[-1]).view(len(q), q.shape[-1], -1)
                    d_query[:, block].copy_(torch.bmm(k.mT, d_scores.mT, out=rows).mT)  # the faster way round
                if d_key is not None:
                    d_key.baddbmm_(q[:, block].mT, d_scores)
            if d_value is not None:
                mix(maps, maps)
                d_value.baddbmm_(d_out[:, block].mT, maps)
    return (
        None if d_query is None else plan.joined(d_query, batch).mul_(scale).to(query.dtype),
        None if d_key is None else plan.summed(d_key.mT, batch).to(key.dtype),
        None if d_value is None else plan.summed(d_value.mT, batch).to(value.dtype),
        None if d_weight is None else _summed(d_weight, coeff, plan.groups),
    )


def _view(buffer: Tensor, rows: int, block: slice, columns: int) -> Tensor:
    """The beginning of a buffer as `[G * H, n, columns]`."""
    size = block.stop - block.start
    return buffer[: rows * size * columns].view(rows, size, columns)


def _by_group(x: Tensor, groups: int) -> Tensor:
    """`[G * H, n, M]` as `[G, H, n * M]`."""
    return x.view(groups, -1, x.shape[1] * x.shape[2])


def _weights(coeff: Tensor, batch: int, groups: int, dtype: torch.dtype) -> Tensor:
    """`I + coeff` for each group, `[G, H, H]`."""
    weight = torch.eye(coeff.shape[-1], dtype=dtype, device=coeff.device) + coeff.to(dtype)
    weight = weight.expand(batch, -1, -1)
    return weight if groups == 1 else weight.repeat_interleave(groups, 0)


def _summed(d_weight: Tensor, coeff: Tensor, groups: int) -> Tensor:
    """The gradient of all groups, `[G, H, H]`, as that of `coeff`, `[H, H]` or `[B, H, H]`."""
    total = d_weight.sum(0) if coeff.ndim == 2 else d_weight.unflatten(0, (-1, groups)).sum(1)
    return total.to(coeff.dtype)
