"""How `cuda_recombine.cu` and `cuda_row_stats.cu` cut a layer: of what fits a GPU, what takes least time.

Time is counted: instructions of the compiled kernels, and bytes that a multiprocessor asks of the second cache. On the
six layers that were measured on an H100 the count is within 13 % of the measurement (docs/performance.md).

Legend: H heads, D channels per head, G heads of a warp, R tiles of 16 queries of a block, C keys at a time.
"""

import functools
from typing import NamedTuple

ROWS = 16  # queries of a warp
MOST_WARPS = 16  # of a block
REGISTERS = 65536  # of a multiprocessor
SCRATCH = 35  # registers of a thread beside those that `Tiles.registers` counts
FEW_KEYS = 512  # with at most so many, rows' statistics are not worth a kernel of their own


class Layer(NamedTuple):
    """What is to be computed."""

    heads: int
    channels: int
    queries: int
    keys: int
    batch: int
    bfloat16: bool  # else float16

    @property
    def apart(self) -> bool:
        """Whether the rows' statistics are found by a kernel of their own."""
        return self.keys > FEW_KEYS


class Device(NamedTuple):
    """What a GPU offers."""

    shared_memory: int  # bytes that a block may have
    processors: int


class Tiles(NamedTuple):
    """How a layer is cut.

    Attributes:
        group: G, heads of a warp.
        rows: R, tiles of 16 queries of a block.
        keys: C, keys at a time.
        shared: queries wait in shared memory, else in registers.
        places: where runs of C rows wait. 4: values and keys have two each, and maps of the next keys are formed while
            those of these are mixed, or a warp has all heads; 3: keys have one; 2: values, too.
    """

    group: int
    rows: int
    keys: int
    shared: bool
    places: int

    def groups(self, heads: int) -> int:
        """Of heads; with one, no warp needs the maps of another."""
        return -(-heads // self.group)

    def warps(self, heads: int) -> int:
        """Of a block."""
        return self.groups(heads) * self.rows

    def shared_memory(self, heads: int, channels: int) -> int:
        """Bytes of a block: values and keys, maps, queries and weights."""
        row = _pitch(heads * channels)
        maps = self.rows * heads * self.keys // 16 * 512
        weights = 4 * heads * self.groups(heads) * self.group
        found = self.places * self.keys * row
        if self.groups(heads) > 1:
            found += (2 if self.places == 4 else 1) * maps
        return found + (ROWS * self.rows * row if self.shared else 0) + -(-weights // 16) * 16

    def registers(self, channels: int, bfloat16: bool) -> int:
        """Of a thread: sums, mixed maps, queries, scores and what makes them maps."""
        mixed = self.keys // 16 * (4 if bfloat16 else 8)
        return self.group * (channels // 2 + mixed + 2 + (0 if self.shared else channels // 4)) + self.keys // 2


class StatsTiles(NamedTuple):
    """How the kernel of the rows' statistics is cut; its blocks are of one head, its warps have two tiles each."""

    rows: int = 8
    keys: int = 32

    @property
    def warps(self) -> int:
        """Of a block."""
        return self.rows // 2

    def shared_memory(self, channels: int) -> int:
        """Bytes of a block: keys, twice."""
        return 2 * self.keys * _pitch(channels)


STATS_TILES = StatsTiles()


def _pitch(channels: int) -> int:
    return 16 * (channels // 8 | 1)


@functools.lru_cache(maxsize=4096)
def tiles_of(layer: Layer, device: Device) -> Tiles | None:
    """The tiles for a layer; None where none fit."""
    found = [tiles for tiles in _candidates(layer) if _blocks_at_once(tiles, layer, device)]
    return min(found, key=lambda tiles: cycles(tiles, layer, device, layer.apart), default=None)


def _candidates(layer: Layer) -> list[Tiles]:
    heads = layer.heads
    return [
        Tiles(group, rows, keys, shared, places)
        for group in sorted({-(-heads // groups) for groups in range(1, heads + 1)}, reverse=True)  # of like size
        for rows in (8, 4, 2, 1)
        for keys in (32, 16)
        for shared in (False, True)
        for places in ((4,) if group == heads else (4, 3, 2))
    ]


def threads_of_a_block(warps: int) -> int:
    """Those that get registers: they are given out by fours of warps."""
    return 32 * 4 * -(-warps // 4)


def registers_of_a_thread(warps: int) -> int:
    """As many as a thread may have in blocks of so many warps."""
    return min(255, REGISTERS // threads_of_a_block(warps) // 8 * 8)


def _blocks_at_once(tiles: Tiles, layer: Layer, device: Device) -> int:
    """Blocks that a multiprocessor holds; 0 where not even one fits."""
    warps = tiles.warps(layer.heads)
    needed = tiles.registers(layer.channels, layer.bfloat16) + SCRATCH
    memory = tiles.shared_memory(layer.heads, layer.channels)
    if warps > MOST_WARPS or needed > registers_of_a_thread(warps) or memory > device.shared_memory:
        return 0
    by_registers = REGISTERS // (threads_of_a_block(warps) * registers_of_a_thread(warps))
    return min(by_registers, (device.shared_memory + 1024) // (memory + 1024))


def instructions(tiles: Tiles, layer: Layer) -> float:
    """That a warp issues in pass 2 for 16 queries and 8 keys of a head, as read in the compiled kernels."""
    heads, channels = layer.heads, layer.channels
    found = 17 + 2 * heads + 3 * channels / 16  # of it 8 a map and 2 a weight; products
    found += 3 * channels / (16 * tiles.rows)  # copies
    found += 80 / (tiles.group * tiles.keys / 8)  # once a step
    if tiles.groups(heads) > 1:
        found += heads / (2 * tiles.group)  # maps of other warps
    if tiles.shared:
        found += channels / (2 * tiles.keys)
    return found if layer.bfloat16 else found + 2 * heads + 4 * heads / tiles.group - 4


def cycles(tiles: Tiles, layer: Layer, device: Device, apart: bool) -> float:
    """That "recombine" takes, by a count that was fit to an H100; `apart`: it has no pass for the rows' statistics."""
    blocks = -(-layer.queries // (ROWS * tiles.rows)) * layer.batch
    at_once = _blocks_at_once(tiles, layer, device)
    waves = -(-blocks // (device.processors * at_once))
    busy = min(device.processors, blocks)
    resident = min(at_once, -(-blocks // device.processors))
    warps = tiles.warps(layer.heads)
    of_head = instructions(tiles, layer) + (0 if apart else 26 + layer.channels / 16)
    issued = warps * tiles.group * tiles.keys / 8 * of_head / min(2.0, 0.2125 * warps * resident)
    passes = 2 if apart else 3  # over keys, or keys and values
    read = passes * 2 * tiles.keys * layer.heads * layer.channels / min(48, 24.5 * device.processors / busy)
    waiting = 100 if tiles.places == 4 else 200 + 0.05 * issued if tiles.places == 3 else 300 + 0.05 * issued
    steps = -(-layer.keys // tiles.keys)
    return waves * steps * resident * (0.8 * (issued + read) + waiting)


def stats_cycles(layer: Layer, device: Device) -> float:
    """That "row_stats" takes, which its exponentials bound: 36 cycles of a quarter of a multiprocessor for 16 x 8."""
    blocks = -(-layer.queries // (ROWS * STATS_TILES.rows)) * layer.heads * layer.batch
    return -(-blocks // device.processors) * STATS_TILES.rows * -(-layer.keys // 8) * 36 / 4
