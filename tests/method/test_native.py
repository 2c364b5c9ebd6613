"""The CPU kernel: exact, the same bits every time, and done without where it cannot be compiled."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from exactness import Watch, assert_as_exact_as_plain, error, exact, gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from coeff_diffusion.method.kernels import blocked, native, native_build, recombined_attention
from coeff_diffusion.method.kernels.native import native_attention
from coeff_diffusion.method.kernels.native_build import BuildError


@pytest.fixture
def threads() -> Iterator[None]:
    """Whatever a test does about PyTorch's threads ends with it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def _compiler() -> None:
    try:
        meant = native_build.load()
    except BuildError as problem:
        if os.environ.get("CI"):
            pytest.fail(f"CI has to test the CPU kernel: {problem}")
        pytest.skip(str(problem))
    if meant is None:
        pytest.skip("there is no kernel for this machine")
    assert native.library() is not None


def inputs(batch: int, heads: int, queries: int, keys: int, channels: int, value_channels: int) -> list[Tensor]:
    """Query, key, value as a layer's projections leave them, `[B, N, H, D]` in memory, and coefficients per sample."""
    sizes = ((queries, channels), (keys, channels), (keys, value_channels))
    projected = [torch.randn(batch, rows, heads, width).transpose(1, 2) for rows, width in sizes]
    return [*projected, 0.3 * torch.randn(batch, heads, heads)]


shapes = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 3),
        "heads": st.integers(1, 21),
        "queries": st.integers(1, 150),
        "keys": st.integers(1, 300),
        "channels": st.sampled_from([1, 3, 8, 24, 40, 64, 80, 160]),
        "value_channels": st.sampled_from([1, 8, 40, 96, 160]),
    }
)
dtypes = st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float16])


@pytest.mark.usefixtures("threads")
@settings(max_examples=60, deadline=None, derandomize=True)
@given(shape=shapes, dtype=dtypes, per_sample=st.booleans(), threads=st.sampled_from([1, 2, 5]))
def test_errs_at_most_twice_as_much_as_plain_attention(
    shape: dict[str, int], dtype: torch.dtype, per_sample: bool, threads: int
) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    *projected, coeff = inputs(**shape)
    tensors = [*(x.to(dtype) for x in projected), coeff if per_sample else coeff[0]]
    train = shape["keys"] > 1  # the maps of one key are 1: queries and keys have no gradient but rounding
    assert_as_exact_as_plain(lambda *x: native_attention(*x[:4]), tensors, None, train=train)


@pytest.mark.parametrize(("queries", "keys"), [(16, 4096), (4096, 16)])
def test_long_sums_do_not_add_up_their_roundings(queries: int, keys: int) -> None:
    def mean_error(actual: Tensor, expected: Tensor) -> float:
        return float((actual - expected).square().mean().sqrt() / expected.square().mean().sqrt())

    tensors = inputs(1, 4, queries, keys, 40, 40)
    output = native_attention(*tensors)
    plain_tensors, zero = tensors[:3], torch.zeros(4, 4)
    plain = scaled_dot_product_attention(*plain_tensors)
    assert mean_error(output, exact(*tensors)) < 1.5 * mean_error(plain, exact(*plain_tensors, zero))
    own, best = gradients(native_attention, tensors), gradients(exact, tensors)
    plain_own = gradients(scaled_dot_product_attention, plain_tensors)
    plain_best = gradients(exact, [*plain_tensors, zero])
    errors = [mean_error(*pair) for pair in zip(own, best, strict=True)]
    plain_errors = [mean_error(*pair) for pair in zip(plain_own, plain_best, strict=False)]
    for ours, theirs in zip(errors, plain_errors, strict=False):
        assert ours < 1.5 * theirs
    assert errors[3] < 2 * max(plain_errors)


@pytest.mark.parametrize("size", [30.0, 1e4])
def test_scores_of_any_size(size: float) -> None:
    query, key, value, coeff = inputs(1, 3, 50, 70, 8, 8)
    best = exact(size * query, key, value, coeff)
    assert error(native_attention(size * query, key, value, coeff), best) < 1e-3  # float32 rounds such scores alike
    assert error(blocked.blocked_attention(size * query, key, value, coeff), best) < 1e-3


def test_what_is_not_a_number_stays_so() -> None:
    query, key, value, coeff = inputs(1, 3, 50, 70, 8, 8)
    query[0, 1, 7, 2] = torch.nan
    output = native_attention(query, key, value, coeff)
    assert output[0, :, 7].isnan().all()  # every head uses that map
    assert output.isnan().any(-1).sum() == 3


@pytest.mark.parametrize("wrong", range(5))
def test_shapes_that_do_not_fit(wrong: int) -> None:
    query, key, value, coeff = inputs(2, 4, 6, 7, 8, 8)
    key, value = [
        (key[:1], value), (key[:, :3], value[:, :3]), (key[..., :5], value), (key[:, :, :6], value), (key, value[:1])
    ][wrong]  # fmt: skip
    with pytest.raises(ValueError, match=r"query, key and value do not fit each other: \[2, 4, 6, 8\]"):
        native_attention(query, key, value, coeff)


def test_tensors_may_lie_anyhow() -> None:
    query, key, value, coeff = inputs(2, 4, 37, 45, 16, 16)
    expected = native_attention(query, key, value, coeff)
    turned = query.contiguous(), key.mT.contiguous().mT, value[:1].expand(2, -1, -1, -1)
    assert torch.equal(native_attention(*turned[:2], value, coeff.mT.contiguous().mT), expected)
    again = native_attention(query, key, value[:1].expand(2, -1, -1, -1).contiguous(), coeff)
    assert torch.equal(native_attention(query, key, turned[2], coeff), again)


@pytest.mark.usefixtures("threads")
def test_the_same_bits_every_time() -> None:
    tensors = [x.requires_grad_() for x in inputs(2, 8, 300, 300, 40, 40)]
    weights = torch.randn(2, 8, 300, 40)
    outputs = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        outputs.append(native_attention(*tensors).detach())
        runs = [torch.autograd.grad((native_attention(*tensors) * weights).sum(), tensors) for _ in range(3)]
        for run in runs[1:]:
            assert all(map(torch.equal, run, runs[0]))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_a_sample_does_not_depend_on_its_batch() -> None:
    tensors = inputs(3, 5, 60, 77, 24, 24)
    whole = native_attention(*tensors)
    for sample in range(3):
        assert torch.equal(native_attention(*(x[sample : sample + 1] for x in tensors))[0], whole[sample])


@pytest.mark.parametrize("needed", range(4))
def test_each_gradient_by_itself(needed: int) -> None:
    tensors = [x.detach().requires_grad_() for x in inputs(2, 3, 50, 70, 8, 16)]
    everything = torch.autograd.grad(native_attention(*tensors).square().sum(), tensors)
    alone = [x.detach().requires_grad_(i == needed) for i, x in enumerate(tensors)]
    native_attention(*alone).square().sum().backward()
    assert torch.equal(alone[needed].grad, everything[needed])  # type: ignore[arg-type]
    assert all(x.grad is None for i, x in enumerate(alone) if i != needed)


def test_training_uses_its_memory_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def largest(tensors: list[Tensor]) -> int:
        with Watch() as seen:
            output = native_attention(*tensors)
            if output.requires_grad:
                output.sum().backward()
        return seen.elements

    small, large = inputs(1, 4, 32, 64, 8, 8), inputs(1, 4, 64, 256, 8, 8)
    monkeypatch.setattr(native, "_kept", native._Kept())
    trained = [[x.detach().requires_grad_() for x in tensors] for tensors in (small, large)]
    first = largest(trained[1])
    assert largest(trained[1]) < first
    assert largest(trained[0]) < first  # a smaller layer takes a part of it
    assert largest(large) > largest(trained[1])  # sampling gives back what it took
    monkeypatch.setattr(native, "KEPT_ROOM", 0)
    assert largest(trained[1]) == first


def test_only_one_derivative() -> None:
    tensors = [x.requires_grad_() for x in inputs(1, 2, 5, 6, 4, 4)]
    (first,) = torch.autograd.grad(native_attention(*tensors).square().sum(), tensors[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_what_it_is_used_for() -> None:
    query, key, value, coeff = inputs(1, 2, 5, 6, 4, 4)
    mask = torch.zeros(5, 6)
    assert native.supports(query, key, value, None)
    assert not native.supports(query, key, value, mask)
    assert native.supports(query.bfloat16(), key.bfloat16(), value.bfloat16(), None)
    assert not native.supports(query.double(), key.double(), value.double(), None)
    with Watch() as seen:
        recombined_attention(query, key, value, coeff)
    assert "aten.bmm" not in seen.count
    with Watch() as seen:
        recombined_attention(query, key, value, coeff, mask)
    assert "aten.bmm" in seen.count


# ---- compiling -------------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "coeff-diffusion"


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`native.library` that has not looked yet."""
    monkeypatch.setattr(native, "library", native.library.__wrapped__)
    return native.library


def fake_compiler(folder: Path, body: str) -> str:
    script = folder / "compiler"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)
    return str(script)


def test_compiled_once(cache: Path) -> None:
    first = native_build.load()
    (made,) = cache.iterdir()  # nothing half done is left
    assert cache.stat().st_mode & 0o077 == 0
    before = made.stat().st_mtime_ns
    second = native_build.load()
    assert made.stat().st_mtime_ns == before
    assert isinstance(first, ctypes.CDLL)
    assert isinstance(second, ctypes.CDLL)


@pytest.mark.usefixtures("cache")
def test_another_default_device(library: Any) -> None:
    tensors = [x.requires_grad_() for x in inputs(1, 2, 5, 6, 4, 4)]
    with torch.device("meta"):
        assert library() is not None
        native_attention(*tensors).sum().backward()
    assert all(x.grad is not None and x.grad.device.type == "cpu" for x in tensors)


def test_another_compiler_makes_another_library(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    native_build.load()
    monkeypatch.setenv("CXX", fake_compiler(tmp_path, 'exec c++ "$@"'))
    native_build.load()
    assert len(list(cache.iterdir())) == 2


def without(library: Any, reason: str) -> None:
    """Attention works, with one warning, and computes the same."""
    tensors = inputs(1, 3, 20, 30, 8, 8)
    with pytest.warns(UserWarning, match=f"without its CPU kernel, slower: .*{reason}"):
        assert library() is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "library", lambda: None)
        torch.testing.assert_close(recombined_attention(*tensors), exact(*tensors).float())


@pytest.mark.usefixtures("cache")
def test_without_a_compiler(library: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    without(library, r"no C\+\+ compiler found \(c\+\+, g\+\+, clang\+\+\)")


@pytest.mark.parametrize("where", ["not wanted", "another CPU", "another system"])
def test_not_meant_to_be(where: str, library: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if where == "not wanted":
        monkeypatch.setenv("COEFF_DIFFUSION_NATIVE", "0")
    elif where == "another CPU":
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "NEON")
    else:
        monkeypatch.setattr(sys, "platform", "darwin")
    assert library() is None
    assert not cache.exists()


def test_narrower_vectors(library: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    narrow = library()
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(native, "library", lambda: narrow)
    assert_as_exact_as_plain(lambda *x: native_attention(*x[:4]), inputs(2, 5, 70, 300, 40, 24), None, train=True)


def test_a_compiler_that_fails(library: Any, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = 'test "$1" = --version && exit; echo "native.cpp:1:2: error: no such thing" >&2; exit 1'
    monkeypatch.setenv("CXX", fake_compiler(tmp_path, body))
    without(library, "failed: native.cpp:1:2: error: no such thing")
    assert not list(cache.iterdir())


def test_a_compiler_that_hangs(library: Any, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_build, "TIMEOUT", 0.2)
    monkeypatch.setenv("CXX", fake_compiler(tmp_path, 'test "$1" = --version || exec sleep 60'))
    without(library, "took more than 0.2 seconds")
    assert not list(cache.iterdir())


def test_a_library_that_is_broken(library: Any, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    native_build.load()
    (made,) = cache.iterdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    broken = tmp_path / "other" / cache.name / made.name
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"not a library")
    without(library, made.name)


@pytest.mark.usefixtures("cache")
def test_a_compiler_that_is_wrong(library: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = native_build.SOURCE.read_text()
    wrong = tmp_path / "wrong.cpp"
    wrong.write_text(source.replace("weight[h * H + j] * inverse", "2 * weight[h * H + j] * inverse"))
    assert wrong.read_text() != source
    monkeypatch.setattr(native_build, "SOURCE", wrong)
    without(library, "computes something else")


def test_a_cache_of_somebody_else(library: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    without(library, "others than you may write to .*coeff-diffusion")
    monkeypatch.undo()
    cache.chmod(0o777)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parent))
    monkeypatch.setattr(native, "library", library)
    without(library, "others than you may write to .*coeff-diffusion")


def test_no_place_for_a_cache(library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    without(library, "Could not determine home directory")
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    without(library, "/dev/null")


def test_shares_the_threads_of_pytorch() -> None:
    """A second OpenMP would bring threads of its own, which fight with PyTorch's for the cores."""
    script = (
        "import os, torch\n"
        "torch.set_num_threads(2)\n"
        "from coeff_diffusion.method.kernels import native, recombined_attention\n"
        "x = torch.randn(1, 4, 512, 16)\n"
        "torch.nn.functional.scaled_dot_product_attention(x, x, x)\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "recombined_attention(x, x, x, torch.randn(4, 4))\n"
        "print(native.library() is not None, before, len(os.listdir('/proc/self/task')))\n"
    )
    if not Path("/proc/self/task").exists():
        pytest.skip("needs /proc")
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded, before, after = run.stdout.split()
    assert loaded == "True"
    assert before == after
