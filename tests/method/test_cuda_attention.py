"""The CUDA kernel, run on a CPU by an emulation of what it asks of a GPU (`emulated_cuda.h`), and what leads to it."""

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
from coeff_diffusion.method.kernels.cuda_attention import LOG2_E, ROWS, Tiles, tiles_of
from coeff_diffusion.method.recombination import recombined_attention

# shared memory of a block by compute capability
MEMORY = {"8.0": 166912, "8.6": 101376, "9.0": 232448}

# name: heads, channels, tiles, type, queries, keys, a matrix for each sample
CASES: dict[str, tuple[int, int, Tiles, torch.dtype, int, int, bool]] = {
    "sd15": (8, 40, Tiles(4, 1, 32), torch.bfloat16, 16, 64, False),
    "uneven": (8, 40, Tiles(4, 2, 16), torch.bfloat16, 37, 77, True),
    "float16": (3, 40, Tiles(2, 2, 32), torch.float16, 33, 77, True),
    "five-heads": (5, 64, Tiles(2, 1, 16), torch.float16, 20, 33, False),
    "one-key": (2, 16, Tiles(2, 1, 16), torch.bfloat16, 3, 1, False),
    "few-channels": (4, 8, Tiles(4, 1, 16), torch.float16, 16, 32, False),
    "many-channels": (2, 160, Tiles(1, 1, 16), torch.bfloat16, 17, 48, True),
}

Emulate = Callable[[Tiles, Tensor, Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]


@pytest.fixture(scope="module")
def emulate(tmp_path_factory: pytest.TempPathFactory) -> Emulate:
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    folder, numbers = tmp_path_factory.mktemp("cuda"), itertools.count()

    def run(
        tiles: Tiles, query: Tensor, key: Tensor, value: Tensor, coeff: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        batch, heads, queries, channels = query.shape
        even = key.shape[2] % tiles.keys == 0
        constants = cuda_attention.constants(query.dtype, heads, channels, tiles, even)
        source, library = folder / f"{next(numbers)}.cpp", folder / f"{next(numbers)}.so"
        kernel = cuda_build.SOURCES[1].read_text()
        source.write_text(f'#include "emulated_cuda.h"\n{kernel}\nEMULATE(recombine, Arguments)\n')
        options = ["-O1", "-std=c++17", "-shared", "-fPIC", "-Wno-unknown-pragmas", f"-I{Path(__file__).parent}"]
        defined = [f"-D{name}={number}" for name, number in constants.items()]
        subprocess.run([compiler, *options, *defined, str(source), "-o", str(library)], check=True, timeout=200)
        out = torch.full((batch, queries, heads, channels), torch.nan, dtype=query.dtype)
        stats = torch.full((batch, heads, 2, queries), torch.nan)
        arguments = cuda_attention.arguments(query, key, value, coeff, out, stats, scale)
        ctypes.CDLL(str(library)).emulate(
            32 * tiles.warps(heads), tiles.shared_memory(heads, channels), -(-queries // (ROWS * tiles.rows)), batch,
            arguments,
        )  # fmt: skip
        return out.transpose(1, 2), stats

    return run


@pytest.mark.parametrize("case", CASES)
def test_is_as_exact_as_plain_attention(case: str, emulate: Emulate) -> None:
    heads, channels, tiles, dtype, queries, keys, per_sample = CASES[case]
    torch.manual_seed(0)
    shapes = [(2, rows, heads, channels) for rows in (queries, keys, keys)]
    query, key, value = (torch.randn(shape).to(dtype).transpose(1, 2) for shape in shapes)
    coeff = 0.5 * torch.randn((2, heads, heads) if per_sample else (heads, heads))
    scale = 1.3 * channels**-0.5
    out, stats = emulate(tiles, query, key, value, coeff, scale)

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
    found = [
        emulate(Tiles(2, 1, 16), *x, coeff, 0.25)[0]
        for x in (views, [x.contiguous() for x in map(cuda_attention._readable, views)])
    ]
    torch.testing.assert_close(
        found[0], recombined_attention(*(x.float() for x in views), coeff, scale=0.25).half(), rtol=0.01, atol=0.01
    )


@pytest.mark.parametrize("capability", MEMORY)
@pytest.mark.parametrize(
    ("heads", "channels"), [(8, 40), (8, 80), (8, 160), (5, 64), (10, 64), (20, 64), (16, 72), (1, 8)]
)
def test_tiles_fit(heads: int, channels: int, capability: str) -> None:
    for queries, batch in ((4096, 2), (4096, 8), (256, 1), (1, 1)):
        tiles = tiles_of(heads, channels, queries, batch, MEMORY[capability], 132)
        if tiles is None:
            assert 4 * 16 * heads * channels * 2 > MEMORY[capability] // 2  # really large
            continue
        assert tiles.shared_memory(heads, channels) <= MEMORY[capability]
        assert tiles.warps(heads) <= 16
        assert 0 <= -(-heads // tiles.group) * tiles.group - heads < tiles.group


def test_tiles_that_were_measured() -> None:
    """On an H100, where others took longer."""
    best = {(8, 40, 4096): Tiles(4, 4, 32), (8, 80, 1024): Tiles(2, 2, 32), (8, 160, 256): Tiles(1, 1, 16)}
    for (heads, channels, queries), tiles in best.items():
        assert tiles_of(heads, channels, queries, 8, MEMORY["9.0"], 132) == tiles
