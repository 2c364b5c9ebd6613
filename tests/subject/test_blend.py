"""Several subjects made into one: linear in the weights, of one base, for one trigger."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from coeff_diffusion import Coefficients, CoefficientsError, CoefficientsInfo, blend
from coeff_diffusion.subject.info import MAX_TEXT

SELF = "down_blocks.0.attn1"
CROSS = "down_blocks.0.attn2"


def new(trigger: str = "sks dog", tokens: bool = False, **info: Any) -> Coefficients:
    return Coefficients(
        {SELF: torch.randn(4, 4), CROSS: torch.randn(8, 8)},
        {"text_encoder": torch.randn(2, 16)} if tokens else {},
        CoefficientsInfo(trigger=trigger, **info),
    )


@pytest.mark.parametrize("form", [dict, list])
def test_blend_is_linear(form: Callable[[Any], Any]) -> None:
    first, second = new(name="dog"), new(name="cat")
    mixed = blend(form([(first, 0.7), (second, -0.3)]))
    for path in first:
        torch.testing.assert_close(mixed[path], 0.7 * first[path] - 0.3 * second[path])
    assert mixed.info.name == "0.7 dog + -0.3 cat"
    assert mixed.info.trigger == "sks dog"


def test_one_subject_twice_counts_twice() -> None:
    coefficients = new()
    assert torch.equal(blend([(coefficients, 0.5), (coefficients.replace(), 0.5)])[SELF], coefficients[SELF])


def test_blend_of_other_layers_is_their_union() -> None:
    first = Coefficients({SELF: torch.ones(4, 4)}, info=CoefficientsInfo(layers="self"))
    second = Coefficients({CROSS: torch.ones(8, 8)}, info=CoefficientsInfo(layers="cross"))
    mixed = blend({first: 2, second: 3})
    assert mixed[SELF].unique().tolist() == [2]
    assert mixed[CROSS].unique().tolist() == [3]
    assert (mixed.info.layers, mixed.info.blocks) == ("all", (SELF, CROSS))


def test_blend_keeps_what_the_subjects_agree_on() -> None:
    shared = {
        "base_architecture": "stable-diffusion-v1",
        "base_fingerprint": "f",
        "base_sample": (1.0,),
        "resolution": 64,
    }
    first, second = new("sks dog", gate="always", **shared), new("zwx cat", gate="always", **shared)
    info = blend({first: 1, second: 1}).info
    assert {key: getattr(info, key) for key in shared} == shared
    assert (info.trigger, info.gate) == ("", "always")


def test_what_one_part_knows_of_the_base_holds_for_the_blend() -> None:
    known, unknown = new(base_fingerprint="f", base_sample=(1.0,), seed=1), new()
    info = blend({known: 1, unknown: 1}).info
    assert (info.base_fingerprint, info.base_sample, info.seed) == ("f", (1.0,), None)
    assert blend({known: 1, new(base_fingerprint="f", base_sample=(2.0,)): 1}).info.base_sample == ()


def test_blend_of_blends_keeps_a_name_that_can_be_written() -> None:
    mixed = blend([(new(name="dog" * 300), 0.5)] * 9)
    assert len(mixed.info.name) == MAX_TEXT
    assert mixed.info.name.startswith("0.5 dogdog")


def test_blend_of_tokens() -> None:
    with_token, without = new("sks dog", tokens=True), new("zwx cat")
    mixed = blend({with_token: 0.2, without: 0.8})
    assert torch.equal(mixed.tokens["text_encoder"], with_token.tokens["text_encoder"])
    assert mixed.info.trigger == "sks dog"

    twin = new("sks dog", tokens=True)
    mean = blend({with_token: 1.5, twin: 0.5}).tokens["text_encoder"]
    expected = 0.75 * with_token.tokens["text_encoder"] + 0.25 * twin.tokens["text_encoder"]
    torch.testing.assert_close(mean, expected)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "nothing to blend"),
        (
            [(new("sks dog", tokens=True), 1), (new("zwx cat", tokens=True), 1)],
            "'sks dog' .* and 'zwx cat'.*side by side",
        ),
        ([(new(tokens=True), 1), (new(tokens=True), -1)], "sum to zero"),
        ([(new(), 1), (Coefficients({SELF: torch.ones(5, 5)}), 1)], r"attn1 has 4 and 5 heads"),
        ([(new(base_architecture="a"), 1), (new(base_architecture="b"), 1)], "base_architecture: a and b"),
        ([(new(), float("nan"))], "holds nan"),
    ],
)
def test_what_cannot_be_blended_is_an_error(parts: Any, message: str) -> None:
    with pytest.raises(CoefficientsError, match=message):
        blend(parts)
