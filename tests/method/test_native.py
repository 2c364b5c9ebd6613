"""The CPU kernel: exact whatever it is given, and the same bits every time."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from exactness import Watch, assert_as_exact_as_plain, error, exact, gradients, masked, mean_error
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from coeff_diffusion.method.kernels import blocked, native, native_build, recombined_attention
from coeff_diffusion.method.kernels.build_error import BuildError
from coeff_diffusion.method.kernels.native import native_attention


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


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    size=st.sampled_from([1, 3, 10, 30, 100]),
    batch=st.integers(1, 3),
    heads=st.integers(1, 12),
    queries=st.integers(16, 120),
    keys=st.sampled_from([2, 4, 16, 33, 77, 300]),
    channels=st.sampled_from([3, 8, 40, 64, 160]),
    per_sample=st.booleans(),
)
def test_gradients_of_maps_that_are_nearly_one_hot(
    size: int, batch: int, heads: int, queries: int, keys: int, channels: int, per_sample: bool
) -> None:
    """Each term is a difference of numbers that are nearly equal: maps that do not sum to one would be all of it."""
    torch.manual_seed(0)
    query, key, value, coeff = inputs(batch, heads, queries, keys, channels, channels)
    tensors = [size * query, key, value, coeff if per_sample else coeff[0]]
    plain_tensors = [*tensors[:3], torch.zeros(heads, heads)]
    plain = gradients(scaled_dot_product_attention, tensors[:3])
    allowed = map(mean_error, plain, gradients(exact, plain_tensors))
    for ours, best, plain_error in zip(
        gradients(native_attention, tensors), gradients(exact, tensors), allowed, strict=False
    ):
        assert mean_error(ours, best) <= 3 * plain_error + 4 * torch.finfo(torch.float32).eps


@pytest.mark.usefixtures("threads")
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    shape=shapes,
    dtype=dtypes,
    kind=st.sampled_from(["added", "keys", "blind", "one"]),
    threads=st.sampled_from([1, 2]),
)
def test_masks(shape: dict[str, int], dtype: torch.dtype, kind: str, threads: int) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    *projected, coeff = inputs(**shape)
    tensors = [*(x.to(dtype) for x in projected), coeff]
    mask = masked(kind, shape["batch"], shape["heads"], shape["queries"], shape["keys"], dtype)
    train = shape["keys"] > 1 and kind != "blind"  # where PyTorch's own gradients are NaN; the next test has ours
    assert_as_exact_as_plain(native_attention, tensors, mask, train)


@pytest.mark.parametrize("added", [False, True])
def test_queries_that_may_attend_to_nothing(added: bool) -> None:
    tensors = inputs(2, 3, 40, 300, 8, 16)
    allowed = torch.rand(40, 300) < 0.7
    allowed[::3] = False
    mask = torch.zeros(40, 300).masked_fill(~allowed, -torch.inf) if added else allowed
    output = native_attention(*tensors, mask)
    assert not output[:, :, ::3].any()
    for ours, best in zip(gradients(native_attention, tensors, mask), gradients(exact, tensors, mask), strict=True):
        assert error(ours, best) < 1e-5


def test_keys_that_are_masked_might_as_well_not_be_there() -> None:
    query, key, value, coeff = inputs(2, 3, 40, 300, 8, 16)
    mask = torch.rand(2, 1, 1, 300) < 0.5
    changed = [torch.where(mask.mT, x, 1e6 * x) for x in (key, value)]
    ours = native_attention(query, *changed, coeff, mask)
    assert torch.equal(ours, native_attention(query, key, value, coeff, mask))
    _, key_grad, value_grad, _ = gradients(native_attention, [query, key, value, coeff], mask)
    for grad in (key_grad, value_grad):
        assert not grad.masked_fill(mask.mT, 0).any()


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
    assert native.supports(query, key, value, mask)
    assert native.supports(query, key, value, mask == 0)
    assert not native.supports(query, key, value, mask.clone().requires_grad_())
    assert native.supports(query.bfloat16(), key.bfloat16(), value.bfloat16(), None)
    assert not native.supports(query.double(), key.double(), value.double(), None)
    for given_mask in (None, mask, mask == 0):
        with Watch() as seen:
            recombined_attention(query, key, value, coeff, given_mask)
        assert "aten.bmm" not in seen.count
    with Watch() as seen:
        recombined_attention(query.double(), key.double(), value.double(), coeff)
    assert "aten.bmm" in seen.count


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
