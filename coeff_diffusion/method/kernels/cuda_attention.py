"""Recombined attention on NVIDIA GPUs in half precision: `cuda_recombine.cu` and `cuda_row_stats.cu`, forward only.

It is what draws; the backward, where something learns, is `triton_attention`'s. `COEFF_DIFFUSION_NATIVE=0` does
without it.

Legend: B batch, H heads, N query tokens, M key tokens, D channels per head.
"""

import functools
import math
import os
import struct
import threading
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from .. import recombination
from . import cuda_build
from .build_error import BuildError
from .cuda_tiles import ROWS, STATS_TILES, Device, Layer, Tiles, tiles_of

WIDEST = 160  # channels: of more, the sums of even one head leave too few registers
BLOCKS = 65535  # along the second axis of a grid
LOG2_E = 1.4426950408889634
TOLERANCE = 0.02  # of the check after building, relative: a wrong result is off by its own size
ARGUMENTS = struct.Struct("@PqqPqqPqqPqPPiifi")  # `Arguments` of the kernel, padded to a multiple of 8 bytes


class Kernels(NamedTuple):
    """What computes a kind of layer."""

    recombine: cuda_build.Kernel
    row_stats: cuda_build.Kernel | None  # launched before, where the other has no first pass
    tiles: Tiles


def supports(query: Tensor, key: Tensor, value: Tensor, scale: float) -> bool:
    """Whether `cuda_attention` computes this: in half precision, on a GPU of compute capability 8.0 or more."""
    return (
        query.is_cuda
        and torch.version.hip is None
        and query.dtype in (torch.float16, torch.bfloat16)
        and query.dtype == key.dtype == value.dtype
        and query.shape[3] == value.shape[3] <= WIDEST
        and query.shape[3] % 8 == 0
        and query.shape[0] <= BLOCKS
        and scale > 0
        and _kernels_for(query, key) is not None
    )


def cuda_attention(
    query: Tensor, key: Tensor, value: Tensor, coeff: Tensor, scale: float, with_stats: bool = False
) -> tuple[Tensor, Tensor | None]:
    """`kernels.recombined_attention` for inputs that `supports` accepts, not differentiable.

    Args:
        query: [B, H, N, D].
        key: [B, H, M, D].
        value: [B, H, M, D].
        coeff: [H, H] or [B, H, H].
        scale: factor on the scores.
        with_stats: also return what makes scores to maps.

    Returns:
        out, [B, H, N, D] over [B, N, H, D]; and stats, [B, H, 2, N] in float32:
        `maps = exp2(scores * log2(e) - stats[:, :, 0]) * stats[:, :, 1]`.
    """
    found = _kernels_for(query, key)
    assert found is not None, "ask `supports` first"
    return _launched(found, query, key, value, coeff, scale, with_stats)


def _launched(
    kernels: Kernels, query: Tensor, key: Tensor, value: Tensor, coeff: Tensor, scale: float, with_stats: bool
) -> tuple[Tensor, Tensor | None]:
    batch, heads, queries, channels = query.shape
    query, key, value = _readable(query), _readable(key), _readable(value)
    coeff = coeff.float().contiguous()
    out = query.new_empty(batch, queries, heads, channels)
    stats = None
    if with_stats or kernels.row_stats:
        stats = query.new_empty(batch, heads, 2, queries, dtype=torch.float32)
    given = arguments(query, key, value, coeff, out, stats, scale)
    if query.device.index == torch.cuda.current_device():  # choosing it again would take time
        _launch(kernels, query.shape, given)
    else:
        with torch.cuda.device(query.device):
            _launch(kernels, query.shape, given)
    return out.transpose(1, 2), stats if with_stats else None


def _launch(kernels: Kernels, shape: torch.Size, given: bytes) -> None:
    batch, heads, queries, _ = shape
    stream = torch.cuda.current_stream().cuda_stream
    if kernels.row_stats:
        kernels.row_stats.launch((-(-queries // (ROWS * STATS_TILES.rows)), batch, heads), given, stream)
    kernels.recombine.launch((-(-queries // (ROWS * kernels.tiles.rows)), batch, 1), given, stream)


def arguments(
    query: Tensor, key: Tensor, value: Tensor, coeff: Tensor, out: Tensor, stats: Tensor | None, scale: float
) -> bytes:
    """The kernel's `Arguments`."""
    return ARGUMENTS.pack(
        *(query.data_ptr(), query.stride(0), query.stride(2)),
        *(key.data_ptr(), key.stride(0), key.stride(2)),
        *(value.data_ptr(), value.stride(0), value.stride(2)),
        *(coeff.data_ptr(), coeff.stride(0) if coeff.ndim == 3 else 0),
        *(out.data_ptr(), 0 if stats is None else stats.data_ptr()),
        *(query.shape[2], key.shape[2], scale * LOG2_E, 0),
    )


def _readable(x: Tensor) -> Tensor:
    """As the kernel reads it: heads side by side, pieces of 16 bytes."""
    fits = (
        x.stride(3) == 1
        and x.stride(1) == x.shape[3]
        and x.stride(0) % 8 == 0
        and x.stride(2) % 8 == 0
        and x.data_ptr() % 16 == 0
    )
    return x if fits else x.transpose(1, 2).contiguous().transpose(1, 2)


# ---- kernels, built on first use -------------------------------------------------------------------------------------

_lock = threading.Lock()


def _kernels_for(query: Tensor, key: Tensor) -> Kernels | None:
    batch, heads, queries, channels = query.shape
    return _found(query.device, query.dtype, heads, channels, queries, batch, key.shape[2])


@functools.lru_cache(maxsize=4096)
def _found(
    device: torch.device, dtype: torch.dtype, heads: int, channels: int, queries: int, batch: int, keys: int
) -> Kernels | None:
    if os.environ.get("COEFF_DIFFUSION_NATIVE") == "0" or torch.cuda.get_device_capability(device) < (8, 0):
        return None
    try:
        memory = cuda_build.shared_memory_of(device)
    except BuildError as error:
        _warn(str(error))
        return None
    layer = Layer(heads, channels, queries, keys, batch, dtype == torch.bfloat16)
    tiles = tiles_of(layer, Device(memory, torch.cuda.get_device_properties(device).multi_processor_count))
    if tiles is None:
        return None
    even = keys % tiles.keys == 0, keys % STATS_TILES.keys == 0
    with _lock:
        return _built(device, dtype, heads, channels, tiles, layer.apart, even)


@functools.cache
def _built(
    device: torch.device, dtype: torch.dtype, heads: int, channels: int, tiles: Tiles, apart: bool,
    even: tuple[bool, bool],
) -> Kernels | None:  # fmt: skip
    """The kernels, after a look at what they compute; None, with one warning, where they cannot be had.

    Args:
        even: whether keys are a multiple of `tiles.keys`, and of `STATS_TILES.keys`.
    """
    try:
        given = constants(dtype, heads, channels, tiles, apart, even[0])
        memory = tiles.shared_memory(heads, channels)
        recombine = cuda_build.build("recombine", given, 32 * tiles.warps(heads), memory, device)
        row_stats = None
        if apart:
            given = stats_constants(dtype, heads, channels, even[1])
            memory = STATS_TILES.shared_memory(channels)
            row_stats = cuda_build.build("row_stats", given, 32 * STATS_TILES.warps, memory, device)
        kernels = Kernels(recombine, row_stats, tiles)
        _check(kernels, device, dtype, heads, channels, even)
    except BuildError as error:
        _warn(str(error))
        return None
    return kernels


def constants(dtype: torch.dtype, heads: int, channels: int, tiles: Tiles, apart: bool, even: bool) -> dict[str, int]:
    """Of the source of "recombine"; `apart`: rows' statistics come first; `even`: keys are in whole `tiles.keys`."""
    found = _constants(dtype, heads, channels, even) | {"G": tiles.group, "R": tiles.rows, "C": tiles.keys}
    return found | {"SHARED": int(tiles.shared), "PLACES": tiles.places, "APART": int(apart), "STATS": 0}


def stats_constants(dtype: torch.dtype, heads: int, channels: int, even: bool) -> dict[str, int]:
    """Of the source of "row_stats"; `even`: keys are in whole `STATS_TILES.keys`."""
    found = _constants(dtype, heads, channels, even) | {"G": 1, "R": STATS_TILES.rows, "C": STATS_TILES.keys}
    return found | {"SHARED": 0, "PLACES": 4, "APART": 0, "STATS": 1}


def _constants(dtype: torch.dtype, heads: int, channels: int, even: bool) -> dict[str, int]:
    return {"H": heads, "D": channels, "BFLOAT16": int(dtype == torch.bfloat16), "EVEN": int(even)}


@functools.cache
def _warn(problem: str) -> None:
    warnings.warn(f"recombined attention runs without its CUDA kernel, slower: {problem}", stacklevel=2)


@torch.no_grad()
def _check(
    kernels: Kernels, device: torch.device, dtype: torch.dtype, heads: int, channels: int, even: tuple[bool, bool]
) -> None:
    """Compute something small and look.

    Raises:
        BuildError: the result is wrong.
    """
    generator = torch.Generator().manual_seed(0)
    keys = 3 * math.lcm(kernels.tiles.keys if even[0] else 1, STATS_TILES.keys if even[1] else 1)
    keys += 0 if any(even) else 91
    shapes = [(2, rows, heads, channels) for rows in (ROWS * kernels.tiles.rows + 5, keys, keys)]
    query, key, value = (torch.randn(shape, generator=generator).to(device, dtype).transpose(1, 2) for shape in shapes)
    coeff = torch.randn(2, heads, heads, generator=generator).to(device)
    out, _ = _launched(kernels, query, key, value, coeff, channels**-0.5, False)
    expected = recombination.recombined_attention(query.float(), key.float(), value.float(), coeff)
    error = float((out.float() - expected).norm() / expected.norm())
    if not error <= TOLERANCE:  # NaN, too
        raise BuildError(f"what was compiled for {heads} heads of {channels} channels computes something else")
