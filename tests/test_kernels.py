"""The one function that chooses how recombined attention is computed."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from coeff_diffusion import recombination
from coeff_diffusion.kernels import recombined_attention


def qkv(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [torch.randn(2, 4, n, 8, dtype=dtype) for n in (6, 5, 5)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_none_is_plain_attention_bitwise(dtype: torch.dtype) -> None:
    query, key, value = qkv(dtype)
    mask = torch.randn(6, 5, dtype=dtype)
    expected = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.3)
    assert torch.equal(recombined_attention(query, key, value, None, mask, 0.3), expected)


@pytest.mark.parametrize("shape", [(4, 4), (2, 4, 4)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_equals_the_reference_in_the_dtype_of_the_query(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    query, key, value = qkv(dtype)
    coeff = torch.randn(shape)
    actual = recombined_attention(query, key, value, coeff)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual, recombination.recombined_attention(query, key, value, coeff))


@pytest.mark.parametrize("shape", [(3, 3), (1, 4, 4), (3, 4, 4), (4,), (4, 3)])
def test_a_matrix_that_does_not_fit_is_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises((ValueError, TypeError), match="coeff"):  # TypeError where the tests check shapes at the call
        recombined_attention(*qkv(), torch.zeros(shape))
