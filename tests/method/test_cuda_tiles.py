"""How the CUDA kernels cut a layer, and what NVRTC makes of them."""

import pytest
from gpu_code import DEVICES, LAUNCH, LAYERS, MEASURED, Measured, compiled, milliseconds, nvrtc, per_map, tool

from coeff_diffusion.method.kernels.cuda_tiles import (
    REGISTERS,
    STATS_TILES,
    Layer,
    instructions,
    registers_of_a_thread,
    threads_of_a_block,
    tiles_of,
)


@pytest.mark.parametrize("architecture", DEVICES)
@pytest.mark.parametrize(
    ("heads", "channels"), [(8, 40), (8, 80), (8, 160), (5, 64), (10, 64), (20, 64), (16, 72), (24, 64), (1, 8)]
)
def test_tiles_fit(heads: int, channels: int, architecture: str) -> None:
    device, _ = DEVICES[architecture]
    for queries, batch in ((4096, 2), (4096, 8), (256, 1), (1, 1)):
        for bfloat16 in (True, False):
            layer = Layer(heads, channels, queries, queries, batch, bfloat16)
            tiles = tiles_of(layer, device)
            if tiles is None:
                assert 2 * 16 * heads * channels * 2 > 0.8 * device.shared_memory  # really large
                continue
            assert tiles.shared_memory(heads, channels) <= device.shared_memory
            assert tiles.registers(channels, bfloat16) < registers_of_a_thread(tiles.warps(heads))
            assert 0 <= tiles.groups(heads) * tiles.group - heads < tiles.group
            assert tiles.places == 4 or tiles.groups(heads) > 1
        assert STATS_TILES.shared_memory(channels) <= device.shared_memory


def test_registers_of_a_multiprocessor_suffice() -> None:
    assert [registers_of_a_thread(warps) for warps in (4, 8, 9, 12, 16)] == [255, 255, 168, 168, 128]


@pytest.mark.parametrize("measured", MEASURED, ids=lambda one: f"{one.layer}-{one.batch}")
def test_the_count_is_near_what_was_measured(measured: Measured) -> None:
    layer = Layer(*LAYERS[measured.layer], measured.batch, True)
    counted = milliseconds(measured.tiles, layer, "sm_90", apart=False) + LAUNCH
    assert counted == pytest.approx(measured.milliseconds, rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "batch", "dtype", "architecture"),
    [
        ("sd15-64", 8, "bfloat16", "sm_90"),
        ("sd15-64", 2, "float16", "sm_80"),
        ("sd15-64-text", 2, "bfloat16", "sm_86"),
        ("sd21-32", 2, "bfloat16", "sm_120"),
        ("xl-64", 2, "bfloat16", "sm_89"),
        ("xl-32", 8, "float16", "sm_90"),
    ],
)
def test_compiles_with_few_registers_spilt(name: str, batch: int, dtype: str, architecture: str) -> None:
    if nvrtc() is None or tool("nvdisasm") is None:
        pytest.skip("needs NVRTC and Triton: pip install nvidia-cuda-nvrtc-cu12==12.8.93 triton")
    layer = Layer(*LAYERS[name], batch, dtype == "bfloat16")
    tiles = tiles_of(layer, DEVICES[architecture][0])
    assert tiles is not None
    found = compiled(layer, tiles, architecture)
    code = found["recombine"]
    assert code.registers * threads_of_a_block(tiles.warps(layer.heads)) <= REGISTERS
    assert code.stack <= 64
    assert len(code.loops) == (1 if layer.apart else 2)
    assert per_map(code, tiles) == pytest.approx(instructions(tiles, layer), rel=0.2 if layer.apart else 0.5)
    if layer.apart:
        stats = found["row_stats"]
        assert stats.stack == 0
        assert stats.registers * 32 * STATS_TILES.warps * 4 <= REGISTERS  # four blocks, to hide each other's waits
        assert stats.loops[0]["MUFU"] * 8 >= stats.loops[0].total()  # exponentials bound it, at an eighth of the rate
