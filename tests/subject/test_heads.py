import pytest
import torch

from coeff_diffusion import Coefficients, CoefficientsError, CoefficientsInfo
from coeff_diffusion.subject.heads import head_changes, without_head

PATHS = ("down_blocks.0.attn1", "mid_block.attn1")


@pytest.fixture(scope="module")
def subject() -> Coefficients:
    generator = torch.Generator().manual_seed(1)
    coeffs = {path: torch.randn(4, 4, generator=generator) for path in PATHS}
    tokens = {"text_encoder": torch.randn(1, 8, generator=generator)}
    return Coefficients(
        coeffs, tokens, CoefficientsInfo(trigger="sks dog"), stage_tokens={"mid_block": torch.ones(1, 8)}
    )


def test_a_head_that_is_switched_off_receives_the_bases_map(subject: Coefficients) -> None:
    rest = without_head(subject, PATHS[1], 2)
    expected = subject[PATHS[1]]
    expected[2] = 0
    assert torch.equal(rest[PATHS[1]], expected)
    assert torch.equal(rest[PATHS[0]], subject[PATHS[0]])
    assert rest.info == subject.info
    unchanged = subject.named_tensors().keys() - {f"unet/{PATHS[1]}.coeff"}
    assert all(torch.equal(rest.named_tensors()[name], subject.named_tensors()[name]) for name in unchanged)
    given = without_head(subject, PATHS[1], 2, "column")[PATHS[1]]
    assert not given[:, 2].any()
    assert torch.equal(given[:, [0, 1, 3]], subject[PATHS[1]][:, [0, 1, 3]])


def test_heads_take_a_layer_apart_without_a_rest(subject: Coefficients) -> None:
    rest = subject
    for head, change in enumerate(head_changes(subject[PATHS[0]])):
        one = rest
        rest = without_head(rest, PATHS[0], head)
        assert float((one[PATHS[0]] - rest[PATHS[0]]).norm()) == pytest.approx(float(change))
    assert not rest[PATHS[0]].any()


def test_what_is_not_there_is_named(subject: Coefficients) -> None:
    with pytest.raises(CoefficientsError, match="no head 4, expected 0 to 3"):
        without_head(subject, PATHS[0], 4)
    with pytest.raises(CoefficientsError, match="no head -1"):
        without_head(subject, PATHS[0], -1)
    with pytest.raises(
        CoefficientsError, match="no coefficients of a layer 'up'; it has those of down_blocks.0.attn1;"
    ):
        without_head(subject, "up", 0)
