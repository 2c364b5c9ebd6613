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
and G sums [R, C] have to fit into the registers, see `triton_tiles.fitting`.

Legend: B batch, H heads, N query tokens, M key tokens, D channels per head; a tile has R rows and C columns.
"""

# ruff: noqa: N803 -- the constants of a kernel are capitals, as everywhere in Triton

import math
from typing import Any, NamedTuple, no_type_check

import triton
import triton.language as tl

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
def stats_kernel(
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
def mix_kernel(
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
def shares_kernel(
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
def score_grad_kernel(
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
