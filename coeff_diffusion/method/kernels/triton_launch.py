"""What launches the Triton kernels: their arguments, their tiles, and each compiled kernel found once.

Legend: B batch, H heads, N query tokens, M key tokens, D channels per head.
"""

import functools
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from . import triton_ahead
from .triton_maps import INTERPRETED, Coefficients, Heads, Mask
from .triton_tiles import Tiles, split_channels, tiles_of

# ---- what kernels are given ------------------------------------------------------------------------------------------


def as_heads(x: Tensor) -> Heads:
    """[B, H, rows, D] or [B, H, rows]."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    return Heads(x, *x.stride()[:3])


NO_HEADS = Heads(0, 0, 0, 0)


def as_groups(x: Tensor, group: int) -> Heads:
    """[B, H, rows, D] as [B, H/G, rows, G D]: a view where heads lie side by side, as attention layers lay them."""
    if x.stride(3) != 1 or x.stride(1) != x.shape[3]:
        x = empty_like(x).copy_(x)
    batch, head, row, _ = x.stride()
    return Heads(x, batch, group * head, row)


def as_coefficients(coeff: Tensor) -> Coefficients:
    """[H, H] or [B, H, H]."""
    return Coefficients(coeff, *coeff.stride()) if coeff.dim() == 3 else Coefficients(coeff, 0, *coeff.stride())


def as_mask(mask: Tensor | None, key_rows: bool = False) -> Mask:
    """A mask [B, H, N, M] for a kernel whose rows are queries, or keys."""
    if mask is None:
        return Mask(0, 0, 0, 0, 0)
    batch, head, query, key = mask.stride()
    row, column = (key, query) if key_rows else (query, key)
    return Mask(mask.view(torch.uint8) if mask.dtype == torch.bool else mask, batch, head, row, column)


def empty_like(x: Tensor) -> Tensor:
    """[B, H, rows, D] over [B, rows, H, D]: what joins or splits the heads around attention needs no copy."""
    batch, heads, rows, channels = x.shape
    return x.new_empty(batch, rows, heads, channels).transpose(1, 2)


# ---- launches --------------------------------------------------------------------------------------------------------

# Triton looks at every argument of every launch to find the compiled kernel, in Python: more time than a small layer
# takes on the GPU. Found once, it is kept with the constants among its arguments, by all that it depends on.
_known: dict[Any, tuple[Any, tuple[Any, ...]]] = {}
_KNOWN_AT_MOST = 4096


class Launcher(NamedTuple):
    """What the launches of one call have in common."""

    shape: torch.Size  # of the query
    device: torch.device
    itemsize: int
    mask: str  # its kind
    key: tuple[Any, ...]  # device, sizes, strides, dtypes and alignment: all that compiled kernels depend on
    rehearsed: bool  # nothing is launched, only compiled, in the background

    def tiles(self, kernel: str) -> Any:
        """See `triton_tiles.tiles_of`."""
        return _tiles(kernel, self.shape[1], self.shape[3], self.itemsize, self.device)

    def launch(
        self,
        kernel: Any,
        tiles: Tiles,
        programs: int,
        tensors: tuple[Any, ...],
        sizes: tuple[Any, ...],
        **constants: Any,
    ) -> None:
        """Run `kernel` for every block of rows, for `programs` heads or groups, and for every sample.

        Args:
            kernel: one of `triton_kernels` or `triton_wide`.
            tiles: how it is cut.
            programs: how many there are for each sample and block of rows.
            tensors: the kernel's first arguments.
            sizes: those that follow: the mask, the number of rows, that of columns, and factors.
            constants: those of the kernel's constants that neither the layer nor `tiles` says.
        """
        key = (kernel.fn, constants.get("KEY_ROWS"), self.key)
        known = _known.get(key)
        if known is not None:
            run, last = known
            if not self.rehearsed:
                run(*tensors, *sizes, *last)
            return
        batch, heads, _, channels = self.shape
        rows, columns = sizes[1:3]
        width = tiles.group * channels
        constants |= {"H": heads, "D": channels, "W": width, "MASK": self.mask}
        constants |= dict(zip(("D0", "D1", "W0", "W1"), split_channels(channels) + split_channels(width), strict=True))
        constants |= {"R": tiles.rows, "C": tiles.columns, "G": tiles.group}
        constants["EVEN"] = rows % tiles.rows == 0 and columns % tiles.columns == 0
        last = tuple(constants[name] for name in kernel.arg_names[len(tensors) + len(sizes) :])
        grid = (triton.cdiv(rows, tiles.rows), programs, batch)
        arguments, options = (*tensors, *sizes, *last), {"num_warps": tiles.warps, "num_stages": tiles.stages}
        if self.rehearsed:
            triton_ahead.begin(key, functools.partial(_compile, self.device, kernel, grid, arguments, options))
            return
        triton_ahead.wait(key)
        compiled = kernel[grid](*arguments, **options)
        if not INTERPRETED:
            if len(_known) >= _KNOWN_AT_MOST:
                _known.clear()
            _known[key] = compiled[grid], last


@functools.cache
def _tiles(kernel: str, heads: int, channels: int, itemsize: int, device: torch.device) -> Tiles | None:
    capability = (8, 0) if INTERPRETED else torch.cuda.get_device_capability(device)
    return tiles_of(kernel, heads, channels, itemsize, capability)


def _compile(device: torch.device, kernel: Any, grid: Any, arguments: tuple[Any, ...], options: dict[str, int]) -> None:
    with on_device(device):
        kernel.warmup(*arguments, grid=grid, **options)


def launcher_of(mask: Tensor | None, keep: bool, *tensors: Tensor, rehearsed: bool = False) -> Launcher:
    """The layer of a query, and of what else a call depends on; `keep` tells calls apart."""
    query = tensors[0]
    kind = "none" if mask is None else "bool" if mask.dtype == torch.bool else "bias"
    given = tensors if mask is None else (*tensors, mask)
    key = tuple((x.shape, x.stride(), x.dtype, x.data_ptr() % 16) for x in given)
    return Launcher(query.shape, query.device, query.element_size(), kind, (query.device, keep, kind, key), rehearsed)


def on_device(device: torch.device) -> AbstractContextManager[Any]:
    """Where kernels are launched: choosing the device that is chosen already takes time."""
    elsewhere = device.type == "cuda" and device.index != torch.cuda.current_device()
    return torch.cuda.device(device) if elsewhere else nullcontext()
