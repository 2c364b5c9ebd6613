"""Weights that tell one base from another; `tests/families/test_fingerprint.py` takes them from real ones."""

import pytest
import torch

from coeff_diffusion.subject.weight_sample import spread


@pytest.mark.parametrize("width", [768, 1024, 1280])
def test_embeddings_of_real_text_encoders_are_sampled_from_their_first_to_their_last_number(width: int) -> None:
    weight = torch.zeros(49408, width)
    assert weight.numel() > 2**24  # where float32 can no longer count
    weight.view(-1)[0], weight.view(-1)[-1] = 1, 2
    assert spread(weight, 8) == [1, 0, 0, 0, 0, 0, 0, 2]


@pytest.mark.parametrize("size", [1, 2, 7, 9, 2**24 - 1, 2**24 + 1])
def test_a_sample_never_leaves_its_tensor(size: int) -> None:
    assert spread(torch.arange(size, dtype=torch.float64), 8)[::7] == [0, float(f"{size - 1:.6g}")]
