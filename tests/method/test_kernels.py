"""Recombined attention by the public function, in blocks and where SDPA does all of it, held against float64."""

from typing import Any

import pytest
import torch
from exactness import Attention, Watch, assert_as_exact_as_plain, error, exact, masked
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from coeff_diffusion.method.kernels import blocked, diagonal_of, recombined_attention, scaled_attention
from coeff_diffusion.method.kernels.blocked import blocked_attention

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
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocked, "BLOCK_MAP", shape["block"])
        patch.setattr(blocked, "MIXED_MAP", shape["block"] // 4)
        patch.setattr(torch, "get_num_threads", lambda: shape["threads"])
        # PyTorch's own gradients are NaN where a query may attend to nothing; the next test has ours.
        assert_as_exact_as_plain(blocked_attention, [query, key, value, coeff], mask, train=shape["mask"] != "blind")


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("mask", ["none", "added", "blind"])
@pytest.mark.parametrize("threads", [1, 2])
def test_gradients_in_float64(per_sample: bool, mask: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocked, "BLOCK_MAP", 16)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    batch, queries = (2, 18) if per_sample else (1, 34)
    inputs = [
        torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for shape in ((batch, 3, queries, 2), (batch, 3, 5, 2), (batch, 3, 5, 4), (*[batch] * per_sample, 3, 3))
    ]
    allowed = masked(mask, batch, 3, queries, 5, torch.float64)
    # In a random direction of all inputs at once; one by one it takes ten times as long.
    assert torch.autograd.gradcheck(lambda *x: recombined_attention(*x, allowed, 0.7), inputs, fast_mode=True)


def test_gradients_that_nobody_needs_are_not_computed() -> None:
    query, key, value = (torch.randn(1, 4, 6, 8) for _ in range(3))
    coeff = torch.randn(4, 4, requires_grad=True)
    with Watch() as seen:
        blocked_attention(query, key, value, coeff).sum().backward()
    assert coeff.grad is not None
    assert "aten.bmm" in seen.count  # the probe has looked inside
    assert "aten._softmax_backward_data" not in seen.count


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("attention", [recombined_attention, blocked_attention])
def test_all_maps_never_exist_at_once(attention: Attention, train: bool, masked: bool) -> None:
    batch, heads, tokens = 1, 8, 4096
    query, key, value = (torch.randn(batch, heads, tokens, 8, requires_grad=train) for _ in range(3))
    coeff = torch.randn(heads, heads, requires_grad=train)
    mask = torch.randn(1, 1, 1, tokens) if masked else None
    with Watch() as seen:
        output = attention(query, key, value, coeff, mask)
        if train:
            output.sum().backward()
    assert seen.elements >= 64 * tokens  # the probe has looked inside
    assert seen.elements < batch * heads * tokens * tokens // 16


def test_blocks_use_their_buffers_again() -> None:
    query, key, value = (torch.randn(1, 4, n, 8) for n in (512, 64, 64))
    created = []
    for queries in (256, 512):
        with pytest.MonkeyPatch.context() as patch, Watch() as seen:
            patch.setattr(blocked, "BLOCK_MAP", 64 * 64)
            blocked_attention(query[:, :, :queries], key, value, torch.randn(4, 4))
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


@pytest.mark.parametrize("train", [False, True])
def test_nothing_to_attend_to(train: bool) -> None:
    query, key, value, coeff = (*(torch.randn(2, 4, n, 8, requires_grad=train) for n in (6, 5, 5)), torch.randn(4, 4))
    none = key[:, :, :0], value[:, :, :0]
    assert recombined_attention(query, *none, coeff).shape == (2, 4, 6, 8)
    assert not recombined_attention(query, *none, coeff).any()
    assert recombined_attention(query[:, :, :0], key, value, coeff).shape == (2, 4, 0, 8)
    assert recombined_attention(query[:0], key[:0], value[:0], coeff).shape == (0, 4, 6, 8)


def test_autocast_does_not_round_the_mixing() -> None:
    query, key, value, coeff = (*(torch.randn(2, 4, n, 8) for n in (6, 5, 5)), torch.randn(4, 4))
    for attention in (recombined_attention, blocked_attention):
        expected = attention(query, key, value, coeff)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(attention(query, key, value, coeff), expected)


@pytest.mark.parametrize("shape", [(3, 3), (1, 4, 4), (3, 4, 4), (4,), (4, 3)])
def test_a_matrix_that_does_not_fit_is_an_error(shape: tuple[int, ...]) -> None:
    query, key, value = (torch.randn(2, 4, n, 8) for n in (6, 5, 5))
    with pytest.raises((ValueError, TypeError), match="coeff"):  # TypeError where the tests check shapes at the call
        recombined_attention(query, key, value, torch.zeros(shape))
