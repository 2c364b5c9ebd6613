"""The mathematics, against PyTorch's attention, x-transformers' talking heads and float64."""

import warnings
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from coeff_diffusion.method.recombination import recombine, recombined_attention

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # x-transformers scripts a function while it is imported
    from x_transformers.attend import Attend


def qkv(batch: int = 2, heads: int = 4, queries: int = 6, keys: int = 5, channels: int = 8) -> tuple[Tensor, ...]:
    shapes = [(batch, heads, n, channels) for n in (queries, keys, keys)]
    return tuple(torch.randn(shape, dtype=torch.float64) for shape in shapes)


def talking_heads(coeff: Tensor) -> Attend:
    """Someone else's post-softmax talking heads, set to I + coeff."""
    softmax = partial(torch.softmax, dim=-1)  # its own is in float32 whatever the input
    attend = Attend(heads=len(coeff), post_talking_heads=True, custom_attn_fn=softmax).double().requires_grad_(False)
    assert attend.post_softmax_talking_heads is not None
    attend.post_softmax_talking_heads.weight.copy_((torch.eye(len(coeff)) + coeff.double())[:, :, None, None])
    return attend


def test_rows_receive_and_columns_are_used() -> None:
    maps = torch.tensor([1.0, 10.0]).view(1, 2, 1, 1)
    coeff = torch.tensor([[0.0, 0.5], [0.0, 0.0]])  # head 0 receives half of map 1
    assert recombine(maps, coeff).flatten().tolist() == [6.0, 10.0]


def test_zero_is_the_maps_themselves_bitwise() -> None:
    maps = torch.rand(2, 4, 6, 5)
    assert torch.equal(recombine(maps, torch.zeros(4, 4)), maps)


@pytest.mark.parametrize("masked", [False, True])
def test_equals_talking_heads_of_x_transformers(masked: bool) -> None:
    query, key, value = qkv()
    coeff = torch.randn(4, 4, dtype=torch.float64)
    assert not torch.allclose(coeff, coeff.T)
    mask = torch.rand(2, 1, 6, 5) > 0.3
    mask[..., 0] = True
    expected, _ = talking_heads(coeff)(query, key, value, mask=mask if masked else None)
    actual = recombined_attention(query, key, value, coeff, mask if masked else None)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3),
    heads=st.integers(2, 10),
    queries=st.integers(8, 70),  # enough numbers for an error that is not luck
    keys=st.integers(2, 200),
    channels=st.integers(8, 64),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 9),
)
def test_at_most_twice_the_error_of_plain_attention(
    batch: int, heads: int, queries: int, keys: int, channels: int, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    query, key, value = (x.to(dtype) for x in qkv(batch, heads, queries, keys, channels))
    coeff = 0.3 * torch.randn(heads, heads)
    exact = talking_heads(coeff)(query.double(), key.double(), value.double())[0]
    plain = scaled_dot_product_attention(query, key, value)
    plain_exact = scaled_dot_product_attention(query.double(), key.double(), value.double())

    def relative(actual: Tensor, truth: Tensor) -> float:
        return float((actual.double() - truth).norm() / truth.norm())

    assert relative(recombined_attention(query, key, value, coeff), exact) <= 2 * relative(plain, plain_exact)


def test_each_sample_has_its_own_matrix() -> None:
    query, key, value = qkv(batch=3)
    coeff = torch.randn(3, 4, 4, dtype=torch.float64)
    together = recombined_attention(query, key, value, coeff)
    for i in range(3):
        alone = recombined_attention(query[i : i + 1], key[i : i + 1], value[i : i + 1], coeff[i])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-14)


def test_outputs_leave_the_convex_hull_of_the_values() -> None:
    query, key, _ = qkv()
    value = torch.rand(2, 4, 5, 8, dtype=torch.float64)  # plain attention stays within (0, 1)
    coeff = torch.full((4, 4), -1.0, dtype=torch.float64)
    assert recombined_attention(query, key, value, coeff).min() < 0


@pytest.mark.parametrize("shape", [(6, 5), (2, 1, 1, 5), (2, 1, 6, 5), (2, 4, 6, 5)])
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_masks_are_those_of_pytorch(shape: tuple[int, ...], kind: str) -> None:
    query, key, value = qkv()
    mask = torch.rand(shape) > 0.4 if kind == "bool" else torch.randn(shape, dtype=torch.float64)
    mask[..., 1] = True
    expected = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.7)
    actual = recombined_attention(query, key, value, torch.zeros(4, 4), mask, scale=0.7)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mask", [torch.tensor([[False] * 5, [True] * 5]), torch.tensor([[-torch.inf] * 5, [0.0] * 5])])
def test_a_query_that_sees_nothing_gets_zeros_and_finite_gradients(mask: Tensor) -> None:
    query, key, value = (x.requires_grad_() for x in qkv(queries=2))
    output = recombined_attention(query, key, value, torch.randn(4, 4), mask)
    assert output[:, :, 0].abs().max() == 0
    output.sum().backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in (query, key, value))


@pytest.mark.parametrize("per_sample", [False, True])
def test_gradients(per_sample: bool) -> None:
    inputs = [x.requires_grad_() for x in qkv(queries=3, keys=2, channels=2)]
    coeff = torch.randn((2, 4, 4) if per_sample else (4, 4), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(recombined_attention, (*inputs, coeff))


def test_half_precision_maps_are_mixed_in_float32() -> None:
    maps = torch.tensor([1.0, 0.99609375], dtype=torch.bfloat16).view(1, 2, 1, 1)  # neighbours in bfloat16
    coeff = torch.tensor([[255.0, -256.0], [0.0, 0.0]])
    mixed = recombine(maps, coeff)
    assert mixed.dtype == torch.float32
    assert mixed[0, 0].item() == 1.0  # 256 * 1 - 256 * 0.99609375, which bfloat16 could not hold


def test_autocast_does_not_round() -> None:
    query, key, value = (x.float() for x in qkv())
    coeff = torch.randn(4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = recombined_attention(query, key, value, coeff)
    assert torch.equal(rounded, recombined_attention(query, key, value, coeff))
