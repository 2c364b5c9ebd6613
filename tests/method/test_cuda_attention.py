"""The CUDA kernels, run on a CPU by an emulation of what they ask of a GPU (`emulated_cuda.h`)."""

import ctypes
import itertools
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from coeff_diffusion.method.kernels import cuda_attention, cuda_build
from coeff_diffusion.method.kernels.cuda_attention import LOG2_E
from coeff_diffusion.method.kernels.cuda_tiles import ROWS, STATS_TILES, Tiles
from coeff_diffusion.method.recombination import recombined_attention

# name: heads, channels, tiles, rows' statistics apart, type, queries, keys, a matrix for each sample
CASES: dict[str, tuple[int, int, Tiles, bool, torch.dtype, int, int, bool]] = {
    "sd15": (8, 40, Tiles(4, 1, 32, False, 4), False, torch.bfloat16, 16, 128, False),
    "sd15-one-group": (8, 40, Tiles(8, 2, 16, True, 4), True, torch.bfloat16, 37, 80, False),
    "sd15-one-group-uneven": (8, 40, Tiles(8, 1, 16, True, 4), False, torch.bfloat16, 16, 77, True),
    "uneven": (8, 40, Tiles(4, 2, 16, False, 4), True, torch.bfloat16, 37, 77, True),
    "float16": (3, 40, Tiles(2, 2, 32, True, 4), False, torch.float16, 33, 77, True),
    "float16-one-group": (3, 24, Tiles(3, 1, 32, False, 4), True, torch.float16, 20, 128, True),
    "sdxl": (20, 64, Tiles(5, 1, 16, True, 3), True, torch.bfloat16, 19, 64, True),
    "five-heads": (5, 64, Tiles(2, 1, 16, False, 2), False, torch.float16, 20, 33, False),
    "one-key": (2, 16, Tiles(1, 1, 16, False, 2), True, torch.bfloat16, 3, 1, False),
    "few-channels": (4, 8, Tiles(2, 1, 16, True, 3), False, torch.float16, 16, 32, False),
    "little-memory": (4, 40, Tiles(2, 2, 16, False, 2), True, torch.float16, 33, 80, True),
    "many-channels": (2, 160, Tiles(1, 1, 16, True, 4), True, torch.bfloat16, 17, 48, True),
}

Emulate = Callable[[Tiles, bool, Tensor, Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]


@pytest.fixture(scope="module")
def emulate(tmp_path_factory: pytest.TempPathFactory) -> Emulate:
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    folder, numbers = tmp_path_factory.mktemp("cuda"), itertools.count()

    def compiled(name: str, constants: dict[str, int]) -> ctypes.CDLL:
        source, library = folder / f"{next(numbers)}.cpp", folder / f"{next(numbers)}.so"
        kernel = cuda_build.source(cuda_build.PARTS, cuda_build.KERNELS[name]).decode()
        source.write_text(f'#include "emulated_cuda.h"\n{kernel}\nEMULATE({name}, Arguments)\n')
        options = ["-O1", "-std=c++17", "-shared", "-fPIC", "-Wno-unknown-pragmas", f"-I{Path(__file__).parent}"]
        defined = [f"-D{constant}={number}" for constant, number in constants.items()]
        subprocess.run([compiler, *options, *defined, str(source), "-o", str(library)], check=True, timeout=200)
        return ctypes.CDLL(str(library))

    def run(
        tiles: Tiles, apart: bool, query: Tensor, key: Tensor, value: Tensor, coeff: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        (batch, heads, queries, channels), keys = query.shape, key.shape[2]
        even = [keys % tiles.keys == 0, keys % STATS_TILES.keys == 0]
        recombine = compiled(
            "recombine", cuda_attention.constants(query.dtype, heads, channels, tiles, apart, even[0])
        ).emulate
        row_stats = None
        if apart:
            constants = cuda_attention.stats_constants(query.dtype, heads, channels, even[1])
            row_stats = compiled("row_stats", constants).emulate
        found = []
        for late in (False, True):
            out = torch.full((batch, queries, heads, channels), torch.nan, dtype=query.dtype)
            stats = torch.full((batch, heads, 2, queries), torch.nan)
            given = cuda_attention.arguments(query, key, value, coeff, out, stats, scale)
            if row_stats is not None:
                memory, blocks = STATS_TILES.shared_memory(channels), -(-queries // (ROWS * STATS_TILES.rows))
                row_stats(late, 32 * STATS_TILES.warps, memory, blocks, batch, heads, given)
            memory, blocks = tiles.shared_memory(heads, channels), -(-queries // (ROWS * tiles.rows))
            recombine(late, 32 * tiles.warps(heads), memory, blocks, batch, 1, given)
            found.append((out.transpose(1, 2), stats))
        for first, second in zip(*found, strict=True):  # nothing depends on the order of what has none
            torch.testing.assert_close(first, second, rtol=0, atol=0)
        return found[0]

    return run


@pytest.mark.parametrize("case", CASES)
def test_is_as_exact_as_plain_attention(case: str, emulate: Emulate) -> None:
    heads, channels, tiles, apart, dtype, queries, keys, per_sample = CASES[case]
    torch.manual_seed(0)
    shapes = [(2, rows, heads, channels) for rows in (queries, keys, keys)]
    query, key, value = (torch.randn(shape).to(dtype).transpose(1, 2) for shape in shapes)
    coeff = 0.5 * torch.randn((2, heads, heads) if per_sample else (heads, heads))
    scale = 1.3 * channels**-0.5
    out, stats = emulate(tiles, apart, query, key, value, coeff, scale)

    exact = recombined_attention(query.double(), key.double(), value.double(), coeff.double(), scale=scale)
    plain = scaled_dot_product_attention(query, key, value, scale=scale)
    exact_plain = scaled_dot_product_attention(query.double(), key.double(), value.double(), scale=scale)

    def error(actual: Tensor, expected: Tensor) -> float:
        return float((actual.double() - expected).norm() / expected.norm())

    assert error(out, exact) <= 2 * max(error(plain, exact_plain), torch.finfo(dtype).eps / 4)
    scores = scale * query.double() @ key.double().transpose(-1, -2)
    maps = torch.exp2(scores * LOG2_E - stats[:, :, 0, :, None]) * stats[:, :, 1, :, None]
    torch.testing.assert_close(maps, scores.softmax(-1), rtol=1e-4, atol=1e-5)


def test_a_slice_of_a_larger_tensor(emulate: Emulate) -> None:
    """As a projection to queries, keys and values at once leaves them."""
    joined = torch.randn(1, 16, 3, 2, 16, dtype=torch.float16)
    query, key, value = joined.unbind(2)
    views = [x.transpose(1, 2) for x in (query, key, value)]
    assert all(cuda_attention._readable(x) is x for x in views)
    coeff = torch.randn(2, 2)
    out, _ = emulate(Tiles(2, 1, 16, True, 4), True, *views, coeff, 0.25)
    expected = recombined_attention(*(x.float() for x in views), coeff, scale=0.25).half()
    torch.testing.assert_close(out, expected, rtol=0.01, atol=0.01)
