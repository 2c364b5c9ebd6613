"""Recombined attention on NVIDIA GPUs in half precision: `cuda_kernel.cu`, forward only.

It is what draws; the backward, where something learns, is `triton_attention`'s. `COEFF_DIFFUSION_NATIVE=0` does
without it.

Legend: B batch, H heads, N query tokens, M key tokens, D channels per head.
"""

import functools
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

ROWS = 16  # queries of a warp
WIDEST = 160  # channels whose sums fit into the registers of a warp
MOST_WARPS = 10  # of a block, with as many registers as a warp needs; more where one tile of queries needs more
BLOCKS = 65535  # along the second axis of a grid
LOG2_E = 1.4426950408889634
TOLERANCE = 0.02  # of the check after building, relative: a wrong result is off by its own size
ARGUMENTS = struct.Struct("@PqqPqqPqqPqPPiifi")  # `Arguments` of the kernel, padded to a multiple of 8 bytes


class Tiles(NamedTuple):
    """How the kernel cuts a layer.

    Attributes:
        group: G, heads of a warp.
        rows: R, tiles of 16 queries of a block.
        keys: C, keys at a time.
    """

    group: int
    rows: int
    keys: int

    def warps(self, heads: int) -> int:
        """Of a block."""
        return -(-heads // self.group) * self.rows

    def shared_memory(self, heads: int, channels: int) -> int:
        """Bytes of a block: keys and values, maps, each twice, and weights."""
        pitch = 16 * (heads * channels // 8 | 1)
        maps = self.rows * heads * self.keys // 16 * 512
        weights = 16 * -(-heads * -(-heads // self.group) * self.group // 4)
        return 4 * self.keys * pitch + 2 * maps + weights


def tiles_of(heads: int, channels: int, queries: int, batch: int, shared_memory: int, processors: int) -> Tiles | None:
    """The tiles for a layer; None where none fit.

    The largest groups whose sums fit into registers, then as many tiles of queries in a block as leave no
    multiprocessor without one, then the longer run of keys.

    Args:
        heads: H.
        channels: D.
        queries: N.
        batch: B.
        shared_memory: bytes that a block may have.
        processors: multiprocessors of the GPU.
    """
    group = max(1, min(4, heads, WIDEST // channels))
    group = -(-heads // -(-heads // group))  # groups of like size
    found = [
        Tiles(group, rows, keys)
        for rows in (4, 2, 1)
        for keys in (32, 16)
        if Tiles(group, rows, keys).warps(heads) <= (MOST_WARPS if rows > 1 else 16)
        and Tiles(group, rows, keys).shared_memory(heads, channels) <= shared_memory
    ]
    busy = [tiles for tiles in found if -(-queries // (ROWS * tiles.rows)) * batch >= 3 * processors // 4]
    smallest = [tiles for tiles in found if tiles.rows == 1]
    return next(iter(busy or smallest or found), None)


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
        and _kernel_for(query, key) is not None
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
    found = _kernel_for(query, key)
    assert found is not None, "ask `supports` first"
    return _launched(*found, query, key, value, coeff, scale, with_stats)


def _launched(
    kernel: cuda_build.Kernel, tiles: Tiles, query: Tensor, key: Tensor, value: Tensor, coeff: Tensor, scale: float,
    with_stats: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    batch, heads, queries, channels = query.shape
    query, key, value = _readable(query), _readable(key), _readable(value)
    coeff = coeff.float().contiguous()
    out = query.new_empty(batch, queries, heads, channels)
    stats = query.new_empty(batch, heads, 2, queries, dtype=torch.float32) if with_stats else None
    given = arguments(query, key, value, coeff, out, stats, scale)
    blocks = -(-queries // (ROWS * tiles.rows)), batch
    if query.device.index == torch.cuda.current_device():  # choosing it again would take time
        kernel.launch(blocks, given, torch.cuda.current_stream().cuda_stream)
    else:
        with torch.cuda.device(query.device):
            kernel.launch(blocks, given, torch.cuda.current_stream().cuda_stream)
    return out.transpose(1, 2), stats


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


def _kernel_for(query: Tensor, key: Tensor) -> tuple[cuda_build.Kernel, Tiles] | None:
    batch, heads, queries, channels = query.shape
    return _found(query.device, query.dtype, heads, channels, queries, batch, key.shape[2])


@functools.lru_cache(maxsize=4096)
def _found(
    device: torch.device, dtype: torch.dtype, heads: int, channels: int, queries: int, batch: int, keys: int
) -> tuple[cuda_build.Kernel, Tiles] | None:
    if os.environ.get("COEFF_DIFFUSION_NATIVE") == "0" or torch.cuda.get_device_capability(device) < (8, 0):
        return None
    try:
        memory = cuda_build.shared_memory_of(device)
    except BuildError as error:
        _warn(str(error))
        return None
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    tiles = tiles_of(heads, channels, queries, batch, memory, processors)
    if tiles is None:
        return None
    with _lock:
        kernel = _built(device, dtype, heads, channels, tiles, keys % tiles.keys == 0)
    return None if kernel is None else (kernel, tiles)


@functools.cache
def _built(
    device: torch.device, dtype: torch.dtype, heads: int, channels: int, tiles: Tiles, even: bool
) -> cuda_build.Kernel | None:
    """The kernel, after a look at what it computes; None, with one warning, where it cannot be had."""
    try:
        threads, memory = 32 * tiles.warps(heads), tiles.shared_memory(heads, channels)
        kernel = cuda_build.build(constants(dtype, heads, channels, tiles, even), threads, memory, device)
        _check(kernel, device, dtype, heads, channels, tiles, even)
    except BuildError as error:
        _warn(str(error))
        return None
    return kernel


def constants(dtype: torch.dtype, heads: int, channels: int, tiles: Tiles, even: bool) -> dict[str, int]:
    """Of the kernel's source."""
    bfloat16 = int(dtype == torch.bfloat16)
    sizes = {"H": heads, "D": channels, "G": tiles.group, "R": tiles.rows, "C": tiles.keys}
    return {**sizes, "BFLOAT16": bfloat16, "EVEN": int(even)}


@functools.cache
def _warn(problem: str) -> None:
    warnings.warn(f"recombined attention runs without its CUDA kernel, slower: {problem}", stacklevel=2)


@torch.no_grad()
def _check(
    kernel: cuda_build.Kernel, device: torch.device, dtype: torch.dtype, heads: int, channels: int, tiles: Tiles,
    even: bool,
) -> None:  # fmt: skip
    """Compute something small and look.

    Raises:
        BuildError: the result is wrong.
    """
    generator = torch.Generator().manual_seed(0)
    keys = 3 * tiles.keys - (0 if even else 5)
    shapes = [(2, rows, heads, channels) for rows in (ROWS * tiles.rows + 5, keys, keys)]
    query, key, value = (torch.randn(shape, generator=generator).to(device, dtype).transpose(1, 2) for shape in shapes)
    coeff = torch.randn(2, heads, heads, generator=generator).to(device)
    out, _ = _launched(kernel, tiles, query, key, value, coeff, channels**-0.5, False)
    expected = recombination.recombined_attention(query.float(), key.float(), value.float(), coeff)
    error = float((out.float() - expected).norm() / expected.norm())
    if not error <= TOLERANCE:  # NaN, too
        raise BuildError(f"what was compiled for {heads} heads of {channels} channels computes something else")
