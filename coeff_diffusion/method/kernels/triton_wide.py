"""Recombined attention in Triton, for heads that are few: one map at a time meets the values of all heads of a group.

    out    = sum_j weights[j] * (maps[j] @ values)         values: [M, W], the W = G D channels of G heads side by side
    W[h, j]: a channel of head h is weighted by it

Compared with `triton_kernels`, no maps are mixed, which the tensor cores do not do: a map is a product of D channels,
and its use one of W. So a forward is flash attention H times, with values that are G heads wide, and needs no pass for
the rows' sums before. The backward, with `acc[j] = maps[j] @ values`, from the same pass over the maps:

    mean[j, n]     = sum_c weights[j][c] dout[n, c] acc[j][n, c]
    dW[h, j]       = sum_n sum_(c of h) dout[n, c] acc[j][n, c]
    dmaps[j]       = (dout * weights[j]) @ values^T        over the channels of all heads
    dscores[j]     = maps[j] (dmaps[j] - mean[j])          dquery, dkey and dvalue: as in `triton_kernels`

Every sum has one owner: there are no atomics. A tensor "by groups" is [B, H/G, rows, W]: a view of [B, H, rows, D]
whose heads lie side by side.

Legend: B batch, H heads, N query tokens, M key tokens, D channels per head; a tile has R rows and C columns.
"""

# ruff: noqa: N803 -- the constants of a kernel are capitals, as everywhere in Triton

from typing import no_type_check

import triton
import triton.language as tl

from .triton_maps import (
    inner,
    load_map,
    load_per_query,
    load_scores,
    load_tile,
    load_weight,
    of_head,
    plus_product,
    running_softmax,
    store_stats,
    store_tile,
    zero_tile,
)

# ---- tiles -----------------------------------------------------------------------------------------------------------


@triton.jit
@no_type_check
def _weights(coeff, sample, group, j, H: tl.constexpr, D: tl.constexpr, W: tl.constexpr, W0: tl.constexpr,
             W1: tl.constexpr):  # fmt: skip
    """W[h, j] for every channel of a group's heads h, ([1, W0], [1, W1]); past W of whatever can be read."""
    first = tl.minimum(group * (W // D) + tl.arange(0, W0) // D, H - 1)
    weights = (load_weight(coeff, sample, first, j)[None, :],)
    if W1 > 0:
        second = tl.minimum(group * (W // D) + (W0 + tl.arange(0, W1)) // D, H - 1)
        weights += (load_weight(coeff, sample, second, j)[None, :],)
    return weights


@triton.jit
@no_type_check
def _times(tile, factors, W1: tl.constexpr):
    """tile * factors, each a tile or what is broadcast to one."""
    product = (tile[0] * factors[0],)
    if W1 > 0:
        product += (tile[1] * factors[1],)
    return product


# ---- kernels: axis 0 of the grid is a block of rows, axis 1 a head or a group of heads, axis 2 a sample --------------


@triton.jit
@no_type_check
def wide_kernel(
    a, b, x, stats, coeff, out, mask, rows, columns, scale,
    H: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, MASK: tl.constexpr, KEY_ROWS: tl.constexpr,
    EVEN: tl.constexpr, R: tl.constexpr, C: tl.constexpr, W: tl.constexpr, W0: tl.constexpr, W1: tl.constexpr,
    KEEP: tl.constexpr,
):  # fmt: skip
    """`out = sum_j weights[j] * (maps[j] @ x)` for a group of heads; x and out are by groups.

    a, b, x are query, key, value and out is out, and `stats` are found, and kept if KEEP; or, with KEY_ROWS,
    a, b, x are key, query, dout and out is dvalue, and `stats` are read.
    """
    row, group, sample = tl.program_id(0) * R, tl.program_id(1), tl.program_id(2)
    total = zero_tile(W0, W1, R)
    for j in range(H):
        a_j = load_tile(a, sample, j, row, rows, D, D0, D1, R, EVEN)
        acc = zero_tile(W0, W1, R)
        top = tl.full([R], float("-inf"), tl.float32)
        summed = tl.zeros([R], tl.float32)
        for column in range(0, columns, C):
            b_j = load_tile(b, sample, j, column, columns, D, D0, D1, C, EVEN)
            if KEY_ROWS:
                map_j = load_map(
                    a_j, b_j, stats, mask, sample, j, row, column, rows, columns, scale, D1, MASK, True, EVEN, R, C
                )  # fmt: skip
            else:
                scores = load_scores(
                    a_j, b_j, mask, sample, j, row, column, rows, columns, scale, D1, MASK, False, EVEN, R, C
                )  # fmt: skip
                map_j, top, summed, factor = running_softmax(scores, top, summed, MASK != "none")
                acc = _times(acc, (factor[:, None], factor[:, None]), W1)
            acc = plus_product(acc, map_j, load_tile(x, sample, group, column, columns, W, W0, W1, C, EVEN), W1)
        if not KEY_ROWS:
            norm = tl.where(summed == 0.0, 0.0, 1.0 / tl.where(summed == 0.0, 1.0, summed))[:, None]
            acc = _times(acc, (norm, norm), W1)
            if KEEP:  # noqa: SIM102 -- one is a constant
                if group == 0:
                    store_stats(stats, top, summed, sample, j, row, rows, R)
        acc = _times(acc, _weights(coeff, sample, group, j, H, D, W, W0, W1), W1)
        sums = (total[0] + acc[0],)
        if W1 > 0:
            sums += (total[1] + acc[1],)
        total = sums
    store_tile(out, total, 1.0, sample, group, row, rows, W, W0, W1, R)


@triton.jit
@no_type_check
def shares_kernel(
    query, key, value, dout, stats, coeff, mean, sums, mask, rows, columns, scale,
    H: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, MASK: tl.constexpr, EVEN: tl.constexpr,
    R: tl.constexpr, C: tl.constexpr, W: tl.constexpr, W0: tl.constexpr, W1: tl.constexpr,
):  # fmt: skip
    """The parts of `mean`, [B, H, H/G, N], and of `dW`, `sums` [B, H, N/R, H D], of a group of heads and one map.

    value and dout are by groups.
    """
    block, j, sample = tl.program_id(0), tl.program_id(1) % H, tl.program_id(2)
    row, group = block * R, tl.program_id(1) // H
    q = load_tile(query, sample, j, row, rows, D, D0, D1, R, EVEN)
    acc = zero_tile(W0, W1, R)
    for column in range(0, columns, C):
        k = load_tile(key, sample, j, column, columns, D, D0, D1, C, EVEN)
        map_j = load_map(q, k, stats, mask, sample, j, row, column, rows, columns, scale, D1, MASK, False, EVEN, R, C)
        acc = plus_product(acc, map_j, load_tile(value, sample, group, column, columns, W, W0, W1, C, EVEN), W1)
    acc = _times(acc, load_tile(dout, sample, group, row, rows, W, W0, W1, R, EVEN), W1)
    weights = _weights(coeff, sample, group, j, H, D, W, W0, W1)
    weighted = tl.sum(acc[0] * weights[0], 1)
    first = tl.arange(0, W0)
    pointers = of_head(sums, sample, j) + tl.cast(block, tl.int64) * sums.row + group * W
    tl.store(pointers + first, tl.sum(acc[0], 0), mask=first < W)
    if W1 > 0:
        weighted += tl.sum(acc[1] * weights[1], 1)
        second = W0 + tl.arange(0, W1)
        tl.store(pointers + second, tl.sum(acc[1], 0), mask=second < W)
    r = row + tl.arange(0, R)
    tl.store(of_head(mean, sample, j) + group * mean.row + r, weighted, mask=r < rows)


@triton.jit
@no_type_check
def wide_score_grad_kernel(
    a, b, da, db, stats, mean, coeff, out, mask, rows, columns, scale, out_scale,
    H: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, MASK: tl.constexpr, KEY_ROWS: tl.constexpr,
    EVEN: tl.constexpr, R: tl.constexpr, C: tl.constexpr, W: tl.constexpr, W0: tl.constexpr, W1: tl.constexpr,
):  # fmt: skip
    """`out[j] = out_scale * dscores[j] @ b[j]` for one map j; da and db are by groups, and all heads are one group.

    a, b, da, db are query, key, dout, value and out is dquery; or, with KEY_ROWS, key, query, value, dout and out is
    dkey.
    """
    row, j, sample = tl.program_id(0) * R, tl.program_id(1), tl.program_id(2)
    a_j = load_tile(a, sample, j, row, rows, D, D0, D1, R, EVEN)
    da_rows = load_tile(da, sample, 0, row, rows, W, W0, W1, R, EVEN)
    da_float = _times(da_rows, _weights(coeff, sample, 0, j, H, D, W, W0, W1), W1)
    weighted = (da_float[0].to(da_rows[0].dtype),)
    if W1 > 0:
        weighted += (da_float[1].to(da_rows[0].dtype),)
    total = zero_tile(D0, D1, R)
    for column in range(0, columns, C):
        b_j = load_tile(b, sample, j, column, columns, D, D0, D1, C, EVEN)
        dmap = inner(weighted, load_tile(db, sample, 0, column, columns, W, W0, W1, C, EVEN), W1)
        map_j = load_map(
            a_j, b_j, stats, mask, sample, j, row, column, rows, columns, scale, D1, MASK, KEY_ROWS, EVEN, R, C
        )  # fmt: skip
        mean_j = load_per_query(mean, 0, sample, j, row, column, rows, columns, 0.0, KEY_ROWS, EVEN, R, C)
        total = plus_product(total, map_j * (dmap - mean_j), b_j, D1)
    store_tile(out, total, out_scale, sample, j, row, rows, D, D0, D1, R)
