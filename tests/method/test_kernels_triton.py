"""Recombined attention in Triton: through its interpreter, through its compiler, and on a GPU where there is one.

The interpreter has to be chosen before Triton is imported, so it works in a process of its own: this file as a script,
which computes the errors of every case in `CASES`.
"""

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from coeff_diffusion.method.recombination import recombined_attention

pytest.importorskip("triton")  # there is none for macOS

Attention = Callable[..., Tensor]
NAMES = ["out", "dquery", "dkey", "dvalue", "dcoeff"]

# name: heads, channels, dtype, a matrix for each sample, mask
CASES: dict[str, tuple[int, int, torch.dtype, bool, str | None]] = {
    "one-head": (1, 8, torch.float32, False, None),
    "odd-channels": (5, 13, torch.float32, False, None),
    "half": (3, 64, torch.float16, True, None),
    "half-sd": (8, 40, torch.float16, False, None),
    "bool": (3, 8, torch.float16, False, "bool"),
    "additive": (3, 8, torch.float32, True, "additive"),
    "padding": (2, 8, torch.float16, True, "padding"),
    "blind": (3, 8, torch.float32, False, "blind"),
    "blind-half": (3, 8, torch.float16, False, "blind"),
    "lowest": (2, 8, torch.float32, False, "lowest"),
}


def make_mask(kind: str | None, batch: int, heads: int, queries: int, keys: int, dtype: torch.dtype) -> Tensor | None:
    if kind is None:
        return None
    if kind == "additive":
        return torch.randn(queries, keys).to(dtype)
    if kind == "padding":  # [B, H, 1, M], as diffusers prepares it
        return torch.where(torch.rand(batch, 1, 1, keys) > 0.3, 0.0, -10000.0).to(dtype).expand(-1, heads, -1, -1)
    if kind == "lowest":  # a row of it is a row of equal scores, not a blind one
        mask = torch.zeros(queries, keys)
        mask[::3] = torch.finfo(torch.float32).min
        return mask
    mask = torch.rand(batch, 1, queries, keys) > 0.5
    mask[..., 0] = True
    if kind == "blind":  # some queries may attend to nothing, some keys are attended to by nobody
        mask[:, :, ::3] = False
        mask[..., 5] = False
    return mask


def results(function: Attention, inputs: list[Tensor], dout: Tensor) -> list[Tensor]:
    """The output and the gradients of all inputs."""
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, dout.to(out.dtype))]


def errors(
    function: Attention,
    batch: int,
    heads: int,
    channels: int,
    queries: int,
    keys: int,
    dtype: torch.dtype,
    per_sample: bool,
    mask_kind: str | None,
    device: str = "cpu",
) -> dict[str, float]:
    """Errors of the output and the gradients against float64, in units of plain attention's; NaN where not finite."""
    torch.manual_seed(0)
    shapes = [(batch, n, heads, channels) for n in (queries, keys, keys)]
    query, key, value = (torch.randn(shape).to(device, dtype).transpose(1, 2) for shape in shapes)
    coeff = 0.5 * torch.randn((batch, heads, heads) if per_sample else (heads, heads)).to(device)
    dout = torch.randn(batch, heads, queries, channels).to(device, dtype)
    mask = make_mask(mask_kind, batch, heads, queries, keys, dtype)
    mask = None if mask is None else mask.to(device)
    exact_mask = mask if mask is None or mask.dtype == torch.bool else mask.double()

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        chosen = mask if q.dtype == dtype else exact_mask
        return scaled_dot_product_attention(q, k, v, chosen)

    inputs = [query, key, value, coeff]
    ours = results(lambda *x: function(*x, mask), inputs, dout)
    exact = results(lambda *x: recombined_attention(*x, exact_mask), [x.double() for x in inputs], dout.double())
    base = results(plain, inputs[:3], dout)
    exact_base = results(plain, [x.double() for x in inputs[:3]], dout.double())
    assert [x.dtype for x in ours] == [x.dtype for x in (query, *inputs)]

    def error(actual: Tensor, expected: Tensor) -> float:
        return ((actual.double() - expected).norm() / expected.norm()).item()

    floors = [error(x, y) for x, y in zip(base, exact_base, strict=True)]
    floors.append(max(floors))  # plain attention has no coefficients
    return {
        name: error(x, y) / floor for name, x, y, floor in zip(NAMES, ours, exact, floors, strict=True)
    }  # NaN compares as false below


def interpret() -> None:
    """What the child process does."""
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    from coeff_diffusion.method.kernels.triton_attention import supports, triton_attention

    found: dict[str, Any] = {}
    for name, (heads, channels, dtype, per_sample, mask) in CASES.items():
        batch = 2 if per_sample else 1
        found[name] = errors(triton_attention, batch, heads, channels, 37, 77, dtype, per_sample, mask)
    x = torch.randn(1, 1, 4, 8)
    found["supports"] = [
        supports(x, x, x),
        supports(x, x, x, torch.ones(4, 4)),
        supports(x, x, x, torch.ones(4, 4).requires_grad_()),
        supports(x.bfloat16(), x.bfloat16(), x.bfloat16()),
        supports(x.double(), x.double(), x.double()),
        supports(x, x, torch.randn(1, 1, 4, 9)),
    ]
    blind = triton_attention(x, x, x, torch.zeros(1, 1), torch.zeros(4, 4, dtype=torch.bool))
    found["blind rows are zero"] = not blind.any()
    found["no keys"] = not triton_attention(x, x[:, :, :0], x[:, :, :0], torch.zeros(1, 1)).any()
    print(json.dumps(found))


@pytest.fixture(scope="module")
def interpreted() -> dict[str, Any]:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    command = [sys.executable, "-W", "error", str(Path(__file__))]
    child = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout)  # type: ignore[no-any-return]


@pytest.mark.timeout(1800)  # whichever case comes first waits for all of them
@pytest.mark.parametrize("case", CASES)
def test_is_as_exact_as_plain_attention(case: str, interpreted: dict[str, Any]) -> None:
    found = interpreted[case]
    assert list(found) == NAMES
    assert all(ratio <= 2 for ratio in found.values()), found


def test_says_what_it_supports(interpreted: dict[str, Any]) -> None:
    assert interpreted["supports"] == [True, True, False, False, False, False]


@pytest.mark.parametrize("what", ["blind rows are zero", "no keys"])
def test_in_the_interpreter(what: str, interpreted: dict[str, Any]) -> None:
    assert interpreted[what]


# ---- the compiler, which needs no GPU --------------------------------------------------------------------------------

# name: heads, channels, dtype, mask, compute capability, shared memory that a program may have there, kernels
LAYERS: dict[str, tuple[int, int, str, str, int, int, list[str]]] = {
    "sd-40": (8, 40, "fp16", "none", 90, 232448, ["wide", "shares", "wide_score_grad by key"]),
    "sd-160": (8, 160, "bf16", "none", 80, 166912, ["mix", "shares", "score_grad by key"]),
    "sdxl-64": (20, 64, "bf16", "bool", 90, 232448, ["stats", "mix", "mix by key", "score_grad"]),
    "sdxl-64-small": (10, 64, "fp16", "none", 86, 101376, ["mix", "score_grad by key"]),
    "odd-13": (5, 13, "fp32", "bias", 80, 166912, ["mix", "score_grad"]),
}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("layer", "what"), [(layer, what) for layer, given in LAYERS.items() for what in given[-1]])
def test_compiles(layer: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from coeff_diffusion.method.kernels import triton_kernels, triton_maps, triton_tiles, triton_wide

    heads, channels, dtype, mask, capability, memory, _ = LAYERS[layer]
    kernel, key_rows = what.removesuffix(" by key"), what.endswith(" by key")
    itemsize = 4 if dtype == "fp32" else 2
    chosen = "dvalue" if what == "mix by key" else kernel
    tiles = triton_tiles.tiles_of(chosen, heads, channels, itemsize, divmod(capability, 10))
    assert tiles is not None, "the other way would be taken"
    name = f"{kernel.removesuffix('_few')}_kernel"
    function = getattr(triton_kernels, name, None) or getattr(triton_wide, name)
    width = tiles.group * channels
    (d0, d1), (w0, w1) = map(triton_tiles.split_channels, (channels, width))
    constants: dict[str, Any] = {"H": heads, "D": channels, "D0": d0, "D1": d1, "W": width, "W0": w0, "W1": w1}
    constants |= {"MASK": mask, "KEY_ROWS": key_rows, "EVEN": mask == "none", "KEEP": True}
    constants |= {"R": tiles.rows, "C": tiles.columns, "G": tiles.group}
    plain = {"rows": "i32", "columns": "i32", "scale": "fp32", "out_scale": "fp32"}
    masks = {"none": "i32", "bool": "*u8", "bias": f"*{dtype}"}  # without a mask there is a zero
    signature: dict[str, Any] = {}
    attributes = {}  # which pointers and strides are multiples of 16: all of them
    for i, argument in enumerate(function.arg_names):
        if argument in constants:
            signature[argument] = "constexpr"
        elif argument in plain:
            signature[argument] = plain[argument]
        elif argument == "mask":
            signature[argument] = triton_maps.Mask(masks[mask], "i32", "i32", "i32", "i32")
        elif argument == "coeff":
            signature[argument] = triton_maps.Coefficients("*fp32", "i32", "i32", "i32")
        else:
            in_float32 = argument in ("stats", "sums", "mean")
            signature[argument] = triton_maps.Heads("*fp32" if in_float32 else f"*{dtype}", "i32", "i32", "i32")
            attributes |= {(i, field): [["tt.divisibility", 16]] for field in range(4)}
    constants = {argument: value for argument, value in constants.items() if argument in signature}
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compiled = triton.compile(
        ASTSource(function, signature, constants, attributes),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": tiles.warps, "num_stages": tiles.stages},
    )
    assert f".target sm_{capability}" in compiled.asm["ptx"]
    assert compiled.metadata.shared <= memory
    if dtype != "fp32":  # all products on the tensor cores
        assert ("wgmma" if capability == 90 else "mma.sync") in compiled.asm["ptx"]


class NoDevice:
    """What Triton asks of a device to compile for it."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


@pytest.mark.timeout(600)
def test_what_the_backward_launches_is_compiled_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In threads, from the first forward on, and found by the same keys; only launching it needs a GPU."""
    import triton
    from triton.runtime.driver import driver

    from coeff_diffusion.method.kernels import triton_ahead, triton_attention, triton_launch, triton_tiles

    begun: dict[Any, Any] = {}
    waited: list[Any] = []
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(driver, "_active", NoDevice())
    monkeypatch.setattr(triton_ahead, "_begun", begun)
    monkeypatch.setattr(triton_ahead, "PARSES_IN_THREADS", True)
    monkeypatch.setattr(triton_ahead, "_pool", ThreadPoolExecutor(1))  # of which one parses at a time, on any Python
    monkeypatch.setattr(
        triton_launch, "_tiles", lambda *layer_and_device: triton_tiles.tiles_of(*layer_and_device[:-1], (9, 0))
    )
    query, key, value, dout = (torch.randn(1, 64, 3, 24).half().transpose(1, 2) for _ in range(4))
    coeff, stats, needed = torch.randn(3, 3), torch.randn(1, 3, 2, 64), (True, True, True, True)
    for _ in range(2):
        triton_attention._rehearse_backward(query, key, value, coeff, stats, None, 0.2, needed)
    for future in begun.values():
        future.result(timeout=500)
    binaries = sorted(tmp_path.rglob("*.cubin"))
    assert len(begun) == len(binaries) == 4  # of values, of shares, of queries, of keys

    def launched(*arguments: Any, warmup: bool, **options: Any) -> Any:
        return run(*arguments, warmup=True, **options)  # all but the launch

    run = triton.JITFunction.run
    monkeypatch.setattr(triton.JITFunction, "run", launched)
    monkeypatch.setattr(triton.compiler.CompiledKernel, "__getitem__", lambda kernel, grid: None)
    monkeypatch.setattr(triton_ahead, "wait", waited.append)
    monkeypatch.setattr(triton_launch, "_known", {})
    triton_attention._backward(dout, query, key, value, coeff, stats, None, 0.2, needed)
    assert waited == list(begun)
    assert sorted(tmp_path.rglob("*.cubin")) == binaries


@pytest.mark.parametrize("kernel", ["mix", "dvalue", "shares", "score_grad"])
@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0), (12, 0)])
def test_every_layer_has_tiles(kernel: str, itemsize: int, capability: tuple[int, int]) -> None:
    from coeff_diffusion.method.kernels.triton_tiles import split_channels, tiles_of

    for heads in (1, 3, 5, 8, 10, 16, 20, 24):
        for channels in (3, 13, 40, 64, 80, 96, 128, 160, 256):
            assert channels <= sum(split_channels(channels)) <= max(16, 2 * channels)
            tiles = tiles_of(kernel, heads, channels, itemsize, capability)
            assert tiles is not None
            assert 1 <= tiles.group <= heads
            assert tiles.rows % 16 == tiles.columns % 16 == 0
            if kernel == "shares":  # whose groups are views
                assert heads % tiles.group == 0


# ---- a GPU -----------------------------------------------------------------------------------------------------------

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("heads", "channels", "queries", "keys", "mask"),
    [
        (8, 40, 4096, 4096, None),
        (8, 40, 4096, 77, None),
        (8, 80, 1024, 1024, "bool"),
        (8, 160, 256, 77, "padding"),
        (10, 64, 1024, 1024, "additive"),
        (20, 64, 1000, 77, "blind"),
        (5, 13, 1001, 333, None),
    ],
)
def test_is_as_exact_as_plain_attention_on_a_gpu(
    heads: int, channels: int, queries: int, keys: int, mask: str | None, dtype: torch.dtype, per_sample: bool
) -> None:
    from coeff_diffusion.method.kernels.triton_attention import triton_attention

    found = errors(triton_attention, 2, heads, channels, queries, keys, dtype, per_sample, mask, "cuda")
    assert all(ratio <= 2 for ratio in found.values()), found


@pytest.mark.gpu
@needs_cuda
def test_same_bits_again_and_no_maps_in_memory_on_a_gpu() -> None:
    from coeff_diffusion.method.kernels.triton_attention import triton_attention

    inputs = [torch.randn(2, 4096, 8, 40, device="cuda", dtype=torch.float16).transpose(1, 2) for _ in range(3)]
    inputs.append(torch.randn(8, 8, device="cuda"))
    first = results(triton_attention, inputs, inputs[0])
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    second = results(triton_attention, inputs, inputs[0])
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    assert torch.cuda.max_memory_allocated() - before < 2 * 8 * 4096 * 4096 // 2  # a quarter of the maps' size


@pytest.mark.gpu
@needs_cuda
def test_compiles_into_one_graph_on_a_gpu() -> None:
    from coeff_diffusion.method.kernels import recombined_attention

    inputs = [torch.randn(2, 64, 8, 40, device="cuda", dtype=torch.float16).transpose(1, 2) for _ in range(3)]
    inputs.append(torch.randn(8, 8, device="cuda"))
    compiled = torch.compile(recombined_attention, fullgraph=True)
    pairs = zip(*(results(way, inputs, inputs[0]) for way in (compiled, recombined_attention)), strict=True)
    for x, y in pairs:
        torch.testing.assert_close(x, y)


if __name__ == "__main__":
    interpret()
