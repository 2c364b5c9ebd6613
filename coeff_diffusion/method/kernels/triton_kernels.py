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

The shares are found in `triton_wide`, and so is all else for layers of few heads; which way it is, `triton_tiles` says.

**Cost.** Maps of heads outside the group are formed again for every group. Matrix products per head (plain attention:
2 forward, 5 backward): forward `2 + H/G`; backward `1 + H/G` for dvalue, `2 + H/G` for dquery and for dkey. G
accumulators [R, D] and G sums [R, C] have to fit into the registers.

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
    plus_product,
    running_softmax,
    store_stats,
    store_tile,
    zero_tile,
)

# ---- kernels: axis 0 of the grid is a block of rows, axis 1 a head or a group of heads, axis 2 a sample --------------


@triton.jit
@no_type_check
def _zero_tiles(G: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, BLOCK: tl.constexpr):
    """A tile [BLOCK, D] for each of G heads."""
    tiles = ()
    for _ in tl.static_range(G):
        tiles += (zero_tile(D0, D1, BLOCK),)
    return tiles


@triton.jit
@no_type_check
def stats_kernel(
    query, key, stats, mask, rows, columns, scale,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, MASK: tl.constexpr, EVEN: tl.constexpr,
    R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Pass 1: `top` and `norm` of every query, [B, H, 2, N]."""
    row, head, sample = tl.program_id(0) * R, tl.program_id(1), tl.program_id(2)
    q = load_tile(query, sample, head, row, rows, D, D0, D1, R, EVEN)
    top = tl.full([R], float("-inf"), tl.float32)
    total = tl.zeros([R], tl.float32)
    for column in range(0, columns, C):
        k = load_tile(key, sample, head, column, columns, D, D0, D1, C, EVEN)
        scores = load_scores(
            q, k, mask, sample, head, row, column, rows, columns, scale, D1, MASK, False, EVEN, R, C
        )  # fmt: skip
        _, top, total, _ = running_softmax(scores, top, total, MASK != "none")
    store_stats(stats, top, total, sample, head, row, rows, R)


@triton.jit
@no_type_check
def mix_kernel(
    a, b, x, stats, coeff, out, mask, rows, columns, scale,
    H: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, MASK: tl.constexpr, KEY_ROWS: tl.constexpr,
    EVEN: tl.constexpr, R: tl.constexpr, C: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """`out[h] = (sum_j W[h, j] maps[j]) @ x[h]` for a group of heads h.

    a, b, x are query, key, value and out is out; or, with KEY_ROWS, key, query, dout and out is dvalue.
    """
    row, first, sample = tl.program_id(0) * R, tl.program_id(1) * G, tl.program_id(2)
    totals = _zero_tiles(G, D0, D1, R)
    for column in range(0, columns, C):
        mixed = ()
        for _ in tl.static_range(G):
            mixed += (tl.zeros([R, C], tl.float32),)
        for j in range(H):
            a_j = load_tile(a, sample, j, row, rows, D, D0, D1, R, EVEN)
            b_j = load_tile(b, sample, j, column, columns, D, D0, D1, C, EVEN)
            map_j = load_map(
                a_j, b_j, stats, mask, sample, j, row, column, rows, columns, scale, D1, MASK, KEY_ROWS, EVEN, R, C
            )  # fmt: skip
            sums = ()
            for g in tl.static_range(G):
                h = tl.minimum(first + g, H - 1)  # beyond the last head: anything that can be read, never stored
                sums += (mixed[g] + load_weight(coeff, sample, h, j) * map_j,)
            mixed = sums
        sums = ()
        for g in tl.static_range(G):
            x_h = load_tile(x, sample, tl.minimum(first + g, H - 1), column, columns, D, D0, D1, C, EVEN)
            sums += (plus_product(totals[g], mixed[g], x_h, D1),)
        totals = sums
    for g in tl.static_range(G):
        if first + g < H:
            store_tile(out, totals[g], 1.0, sample, first + g, row, rows, D, D0, D1, R)


@triton.jit
@no_type_check
def score_grad_kernel(
    a, b, da, db, stats, mean, coeff, out, mask, rows, columns, scale, out_scale,
    H: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, MASK: tl.constexpr, KEY_ROWS: tl.constexpr,
    EVEN: tl.constexpr, R: tl.constexpr, C: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """`out[j] = out_scale * dscores[j] @ b[j]` for a group of maps j.

    a, b, da, db are query, key, dout, value and out is dquery; or, with KEY_ROWS, key, query, value, dout and out is
    dkey.
    """
    row, first, sample = tl.program_id(0) * R, tl.program_id(1) * G, tl.program_id(2)
    totals = _zero_tiles(G, D0, D1, R)
    for column in range(0, columns, C):
        dmaps = ()
        for _ in tl.static_range(G):
            dmaps += (tl.zeros([R, C], tl.float32),)
        for h in range(H):
            da_h = load_tile(da, sample, h, row, rows, D, D0, D1, R, EVEN)
            db_h = load_tile(db, sample, h, column, columns, D, D0, D1, C, EVEN)
            dmixed = inner(da_h, db_h, D1)
            sums = ()
            for g in tl.static_range(G):
                j = tl.minimum(first + g, H - 1)
                sums += (dmaps[g] + load_weight(coeff, sample, h, j) * dmixed,)
            dmaps = sums
        sums = ()
        for g in tl.static_range(G):
            j = tl.minimum(first + g, H - 1)
            a_j = load_tile(a, sample, j, row, rows, D, D0, D1, R, EVEN)
            b_j = load_tile(b, sample, j, column, columns, D, D0, D1, C, EVEN)
            map_j = load_map(
                a_j, b_j, stats, mask, sample, j, row, column, rows, columns, scale, D1, MASK, KEY_ROWS, EVEN, R, C
            )  # fmt: skip
            mean_j = load_per_query(mean, 0, sample, j, row, column, rows, columns, 0.0, KEY_ROWS, EVEN, R, C)
            sums += (plus_product(totals[g], map_j * (dmaps[g] - mean_j), b_j, D1),)
        totals = sums
    for g in tl.static_range(G):
        if first + g < H:
            store_tile(out, totals[g], out_scale, sample, first + g, row, rows, D, D0, D1, R)
