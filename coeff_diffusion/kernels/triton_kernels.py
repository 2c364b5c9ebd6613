"""Recombined attention in Triton: neither the maps nor any other `[B, H, N, M]` tensor ever exists.

    maps[j] = exp2(scores[j] - top[j]) * norm[j]    scores[j] = (query[j] @ key[j]^T * scale + mask) * log2(e)
    out[h]  = sum_j W[h, j] maps[j] @ value[h]      W = I + coeff

**Forward.** Pass 1 finds every row's largest score `top` and `norm`, the reciprocal of its sum. Pass 2 forms tiles of
the maps again: a program owns a block of queries and a group of G receiving heads, adds up `W[h, j] maps[j]` over all j
in registers (float32), and multiplies the sums with the group's values.

**Backward**, with `dmixed[h] = dout[h] @ value[h]^T`:

    shares[h, j, n] = sum_m dmixed[h][n, m] maps[j][n, m]
    dW[h, j]        = sum_n shares[h, j, n]
    dmaps[j]        = sum_h W[h, j] dmixed[h]
    mean[j, n]      = sum_m maps[j][n, m] dmaps[j][n, m] = sum_h W[h, j] shares[h, j, n]
    dscores[j]      = maps[j] (dmaps[j] - mean[j])
    dquery[j]       = scale * dscores[j] @ key[j]            dkey[j] = scale * dscores[j]^T @ query[j]
    dvalue[h]       = sum_j W[h, j] maps[j]^T @ dout[h]

`mean` is not flash attention's `rowsum(dout * out)`: that is a sum over one head, but a map serves all of them.
`dvalue` is the forward's pass 2 with queries and keys exchanged, `dkey` is the pass for `dquery` with them exchanged.
Every sum has one owner: there are no atomics.

**Cost.** Maps of heads outside the group are formed again for every group. Matrix products per head (plain attention:
2 forward, 5 backward): forward `2 + H/G`; backward `2 H/G` for the shares, `1 + H/G` for dvalue, `2 + H/G` for dquery
and for dkey. With all heads in one group that is 3 and 10, 1.5 and 2 times plain attention; but G accumulators [R, D]
and G sums [R, C] have to fit into the registers, see `fitting`.

Legend: B batch, H heads, N query tokens, M key tokens, D channels per head; a tile has R rows and C columns.
"""

# ruff: noqa: N803 -- the constants of a kernel are capitals, as everywhere in Triton

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Float
from torch import Tensor

if not hasattr(triton, "knobs"):
    raise ImportError(f"needs triton 3.4 or newer (torch 2.8 brings it), but this is {triton.__version__}")
INTERPRETED: bool = triton.knobs.runtime.interpret  # kernels run in NumPy on the CPU: good for tests, for nothing else
LOG2_E = math.log2(math.e)


class Heads(NamedTuple):
    """A tensor [B, H, rows, channels or nothing] as kernels take it: the data, and the strides of all but channels."""

    data: Any
    batch: Any
    head: Any
    row: Any


class Mask(NamedTuple):
    """A mask, [B, H, rows, columns], and its strides: 0 where it is broadcast."""

    data: Any
    batch: Any
    head: Any
    row: Any
    column: Any


# ---- tiles -----------------------------------------------------------------------------------------------------------
# `no_type_check`: these are compiled by Triton from their source, and its types are not Python's.
#
# D channels are D0, a power of two, and the rest, padded to D1, a power of two or 0: 80 = 64 + 16 and 160 = 128 + 32
# instead of 128 and 256. A tile of channels is a tuple: ([rows, D0],) or ([rows, D0], [rows, D1]).


@triton.jit
@no_type_check
def _of_head(x, sample, head):
    return x.data + tl.cast(sample, tl.int64) * x.batch + tl.cast(head, tl.int64) * x.head


@triton.jit
@no_type_check
def _load(x, sample, head, start, size, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, BLOCK: tl.constexpr):
    """Rows `start..` of one head, [BLOCK, D]; zeros from row `size` on."""
    rows = tl.arange(0, BLOCK)[:, None]
    inside = start + rows < size
    pointers = _of_head(x, sample, head) + tl.cast(start, tl.int64) * x.row + rows * x.row
    first = tl.arange(0, D0)[None, :]
    tile = (tl.load(pointers + first, mask=inside & (first < D), other=0.0),)
    if D1 > 0:
        second = D0 + tl.arange(0, D1)[None, :]
        tile += (tl.load(pointers + second, mask=inside & (second < D), other=0.0),)
    return tile


@triton.jit
@no_type_check
def _store(
    x, tile, factor, sample, head, start, size,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`tile * factor` to rows `start..` of one head."""
    rows = tl.arange(0, BLOCK)[:, None]
    inside = start + rows < size
    pointers = _of_head(x, sample, head) + tl.cast(start, tl.int64) * x.row + rows * x.row
    first = tl.arange(0, D0)[None, :]
    tl.store(pointers + first, (tile[0] * factor).to(x.data.dtype.element_ty), mask=inside & (first < D))
    if D1 > 0:
        second = D0 + tl.arange(0, D1)[None, :]
        tl.store(pointers + second, (tile[1] * factor).to(x.data.dtype.element_ty), mask=inside & (second < D))


@triton.jit
@no_type_check
def _load_per_query(
    x, which, sample, head, row, column, rows, columns, other: tl.constexpr,
    KEY_ROWS: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """One number of every query, [R, 1] or, with KEY_ROWS, [1, C]; x is [B, H, whiches, N]."""
    pointers = _of_head(x, sample, head) + which * x.row
    if KEY_ROWS:
        c = column + tl.arange(0, C)[None, :]
        numbers = tl.load(pointers + c, mask=c < columns, other=other)
    else:
        r = row + tl.arange(0, R)[:, None]
        numbers = tl.load(pointers + r, mask=r < rows, other=other)
    return numbers


@triton.jit
@no_type_check
def _zeros(G: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, BLOCK: tl.constexpr):
    """A tile [BLOCK, D] for each of G heads."""
    tiles = ()
    for _ in tl.static_range(G):
        tile = (tl.zeros([BLOCK, D0], tl.float32),)
        if D1 > 0:
            tile += (tl.zeros([BLOCK, D1], tl.float32),)
        tiles += (tile,)
    return tiles


@triton.jit
@no_type_check
def _inner(a, b, D1: tl.constexpr):
    """a @ b^T: [R, D], [C, D] -> [R, C]"""
    product = tl.dot(a[0], tl.trans(b[0]), input_precision="ieee")
    if D1 > 0:
        product = tl.dot(a[1], tl.trans(b[1]), product, input_precision="ieee")
    return product


@triton.jit
@no_type_check
def _plus_product(tile, weights, x, D1: tl.constexpr):
    """tile + weights @ x: [R, D], [R, C], [C, D] -> [R, D]"""
    weights = weights.to(x[0].dtype)
    total = (tl.dot(weights, x[0], tile[0], input_precision="ieee"),)
    if D1 > 0:
        total += (tl.dot(weights, x[1], tile[1], input_precision="ieee"),)
    return total


@triton.jit
@no_type_check
def _scores(
    a, b, mask, sample, head, row, column, rows, columns, scale,
    D1: tl.constexpr, MASK: tl.constexpr, KEY_ROWS: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Scores to base 2, [R, C], of the rows `row..` and the columns `column..`; -inf where nothing may be attended to.

    KEY_ROWS: rows are keys and columns are queries, instead of the other way round.
    """
    r = row + tl.arange(0, R)[:, None]
    c = column + tl.arange(0, C)[None, :]
    scores = _inner(a, b, D1) * scale
    allowed = r < rows if KEY_ROWS else c < columns
    if MASK != "none":
        cells = tl.cast(r, tl.int64) * mask.row + tl.cast(c, tl.int64) * mask.column
        bias = tl.load(_of_head(mask, sample, head) + cells, mask=(r < rows) & (c < columns), other=0)
        if MASK == "bool":
            allowed = allowed & (bias != 0)
        else:
            bias = bias.to(tl.float32)
            allowed = allowed & (bias != float("-inf"))
            scores += tl.maximum(bias, -1e38) * 1.4426950408889634  # the lowest float32 must not turn into -inf
    return tl.where(allowed, scores, float("-inf"))


@triton.jit
@no_type_check
def _map(
    a, b, stats, mask, sample, head, row, column, rows, columns, scale,
    D1: tl.constexpr, MASK: tl.constexpr, KEY_ROWS: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """A tile of one head's map, [R, C]; zero outside of it, and for a query that may attend to nothing."""
    scores = _scores(a, b, mask, sample, head, row, column, rows, columns, scale, D1, MASK, KEY_ROWS, R, C)
    top = _load_per_query(stats, 0, sample, head, row, column, rows, columns, float("inf"), KEY_ROWS, R, C)
    norm = _load_per_query(stats, 1, sample, head, row, column, rows, columns, 0.0, KEY_ROWS, R, C)
    return tl.exp2(scores - top) * norm


# ---- kernels: axis 0 of the grid is a block of rows, axis 1 a head or a group of heads, axis 2 a sample --------------


@triton.jit(do_not_specialize=["kind"])
@no_type_check
def _stats_kernel(
    query, key, stats, mask, rows, columns, scale, kind,
    H: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, MASK: tl.constexpr,
    R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Pass 1: `top` and `norm` of every query, [B, H, 2, N]; +inf and 0, which give zeros, if all scores are -inf."""
    row, head, sample = tl.program_id(0) * R, tl.program_id(1), tl.program_id(2)
    q = _load(query, sample, head, row, rows, D, D0, D1, R)
    top = tl.full([R], float("-inf"), tl.float32)
    total = tl.zeros([R], tl.float32)
    for column in range(0, columns, C):
        k = _load(key, sample, head, column, columns, D, D0, D1, C)
        scores = _scores(q, k, mask, sample, head, row, column, rows, columns, scale, D1, MASK, False, R, C)
        new_top = tl.maximum(top, tl.max(scores, 1))
        shift = tl.where(new_top == float("-inf"), 0.0, new_top)  # -inf minus -inf would be NaN
        total = total * tl.exp2(top - shift) + tl.sum(tl.exp2(scores - shift[:, None]), 1)
        top = new_top
    blind = total == 0.0
    r = row + tl.arange(0, R)
    pointers = _of_head(stats, sample, head) + r
    tl.store(pointers, tl.where(blind, float("inf"), top), mask=r < rows)
    tl.store(pointers + stats.row, tl.where(blind, 0.0, 1.0 / tl.where(blind, 1.0, total)), mask=r < rows)


@triton.jit(do_not_specialize=["kind"])
@no_type_check
def _mix_kernel(
    a, b, x, stats, weight, out, mask, rows, columns, scale, kind,
    H: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, MASK: tl.constexpr, KEY_ROWS: tl.constexpr,
    R: tl.constexpr, C: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """`out[h] = (sum_j W[h, j] maps[j]) @ x[h]` for a group of heads h.

    a, b, x are query, key, value and out is out; or, with KEY_ROWS, key, query, dout and out is dvalue.
    """
    row, first, sample = tl.program_id(0) * R, tl.program_id(1) * G, tl.program_id(2)
    totals = _zeros(G, D0, D1, R)
    for column in range(0, columns, C):
        mixed = ()
        for _ in tl.static_range(G):
            mixed += (tl.zeros([R, C], tl.float32),)
        for j in range(H):
            a_j = _load(a, sample, j, row, rows, D, D0, D1, R)
            b_j = _load(b, sample, j, column, columns, D, D0, D1, C)
            map_j = _map(
                a_j, b_j, stats, mask, sample, j, row, column, rows, columns, scale, D1, MASK, KEY_ROWS, R, C
            )  # fmt: skip
            sums = ()
            for g in tl.static_range(G):
                h = tl.minimum(first + g, H - 1)  # beyond the last head: anything that can be read, never stored
                sums += (mixed[g] + tl.load(_of_head(weight, sample, h) + j) * map_j,)
            mixed = sums
        sums = ()
        for g in tl.static_range(G):
            x_h = _load(x, sample, tl.minimum(first + g, H - 1), column, columns, D, D0, D1, C)
            sums += (_plus_product(totals[g], mixed[g], x_h, D1),)
        totals = sums
    for g in tl.static_range(G):
        if first + g < H:
            _store(out, totals[g], 1.0, sample, first + g, row, rows, D, D0, D1, R)


@triton.jit(do_not_specialize=["kind"])
@no_type_check
def _shares_kernel(
    query, key, value, dout, stats, shares, mask, rows, columns, scale, kind,
    H: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, MASK: tl.constexpr,
    R: tl.constexpr, C: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """`shares[h, j, n] = sum_m (dout[h] @ value[h]^T)[n, m] maps[j][n, m]` for a group of h and a group of j.

    shares: [B, H*H, 1, N]
    """
    groups: tl.constexpr = (H + G - 1) // G
    row, sample = tl.program_id(0) * R, tl.program_id(2)
    first_h, first_j = tl.program_id(1) // groups * G, tl.program_id(1) % groups * G
    totals = ()
    for _ in tl.static_range(G * G):
        totals += (tl.zeros([R], tl.float32),)
    for column in range(0, columns, C):
        maps = ()
        for g in tl.static_range(G):
            j = tl.minimum(first_j + g, H - 1)
            q = _load(query, sample, j, row, rows, D, D0, D1, R)
            k = _load(key, sample, j, column, columns, D, D0, D1, C)
            maps += (
                _map(q, k, stats, mask, sample, j, row, column, rows, columns, scale, D1, MASK, False, R, C),
            )  # fmt: skip
        sums = ()
        for g in tl.static_range(G):
            h = tl.minimum(first_h + g, H - 1)
            do = _load(dout, sample, h, row, rows, D, D0, D1, R)
            v = _load(value, sample, h, column, columns, D, D0, D1, C)
            dmixed = _inner(do, v, D1)
            for i in tl.static_range(G):
                sums += (totals[g * G + i] + tl.sum(dmixed * maps[i], 1),)
        totals = sums
    r = row + tl.arange(0, R)
    for g in tl.static_range(G):
        for i in tl.static_range(G):
            if (first_h + g < H) & (first_j + i < H):
                pair = (first_h + g) * H + first_j + i
                tl.store(_of_head(shares, sample, pair) + r, totals[g * G + i], mask=r < rows)


@triton.jit(do_not_specialize=["kind"])
@no_type_check
def _score_grad_kernel(
    a, b, da, db, stats, mean, weight, out, mask, rows, columns, scale, out_scale, kind,
    H: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, MASK: tl.constexpr, KEY_ROWS: tl.constexpr,
    R: tl.constexpr, C: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """`out[j] = out_scale * dscores[j] @ b[j]` for a group of maps j.

    a, b, da, db are query, key, dout, value and out is dquery; or, with KEY_ROWS, key, query, value, dout and out is
    dkey.
    """
    row, first, sample = tl.program_id(0) * R, tl.program_id(1) * G, tl.program_id(2)
    totals = _zeros(G, D0, D1, R)
    for column in range(0, columns, C):
        dmaps = ()
        for _ in tl.static_range(G):
            dmaps += (tl.zeros([R, C], tl.float32),)
        for h in range(H):
            da_h = _load(da, sample, h, row, rows, D, D0, D1, R)
            db_h = _load(db, sample, h, column, columns, D, D0, D1, C)
            dmixed = _inner(da_h, db_h, D1)
            sums = ()
            for g in tl.static_range(G):
                j = tl.minimum(first + g, H - 1)
                sums += (dmaps[g] + tl.load(_of_head(weight, sample, h) + j) * dmixed,)
            dmaps = sums
        sums = ()
        for g in tl.static_range(G):
            j = tl.minimum(first + g, H - 1)
            a_j = _load(a, sample, j, row, rows, D, D0, D1, R)
            b_j = _load(b, sample, j, column, columns, D, D0, D1, C)
            map_j = _map(
                a_j, b_j, stats, mask, sample, j, row, column, rows, columns, scale, D1, MASK, KEY_ROWS, R, C
            )  # fmt: skip
            mean_j = _load_per_query(mean, 0, sample, j, row, column, rows, columns, 0.0, KEY_ROWS, R, C)
            sums += (_plus_product(totals[g], map_j * (dmaps[g] - mean_j), b_j, D1),)
        totals = sums
    for g in tl.static_range(G):
        if first + g < H:
            _store(out, totals[g], out_scale, sample, first + g, row, rows, D, D0, D1, R)


# ---- choosing tiles --------------------------------------------------------------------------------------------------


def split_channels(channels: int) -> tuple[int, int]:
    """(D0, D1) for D channels: powers of two of at least 16, the least a tensor core takes; D1 may be 0."""
    first = max(16, 1 << (channels.bit_length() - 1))
    rest = channels - first
    return first, max(16, triton.next_power_of_2(rest)) if rest > 0 else 0


def registers(config: triton.Config, channels: int, itemsize: int, kernel: str) -> int:
    """About how many registers a thread needs: from about 220 on the compiler spills some of them to memory."""
    rows, columns, group = (config.kwargs[name] for name in ("R", "C", "G"))
    operands = channels * itemsize // 2  # of one product
    if kernel == "shares":
        return rows * ((group + 2) * columns + 2 * operands) // (32 * config.num_warps) + 2 * group**2
    return rows * (group * (channels + columns) + 2 * columns + operands) // (32 * config.num_warps)


def shared_memory(config: triton.Config, channels: int, itemsize: int, kernel: str) -> int:
    """About how many bytes a program needs: operands of the group, and those on their way."""
    rows, columns, group = (config.kwargs[name] for name in ("R", "C", "G"))
    stages = config.num_stages
    tiles = {
        "mix": stages * (rows + columns) + group * columns,
        "shares": 2 * group * (rows + stages * columns),
        "score_grad": group * rows + stages * (rows + columns),
    }
    return tiles[kernel] * channels * itemsize + 8192


def fitting(kernel: str, heads: int, channels: int, itemsize: int, major: int, memory: int) -> list[triton.Config]:
    """The few configs worth timing for a layer: those with the largest groups that fit.

    Args:
        kernel: "mix", "shares" or "score_grad".
        heads: H.
        channels: D as padded, D0 + D1.
        itemsize: of the inputs, in bytes.
        major: of the device's compute capability.
        memory: shared memory that a program may have, in bytes.
    """
    splits_columns = major in (9, 10) or itemsize == 4  # warps can share the 16 rows of a product
    limit = 220 if itemsize == 2 else 130  # float32 products run outside of the tensor cores and need more
    fits = [
        config
        for config in CONFIGS
        if config.kwargs["G"] == triton.cdiv(heads, triton.cdiv(heads, config.kwargs["G"]))  # groups of like size
        and (splits_columns or config.kwargs["R"] >= 16 * config.num_warps)
        and registers(config, channels, itemsize, kernel) <= limit
        and shared_memory(config, channels, itemsize, kernel) <= memory
    ]
    return sorted(fits, key=lambda config: -config.kwargs["G"])[:5] or [SMALLEST]


def _fitting_here(kernel: str) -> Callable[..., list[triton.Config]]:
    def prune(_configs: Any, arguments: dict[str, Any], **constants: Any) -> list[triton.Config]:
        data = next(iter(arguments.values())).data  # of the first operand
        major, _ = torch.cuda.get_device_capability(data.device)
        memory = triton.runtime.driver.active.utils.get_device_properties(data.device.index)["max_shared_mem"]
        return fitting(kernel, constants["H"], constants["D0"] + constants["D1"], data.element_size(), major, memory)

    return prune


STATS_CONFIGS = [triton.Config({"R": rows, "C": 64}, num_warps=rows // 16, num_stages=2) for rows in (64, 128)]
CONFIGS = [
    triton.Config({"R": rows, "C": columns, "G": group}, num_warps=warps, num_stages=2)
    for group in range(1, 11)
    for rows, columns, warps in ((64, 32, 8), (64, 32, 4), (64, 16, 4), (128, 32, 8), (32, 32, 2))
]
SMALLEST = triton.Config({"R": 16, "C": 16, "G": 1}, num_warps=2, num_stages=1)  # always fits


def _tuned(kernel: Any, configs: list[triton.Config], prune: Any = None) -> Any:
    """`kernel`, which times its configs on the first layer of a kind and remembers the best, also on disk."""
    key = [name for name in ("H", "D", "MASK", "KEY_ROWS", "kind") if name in kernel.arg_names]
    if INTERPRETED:
        sizes = {"R": 32, "C": 64, "G": 3}
        configs = [triton.Config({name: size for name, size in sizes.items() if name in kernel.arg_names})]
    prune_by = {"early_config_prune": prune} if prune else None
    return triton.autotune(configs, key, prune_configs_by=prune_by, cache_results=True)(kernel)


_stats = _tuned(_stats_kernel, STATS_CONFIGS)
_mix = _tuned(_mix_kernel, CONFIGS, _fitting_here("mix"))
_shares = _tuned(_shares_kernel, CONFIGS, _fitting_here("shares"))
_score_grad = _tuned(_score_grad_kernel, CONFIGS, _fitting_here("score_grad"))


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
