"""What NVRTC makes of the CUDA kernels, without a GPU: registers, spills, instructions, and the time that is to expect.

    pip install nvidia-cuda-nvrtc-cu12==12.8.93 triton      # the compiler, and what reads its code
    python benchmarks/gpu_code.py --layer xl-32 --batch 2 8
    python benchmarks/gpu_code.py --architecture sm_80 sm_86 sm_89 sm_90 --batch 2 --dtype float16

A row for each layer: how it is cut, what the compiled code needs, how many instructions a warp issues for 16 queries
and 8 keys of a head, as read there and as `cuda_tiles` counts them, and the milliseconds that the count gives for both
kernels, without what a launch takes. `--measured` prints what was measured beside what the count gives for it.
"""

import argparse
import ctypes
import importlib.util
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from coeff_diffusion.method.kernels import cuda_attention, cuda_build
from coeff_diffusion.method.kernels.cuda_tiles import (
    STATS_TILES,
    Device,
    Layer,
    Tiles,
    cycles,
    instructions,
    stats_cycles,
    tiles_of,
)

# heads, channels, queries, keys
LAYERS = {
    "sd15-64": (8, 40, 4096, 4096),
    "sd15-32": (8, 80, 1024, 1024),
    "sd15-16": (8, 160, 256, 256),
    "sd15-64-text": (8, 40, 4096, 77),
    "sd21-64": (5, 64, 4096, 4096),
    "sd21-32": (10, 64, 1024, 1024),
    "xl-64": (10, 64, 4096, 4096),
    "xl-32": (20, 64, 1024, 1024),
    "xl-32-text": (20, 64, 1024, 77),
    "embedded-8": (8, 16, 64, 64),
}
# shared memory of a block, multiprocessors, and gigahertz under load
DEVICES = {
    "sm_80": (Device(166912, 108), 1.4),  # A100
    "sm_86": (Device(101376, 82), 1.7),  # RTX 3090
    "sm_89": (Device(101376, 128), 2.5),  # RTX 4090
    "sm_90": (Device(232448, 132), 1.7),  # H100
    "sm_100": (Device(232448, 148), 1.8),  # B200
    "sm_120": (Device(101376, 170), 2.4),  # RTX 5090
}


class Measured(NamedTuple):
    """A layer of bfloat16 on an H100, with the pass for the rows' statistics inside."""

    layer: str
    batch: int
    tiles: Tiles
    milliseconds: float


MEASURED = [
    Measured("sd15-64", 8, Tiles(4, 4, 32, False, 4), 1.91),
    Measured("sd15-32", 8, Tiles(2, 2, 32, False, 4), 0.27),
    Measured("sd15-16", 8, Tiles(1, 1, 16, False, 4), 0.08),
    Measured("sd15-64-text", 8, Tiles(4, 4, 32, False, 4), 0.09),
    Measured("xl-32", 8, Tiles(2, 1, 16, False, 4), 0.97),
    Measured("xl-64", 2, Tiles(2, 2, 32, False, 4), 1.06),
]
LAUNCH = 0.03  # milliseconds: what the smallest layers took beyond the count

INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(\S+)(.*?);")


@cache
def nvrtc() -> ctypes.CDLL | None:
    """The compiler that one of its own packages, or PyTorch's CUDA builds, brought; None where there is none."""
    found = importlib.util.find_spec("nvidia")
    for folder in found.submodule_search_locations or () if found else ():
        for library in sorted(Path(folder).glob("*/lib/libnvrtc.so.*"), reverse=True):
            return ctypes.CDLL(str(library))
    return None


@cache
def tool(name: str) -> str | None:
    """The path of "cuobjdump" or "nvdisasm", which Triton brings; None where it is not installed."""
    found = importlib.util.find_spec("triton")
    for folder in found.submodule_search_locations or () if found else ():
        path = Path(folder, "backends", "nvidia", "bin", name)
        if path.exists():
            return str(path)
    return None


class Code(NamedTuple):
    """Machine code."""

    registers: int  # of a thread
    stack: int  # bytes of a thread: what was spilt
    loops: list[Counter[str]]  # those with products: how often each instruction is in it


def read(binary: bytes) -> Code:
    """What compiled code needs and does."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(binary)
        used = _run("cuobjdump", "-res-usage", str(path))
        lines = _run("nvdisasm", "-c", str(path)).splitlines()
    needs = re.search(r"REG:(\d+) STACK:(\d+)", used)
    assert needs, used
    return Code(int(needs[1]), int(needs[2]), list(_loops(lines)))


def _run(name: str, *arguments: str) -> str:
    path = tool(name)
    assert path, "needs Triton"
    return subprocess.run([path, *arguments], check=True, capture_output=True, text=True, timeout=100).stdout


def _loops(lines: list[str]) -> Iterator[Counter[str]]:
    """Between a label and a jump back to it."""
    instructions: list[str] = []
    labels: dict[str, int] = {}
    for line in lines:
        if label := re.match(r"^(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        if found := INSTRUCTION.match(line):
            instructions.append(found[1].split(".")[0])
            jump = re.search(r"\.L_x_\d+", found[2]) if instructions[-1] == "BRA" else None
            if jump and jump[0] in labels:
                inside = Counter(instructions[labels[jump[0]] :])
                if inside["HMMA"]:
                    yield inside


def compiled(layer: Layer, tiles: Tiles, architecture: str) -> dict[str, Code]:
    """What computes a layer, by the kernel's name."""
    dtype = torch.bfloat16 if layer.bfloat16 else torch.float16
    even = layer.keys % tiles.keys == 0
    given = {"recombine": cuda_attention.constants(dtype, layer.heads, layer.channels, tiles, layer.apart, even)}
    if layer.apart:
        even = layer.keys % STATS_TILES.keys == 0
        given["row_stats"] = cuda_attention.stats_constants(dtype, layer.heads, layer.channels, even)
    return {
        name: read(cuda_build.compiled(name, constants, architecture, nvrtc())) for name, constants in given.items()
    }


def per_map(code: Code, tiles: Tiles) -> float:
    """Instructions of the last loop for 16 queries and 8 keys of a head."""
    return code.loops[-1].total() / (tiles.group * tiles.keys / 8)


def milliseconds(tiles: Tiles, layer: Layer, architecture: str, apart: bool) -> float:
    """That the count gives, without launches."""
    device, gigahertz = DEVICES[architecture]
    found = cycles(tiles, layer, device, apart) + (stats_cycles(layer, device) if apart else 0)
    return found / gigahertz / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layer", nargs="+", choices=list(LAYERS), default=list(LAYERS))
    parser.add_argument("--batch", nargs="+", type=int, default=[8])
    parser.add_argument("--dtype", nargs="+", choices=["bfloat16", "float16"], default=["bfloat16"])
    parser.add_argument("--architecture", nargs="+", choices=list(DEVICES), default=["sm_90"])
    parser.add_argument("--measured", action="store_true", help="compare the count with what was measured")
    args = parser.parse_args()
    if args.measured:
        print("| layer, batch | tiles | measured | counted |\n" + "| --- " * 4 + "|")
        for one in MEASURED:
            layer = Layer(*LAYERS[one.layer], one.batch, True)
            counted = milliseconds(one.tiles, layer, "sm_90", apart=False) + LAUNCH
            print(f"| {one.layer}, {one.batch} | {_said(one.tiles)} | {one.milliseconds:.2f} ms | {counted:.2f} ms |")
        return
    if not nvrtc() or not tool("nvdisasm"):
        parser.error("needs NVRTC and Triton: pip install nvidia-cuda-nvrtc-cu12==12.8.93 triton")
    print("| layer, batch, type | GPU | tiles | warps | registers, spilt | instructions, counted | time, counted |")
    print("| --- " * 7 + "|")
    for architecture in args.architecture:
        for name in args.layer:
            for batch in args.batch:
                for dtype in args.dtype:
                    print(row(name, batch, dtype, architecture), flush=True)


def row(name: str, batch: int, dtype: str, architecture: str) -> str:
    """Of the table."""
    layer = Layer(*LAYERS[name], batch, dtype == "bfloat16")
    first = f"| {name}, {batch}, {dtype} | {architecture} |"
    tiles = tiles_of(layer, DEVICES[architecture][0])
    if tiles is None:
        return f"{first} none fits: Triton | | | | |"
    found = compiled(layer, tiles, architecture)
    needs = "; ".join(f"{code.registers}, {code.stack} bytes" for code in found.values())
    counted = instructions(tiles, layer)
    return (
        f"{first} {_said(tiles)} | {tiles.warps(layer.heads)} | {needs} | "
        f"{per_map(found['recombine'], tiles):.0f}, {counted:.0f} | "
        f"{milliseconds(tiles, layer, architecture, layer.apart):.3f} ms |"
    )


def _said(tiles: Tiles) -> str:
    more = ", queries shared" * tiles.shared
    return f"{tiles.group} heads, {16 * tiles.rows} queries, {tiles.keys} keys, {tiles.places} places{more}"


if __name__ == "__main__":
    main()
