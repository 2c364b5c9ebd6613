"""What the Triton kernels of recombined attention are made of: tiles of heads, of maps, and their products.

Legend: B batch, H heads, N query tokens, M key tokens, D channels per head; a tile has R rows and C columns.
"""

# ruff: noqa: N803 -- the constants of a kernel are capitals, as everywhere in Triton

from typing import Any, NamedTuple, no_type_check

import triton
import triton.language as tl

if not hasattr(triton, "knobs"):
    raise ImportError(f"needs triton 3.4 or newer (torch 2.8 brings it), but this is {triton.__version__}")
INTERPRETED: bool = triton.knobs.runtime.interpret  # kernels run in NumPy on the CPU: good for tests, for nothing else


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


class Coefficients(NamedTuple):
    """The coefficients, [B, H, H] without the identity, and their strides; `batch` is 0 where there is one matrix."""

    data: Any
    batch: Any
    head: Any  # that receives
    map: Any  # that is used


# ---- tiles -----------------------------------------------------------------------------------------------------------
# `no_type_check`: these are compiled by Triton from their source, and its types are not Python's.
#
# D channels are D0, a power of two, and the rest, padded to D1, a power of two or 0: 80 = 64 + 16 and 160 = 128 + 32
# instead of 128 and 256. A tile of channels is a tuple: ([rows, D0],) or ([rows, D0], [rows, D1]).
#
# EVEN: rows and columns are whole blocks, so that nothing has to be masked for their sake.


@triton.jit
@no_type_check
def of_head(x, sample, head):
    return x.data + tl.cast(sample, tl.int64) * x.batch + tl.cast(head, tl.int64) * x.head


@triton.jit
@no_type_check
def _load_part(start, offsets, inside, D: tl.constexpr, FIRST: tl.constexpr, WIDTH: tl.constexpr, EVEN: tl.constexpr):
    """Channels FIRST.. of a block of rows, [BLOCK, WIDTH]; zeros from channel D on and where a row is not `inside`."""
    channels = FIRST + tl.arange(0, WIDTH)[None, :]
    pointers = start + (offsets + channels)  # one address and 32 bits for each element: half the registers
    if FIRST + WIDTH <= D:
        part = tl.load(pointers) if EVEN else tl.load(pointers, mask=inside, other=0.0)
    else:
        part = tl.load(pointers, mask=inside & (channels < D), other=0.0)
    return part


@triton.jit
@no_type_check
def load_tile(
    x, sample, head, start, size,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, BLOCK: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Rows `start..` of one head, [BLOCK, D]; zeros from row `size` on."""
    rows = tl.arange(0, BLOCK)[:, None]
    inside = start + rows < size
    first_row = of_head(x, sample, head) + tl.cast(start, tl.int64) * x.row
    tile = (_load_part(first_row, rows * x.row, inside, D, 0, D0, EVEN),)
    if D1 > 0:
        tile += (_load_part(first_row, rows * x.row, inside, D, D0, D1, EVEN),)
    return tile


@triton.jit
@no_type_check
def store_tile(
    x, tile, factor, sample, head, start, size,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`tile * factor` to rows `start..` of one head."""
    rows = tl.arange(0, BLOCK)[:, None]
    inside = start + rows < size
    pointers = of_head(x, sample, head) + tl.cast(start, tl.int64) * x.row + rows * x.row
    first = tl.arange(0, D0)[None, :]
    tl.store(pointers + first, (tile[0] * factor).to(x.data.dtype.element_ty), mask=inside & (first < D))
    if D1 > 0:
        second = D0 + tl.arange(0, D1)[None, :]
        tl.store(pointers + second, (tile[1] * factor).to(x.data.dtype.element_ty), mask=inside & (second < D))


@triton.jit
@no_type_check
def load_per_query(
    x, which, sample, head, row, column, rows, columns, other: tl.constexpr,
    KEY_ROWS: tl.constexpr, EVEN: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """One number of every query, [R, 1] or, with KEY_ROWS, [1, C]; x is [B, H, whiches, N]."""
    first = of_head(x, sample, head) + which * x.row
    queries = column + tl.arange(0, C)[None, :] if KEY_ROWS else row + tl.arange(0, R)[:, None]
    inside = queries < (columns if KEY_ROWS else rows)
    return tl.load(first + queries) if EVEN else tl.load(first + queries, mask=inside, other=other)


@triton.jit
@no_type_check
def load_weight(coeff, sample, head, j):
    """W[head, j] in float32, for one head or a tensor of heads."""
    pointers = coeff.data + tl.cast(sample, tl.int64) * coeff.batch + head * coeff.head + j * coeff.map
    return tl.load(pointers).to(tl.float32) + tl.where(head == j, 1.0, 0.0)


@triton.jit
@no_type_check
def zero_tile(D0: tl.constexpr, D1: tl.constexpr, BLOCK: tl.constexpr):
    """A tile [BLOCK, D]."""
    tile = (tl.zeros([BLOCK, D0], tl.float32),)
    if D1 > 0:
        tile += (tl.zeros([BLOCK, D1], tl.float32),)
    return tile


@triton.jit
@no_type_check
def inner(a, b, D1: tl.constexpr):
    """a @ b^T: [R, D], [C, D] -> [R, C]"""
    product = tl.dot(a[0], tl.trans(b[0]), input_precision="ieee")
    if D1 > 0:
        product = tl.dot(a[1], tl.trans(b[1]), product, input_precision="ieee")
    return product


@triton.jit
@no_type_check
def plus_product(tile, weights, x, D1: tl.constexpr):
    """tile + weights @ x: [R, D], [R, C], [C, D] -> [R, D]"""
    weights = weights.to(x[0].dtype)
    total = (tl.dot(weights, x[0], tile[0], input_precision="ieee"),)
    if D1 > 0:
        total += (tl.dot(weights, x[1], tile[1], input_precision="ieee"),)
    return total


# ---- maps ------------------------------------------------------------------------------------------------------------


@triton.jit
@no_type_check
def load_scores(
    a, b, mask, sample, head, row, column, rows, columns, scale,
    D1: tl.constexpr, MASK: tl.constexpr, KEY_ROWS: tl.constexpr, EVEN: tl.constexpr,
    R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Scores to base 2, [R, C], of the rows `row..` and the columns `column..`; -inf where nothing may be attended to.

    KEY_ROWS: rows are keys and columns are queries, instead of the other way round.
    """
    r = row + tl.arange(0, R)[:, None]
    c = column + tl.arange(0, C)[None, :]
    scores = inner(a, b, D1) * scale
    if MASK != "none":
        allowed = r < rows if KEY_ROWS else c < columns
        cells = tl.cast(r, tl.int64) * mask.row + tl.cast(c, tl.int64) * mask.column
        bias = tl.load(of_head(mask, sample, head) + cells, mask=(r < rows) & (c < columns), other=0)
        if MASK == "bool":
            allowed = allowed & (bias != 0)
        else:
            bias = bias.to(tl.float32)
            allowed = allowed & (bias != float("-inf"))
            scores += tl.maximum(bias, -1e38) * 1.4426950408889634  # the lowest float32 must not turn into -inf
        scores = tl.where(allowed, scores, float("-inf"))
    elif not EVEN:
        scores = tl.where(r < rows if KEY_ROWS else c < columns, scores, float("-inf"))
    return scores


@triton.jit
@no_type_check
def load_map(
    a, b, stats, mask, sample, head, row, column, rows, columns, scale,
    D1: tl.constexpr, MASK: tl.constexpr, KEY_ROWS: tl.constexpr, EVEN: tl.constexpr,
    R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """A tile of one head's map, [R, C]; zero outside of it, and for a query that may attend to nothing."""
    scores = load_scores(
        a, b, mask, sample, head, row, column, rows, columns, scale, D1, MASK, KEY_ROWS, EVEN, R, C
    )  # fmt: skip
    top = load_per_query(stats, 0, sample, head, row, column, rows, columns, float("inf"), KEY_ROWS, EVEN, R, C)
    norm = load_per_query(stats, 1, sample, head, row, column, rows, columns, 0.0, KEY_ROWS, EVEN, R, C)
    return tl.exp2(scores - top) * norm


@triton.jit
@no_type_check
def running_softmax(scores, top, total, MASKED: tl.constexpr):
    """Exponentials of scores [R, C], and top, total and the factor for earlier sums, each [R], after these columns."""
    new_top = tl.maximum(top, tl.max(scores, 1))
    shift = tl.where(new_top == float("-inf"), 0.0, new_top) if MASKED else new_top  # -inf minus -inf would be NaN
    exponentials = tl.exp2(scores - shift[:, None])
    factor = tl.exp2(top - shift)
    return exponentials, new_top, total * factor + tl.sum(exponentials, 1), factor


@triton.jit
@no_type_check
def store_stats(stats, top, total, sample, head, row, rows, R: tl.constexpr):
    """`top` and `norm` of every query, [B, H, 2, N]; +inf and 0, which give zeros, if all scores are -inf."""
    blind = total == 0.0
    r = row + tl.arange(0, R)
    pointers = of_head(stats, sample, head) + r
    tl.store(pointers, tl.where(blind, float("inf"), top), mask=r < rows)
    tl.store(pointers + stats.row, tl.where(blind, 0.0, 1.0 / tl.where(blind, 1.0, total)), mask=r < rows)
