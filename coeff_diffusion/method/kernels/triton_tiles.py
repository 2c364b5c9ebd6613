"""How large the tiles of a kernel are: what fits a layer and a device with few registers spilt to memory.

The numbers are of the compiler (Triton 3.6 and 3.7, for compute capabilities 8.0 to 12.0) and of an H100.
"""

from typing import NamedTuple

import triton

FEW = 128  # columns that a wide kernel takes at once


class Tiles(NamedTuple):
    """How a kernel is cut into programs."""

    rows: int
    columns: int
    group: int  # heads of a program
    warps: int
    stages: int  # of the operands on their way


def split_channels(channels: int) -> tuple[int, int]:
    """(D0, D1) for D channels: powers of two of at least 16, the least a tensor core takes; D1 may be 0."""
    first = max(16, 1 << (channels.bit_length() - 1))
    rest = channels - first
    return first, max(16, triton.next_power_of_2(rest)) if rest > 0 else 0


def _groups_of(heads: int, largest: int) -> int:
    """The largest group, of at most `largest` heads, that divides the heads."""
    return max(group for group in range(1, max(1, min(heads, largest)) + 1) if heads % group == 0)


def tiles_of(kernel: str, heads: int, channels: int, itemsize: int, capability: tuple[int, int]) -> Tiles | None:
    """The tiles of a kernel for a layer; None for a wide kernel that does not fit, or where another takes less time.

    Args:
        kernel: "stats", "mix", "dvalue" (`mix_kernel` over keys), "score_grad", "shares", "wide", "wide_few" (for at
            most `FEW` columns) or "wide_score_grad".
        heads: H.
        channels: D.
        itemsize: of the inputs, in bytes.
        capability: the device's compute capability.
    """
    warp_groups = capability[0] in (9, 10)  # four warps share a product, whose factors need not be in registers
    if kernel == "stats":
        return Tiles(64, 64, 1, 4, 2)
    if kernel == "shares":
        return _shares(heads, channels, itemsize, warp_groups)
    if kernel == "wide_score_grad":
        return _wide_score_grad(heads, channels, itemsize, warp_groups)
    mixed = _mixed("mix" if kernel.startswith("wide") else kernel, heads, channels, itemsize, warp_groups)
    if not kernel.startswith("wide"):
        return mixed
    wide = _wide(heads, channels, warp_groups, few=kernel == "wide_few")
    return wide if itemsize == 2 and _wide_pays(heads, channels, wide.group, mixed.group, capability) else None


def _wide(heads: int, channels: int, warp_groups: bool, few: bool) -> Tiles:
    if not warp_groups:
        return Tiles(64, 32, _groups_of(heads, 160 // channels), 4, 2)
    if few:  # few columns for the sums over maps to go to memory and back
        return Tiles(64, 128, _groups_of(heads, 160 // channels), 4, 1)
    return Tiles(64, 64, _groups_of(heads, 320 // channels), 4, 2)


def _wide_pays(heads: int, channels: int, wide: int, mixed: int, capability: tuple[int, int]) -> bool:
    """Whether forming maps H/G times and their products with all values takes less time than mixing maps.

    Counted for one head's map: the wide way multiplies D channels for every one of its groups and H D for the values;
    the other forms the map for every one of its groups and once for the sums of its rows. On an H100, forming it there
    took as long as 165 channels of a product here, whatever D.
    """
    tensor_cores_lead = capability == (8, 0) or capability[0] in (9, 10)  # by 16 to 1, else by 2 to 1
    wide_groups, mixed_groups = heads // wide, triton.cdiv(heads, mixed)
    products = sum(split_channels(channels)) * (wide_groups + heads)
    return products <= (165 if tensor_cores_lead else 60) * (mixed_groups + 1)


def _shares(heads: int, channels: int, itemsize: int, warp_groups: bool) -> Tiles:
    if itemsize == 4:
        return Tiles(32, 32, _groups_of(heads, 96 // channels), 4, 1)
    if warp_groups:
        return Tiles(64, 64, _groups_of(heads, 320 // channels), 4, 2)
    return Tiles(64, 32, _groups_of(heads, 160 // channels), 4, 2)


def _wide_score_grad(heads: int, channels: int, itemsize: int, warp_groups: bool) -> Tiles | None:
    """One group of all heads, whose channels stay in registers or shared memory; fewer than 3 products a map."""
    width = heads * channels
    if itemsize == 4 or width > (640 if warp_groups else 320):
        return None
    return Tiles(64, 64 if warp_groups and width <= 320 else 32, heads, 4, 2)


def _mixed(kernel: str, heads: int, channels: int, itemsize: int, warp_groups: bool) -> Tiles:
    """The largest groups, then the largest blocks of columns, that the registers of a thread hold."""
    padded = sum(split_channels(channels))
    rows, warps, operands = (64, 4, padded // 2) if itemsize == 2 else (64, 8, 2 * padded)
    most = 130 if itemsize == 4 else {"mix": 240, "dvalue": 230, "score_grad": 180}[kernel] if warp_groups else 180
    fits = [
        (group, columns)
        for group in range(1, 11)
        for columns in (16, 32, 64)
        if group == triton.cdiv(heads, triton.cdiv(heads, group))  # groups of like size
        and rows * (group * (padded + columns) + 2 * columns + operands) // (32 * warps) <= most
    ]
    if not fits:
        return Tiles(16, 16, 1, 2, 1)
    group, columns = max(fits)
    return Tiles(rows, columns, group, warps, 2 if kernel == "score_grad" or itemsize == 4 else 3)
