"""Every way of computing recombined attention, held against float64 and against plain attention's own error."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from coeff_diffusion import recombination
from coeff_diffusion.kernels import blocked, diagonal_of, recombined_attention, scaled_attention

Attention = Callable[..., Tensor]


def exact(query: Tensor, key: Tensor, value: Tensor, coeff: Tensor | None, *rest: Any) -> Tensor:
    """The reference in float64; plain attention where there are no coefficients."""
    coeff = torch.zeros(query.shape[1], query.shape[1]) if coeff is None else coeff
    return recombination.recombined_attention(query.double(), key.double(), value.double(), coeff.double(), *rest)


def error(actual: Tensor, expected: Tensor) -> float:
    """The largest error, in units of the largest value (a hundredth where all values are near zero)."""
    return float((actual.double() - expected).abs().max() / expected.double().abs().max().clamp_min(0.01))


def gradients(attention: Attention, inputs: list[Tensor], *rest: Any) -> list[Tensor]:
    """Of a sum with fixed random weights, by query, key, value and, where there are any, the coefficients."""
    double = attention is exact
    leaves = [(x.double() if double else x).detach().clone().requires_grad_() for x in inputs]
    output = attention(*leaves, *rest)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return list(torch.autograd.grad((output.double() * weights).sum(), leaves))


def masked(kind: str, batch: int, heads: int, queries: int, keys: int, dtype: torch.dtype) -> Tensor | None:
    if kind == "none":
        return None
    if kind == "added":
        return torch.randn(batch, 1, queries, keys, dtype=dtype)
    if kind == "keys":  # the same for every query, as diffusers prepares a mask of the text
        return torch.where(torch.rand(batch, heads, 1, keys) < 0.3, -10_000.0, 0.0).to(dtype)
    allowed = torch.rand(queries, keys) < 0.7
    allowed[::3] = False  # these may attend to nothing
    return allowed


shapes = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 3),
        "heads": st.integers(1, 9),
        "queries": st.integers(1, 50),
        "keys": st.integers(1, 90),
        "channels": st.sampled_from([1, 3, 8, 40, 64, 80]),
        "per_sample": st.booleans(),
        "mask": st.sampled_from(["none", "added", "keys", "blind"]),
        "dtype": st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
        "block": st.sampled_from([1, 300, 1 << 20]),
        "threads": st.sampled_from([1, 4]),
        "kept": st.sampled_from([0, blocked.KEPT_MAPS]),
    }
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(shape=shapes)
def test_blocked_errs_at_most_twice_as_much_as_plain_attention(shape: dict[str, Any]) -> None:
    torch.manual_seed(0)
    batch, heads, dtype = shape["batch"], shape["heads"], shape["dtype"]
    query, key, value = (
        torch.randn(batch, heads, shape[n], shape["channels"]).to(dtype) for n in ("queries", "keys", "keys")
    )
    coeff = 0.2 * torch.randn(*([batch] if shape["per_sample"] else []), heads, heads)
    mask = masked(shape["mask"], batch, heads, shape["queries"], shape["keys"], dtype)
    double = mask.double() if mask is not None and mask.dtype != torch.bool else mask
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocked, "BLOCK_MAP", shape["block"])
        patch.setattr(blocked, "MIXED_MAP", shape["block"] // 4)
        patch.setattr(blocked, "KEPT_MAPS", shape["kept"])
        patch.setattr(torch, "get_num_threads", lambda: shape["threads"])
        actual = recombined_attention(query, key, value, coeff, mask)
        plain = scaled_dot_product_attention(query, key, value, attn_mask=mask)
        # A tiny problem may come out without any error by luck: a few roundings are always allowed.
        allowed = 2 * error(plain, exact(query, key, value, None, double)) + 4 * torch.finfo(dtype).eps
        assert actual.dtype == dtype
        assert error(actual, exact(query, key, value, coeff, double)) <= allowed

        if shape["mask"] == "blind":
            return  # PyTorch's own gradients are NaN there; the next test has ours
        own = gradients(recombined_attention, [query, key, value, coeff], mask)
        best = gradients(exact, [query, key, value, coeff], double)
        plain_own = gradients(lambda q, k, v: scaled_dot_product_attention(q, k, v, mask), [query, key, value])
        zero = torch.zeros(heads, heads)
        plain_best = gradients(exact, [query, key, value, zero], double)[:3]
        for ours, right, theirs, plain_right in zip(own, best, plain_own, plain_best, strict=False):
            assert error(ours, right) <= 2 * error(theirs, plain_right) + 8 * torch.finfo(dtype).eps
        assert error(own[3], best[3]) <= 32 * torch.finfo(dtype).eps  # a sum over all maps, of rounded gradients


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("mask", ["none", "added", "blind"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kept", [0, blocked.KEPT_MAPS])
def test_gradients_in_float64(
    per_sample: bool, mask: str, threads: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocked, "KEPT_MAPS", kept)
    monkeypatch.setattr(blocked, "BLOCK_MAP", 16)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    batch, queries = (2, 18) if per_sample else (1, 34)
    inputs = [
        torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for shape in ((batch, 3, queries, 2), (batch, 3, 5, 2), (batch, 3, 5, 4), (*[batch] * per_sample, 3, 3))
    ]
    allowed = masked(mask, batch, 3, queries, 5, torch.float64)
    assert torch.autograd.gradcheck(lambda *x: recombined_attention(*x, allowed, 0.7), inputs)


def test_gradients_that_nobody_needs_are_not_computed() -> None:
    query, key, value = (torch.randn(1, 4, 6, 8) for _ in range(3))
    coeff = torch.randn(4, 4, requires_grad=True)
    with LargestTensor() as seen:
        recombined_attention(query, key, value, coeff).sum().backward()
    assert coeff.grad is not None
    assert seen.count["aten._softmax_backward_data"] == 0


class LargestTensor(TorchDispatchMode):
    """Watches every operation, forward and backward: the most elements of a tensor, and how often each was called."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0
        self.count: dict[str, int] = {"aten._softmax_backward_data": 0}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = str(func.overloadpacket)
        self.count[name] = self.count.get(name, 0) + 1
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_all_maps_never_exist_at_once(train: bool, masked: bool) -> None:
    batch, heads, tokens = 1, 8, 4096
    query, key, value = (torch.randn(batch, heads, tokens, 8, requires_grad=train) for _ in range(3))
    coeff = torch.randn(heads, heads, requires_grad=train)
    mask = torch.randn(1, 1, 1, tokens) if masked else None
    with LargestTensor() as seen:
        output = recombined_attention(query, key, value, coeff, mask)
        if train:
            output.sum().backward()
    assert seen.count["aten.bmm"] > 64  # the probe has looked inside
    assert seen.elements < batch * heads * tokens * tokens // 16


def test_blocks_use_their_buffers_again() -> None:
    query, key, value = (torch.randn(1, 4, n, 8) for n in (512, 64, 64))
    created = []
    for queries in (256, 512):
        with pytest.MonkeyPatch.context() as patch, LargestTensor() as seen:
            patch.setattr(blocked, "BLOCK_MAP", 64 * 64)
            recombined_attention(query[:, :, :queries], key, value, torch.randn(4, 4))
        created.append(seen.count["aten.new_empty"])
    assert created[0] == created[1]  # twice the blocks, not one buffer more


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_none_is_plain_attention_bitwise(dtype: torch.dtype) -> None:
    query, key, value = (torch.randn(2, 4, n, 8, dtype=dtype) for n in (6, 5, 5))
    mask = torch.randn(6, 5, dtype=dtype)
    expected = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.3)
    assert torch.equal(recombined_attention(query, key, value, None, mask, 0.3), expected)


@pytest.mark.parametrize("shape", [(4,), (2, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_diagonal_scales_the_values(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    query, key, value = (torch.randn(2, 4, n, 8, dtype=dtype) for n in (6, 5, 5))
    coeff = torch.diag_embed(0.3 * torch.randn(shape))
    diagonal = diagonal_of(coeff)
    assert diagonal is not None
    actual = scaled_attention(query, key, value, diagonal, None, 0.3)
    assert error(actual, exact(query, key, value, coeff, None, 0.3)) < 8 * torch.finfo(dtype).eps
    coeff[..., 0, 1] = 1e-6
    assert diagonal_of(coeff) is None


def test_a_mask_that_learns() -> None:
    query, key, value = (torch.randn(2, 4, n, 8) for n in (6, 5, 5))
    mask = torch.randn(6, 5, requires_grad=True)
    recombined_attention(query, key, value, torch.randn(4, 4), mask).sum().backward()
    assert mask.grad is not None
    assert mask.grad.abs().max() > 0


def test_autocast_does_not_round_the_mixing() -> None:
    query, key, value, coeff = (*(torch.randn(2, 4, n, 8) for n in (6, 5, 5)), torch.randn(4, 4))
    expected = recombined_attention(query, key, value, coeff)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(recombined_attention(query, key, value, coeff), expected)


@pytest.mark.parametrize("shape", [(3, 3), (1, 4, 4), (3, 4, 4), (4,), (4, 3)])
def test_a_matrix_that_does_not_fit_is_an_error(shape: tuple[int, ...]) -> None:
    query, key, value = (torch.randn(2, 4, n, 8) for n in (6, 5, 5))
    with pytest.raises((ValueError, TypeError), match="coeff"):  # TypeError where the tests check shapes at the call
        recombined_attention(query, key, value, torch.zeros(shape))
