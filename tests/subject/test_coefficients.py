"""The noun that every part of the house hands around: immutable and checked."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from coeff_diffusion import Coefficients, CoefficientsError, CoefficientsInfo

SELF = "down_blocks.0.attn1"
CROSS = "down_blocks.0.attn2"


def new(trigger: str = "sks dog", tokens: bool = False, **info: Any) -> Coefficients:
    return Coefficients(
        {SELF: torch.randn(4, 4), CROSS: torch.randn(8, 8)},
        {"text_encoder": torch.randn(2, 16)} if tokens else {},
        CoefficientsInfo(trigger=trigger, **info),
    )


def test_is_a_mapping_from_attention_path_to_matrix() -> None:
    coefficients = new(tokens=True)
    assert list(coefficients) == [SELF, CROSS]
    assert coefficients[CROSS].shape == (8, 8)
    assert list(coefficients.named_tensors()) == ["text_encoder/token", f"unet/{SELF}.coeff", f"unet/{CROSS}.coeff"]
    assert "sks dog" in repr(coefficients)
    with pytest.raises(KeyError):
        coefficients["nowhere"]


def test_is_immutable() -> None:
    source = {SELF: torch.randn(4, 4, dtype=torch.float64, requires_grad=True)}
    token = {"text_encoder": torch.zeros(1, 16)}
    coefficients = Coefficients(source, token, CoefficientsInfo(trigger="sks"))
    digest = coefficients.sha256
    with torch.no_grad():
        source[SELF].zero_()
    token["text_encoder"] += 1
    coefficients[SELF].zero_()
    coefficients.tokens["text_encoder"] += 1
    coefficients.named_tensors()[f"unet/{SELF}.coeff"].zero_()
    assert coefficients[SELF].abs().min() > 0
    assert coefficients.tokens["text_encoder"].max() == 0
    assert coefficients[SELF].dtype == torch.float32
    assert not coefficients[SELF].requires_grad
    assert coefficients.replace().sha256 == digest
    with pytest.raises(AttributeError):
        coefficients.info.name = "other"  # type: ignore[misc]


def test_equal_if_tensors_and_info_are() -> None:
    coefficients = new(name="dog")
    twin = coefficients.replace()
    assert coefficients == twin
    assert hash(coefficients) == hash(twin)
    assert coefficients != coefficients.replace(info=CoefficientsInfo(name="cat"))
    assert coefficients != coefficients.scaled(2)
    assert coefficients != dict(coefficients)
    assert coefficients == Coefficients.from_named_tensors(coefficients.named_tensors(), coefficients.info)


@pytest.mark.parametrize(
    ("coeffs", "tokens", "message"),
    [
        ({SELF: torch.zeros(4, 5)}, {}, r"attn1.coeff is \[4, 5\], expected square"),
        ({SELF: torch.zeros(4)}, {}, r"attn1.coeff is \[4\], expected square"),
        ({SELF: torch.zeros(200, 200)}, {}, "1 to 128 heads"),
        ({SELF: torch.tensor([[torch.nan]])}, {}, "attn1.coeff holds nan, expected finite values"),
        ({SELF: torch.tensor([[-torch.inf]])}, {}, "attn1.coeff holds -inf, expected finite values"),
        ({SELF: torch.tensor([[-1e6]])}, {}, "attn1.coeff holds -1000000.0, expected .* magnitude up to 100"),
        ({"../../etc": torch.zeros(4, 4)}, {}, "'../../etc' is no attention path"),
        ({"a\n": torch.zeros(4, 4)}, {}, r"'a\\n' is no attention path"),
        ({}, {}, "neither coefficients nor a token"),
        ({SELF: torch.zeros(4, 4)}, {"vae": torch.zeros(1, 4)}, "'vae' is no text encoder"),
        ({SELF: torch.zeros(4, 4)}, {"text_encoder": torch.zeros(4)}, r"text_encoder/token is \[4\]"),
        ({SELF: torch.zeros(4, 4)}, {"text_encoder": torch.zeros(0, 4)}, r"text_encoder/token is \[0, 4\]"),
        ({SELF: torch.zeros(4, 4)}, {"text_encoder": torch.full((1, 4), torch.nan)}, "text_encoder/token holds nan"),
        ({f"a{i}": torch.zeros(4, 5) for i in range(9)}, {}, r"a2.coeff .* \(and 6 more\)"),
    ],
)
def test_what_makes_no_sense_is_an_error(coeffs: Any, tokens: Any, message: str) -> None:
    with pytest.raises(CoefficientsError, match=message):
        Coefficients(coeffs, tokens, CoefficientsInfo(trigger="sks"))


def test_a_token_without_a_trigger_is_an_error() -> None:
    with pytest.raises(CoefficientsError, match=r"info\.trigger does not say for which words"):
        Coefficients({}, {"text_encoder": torch.zeros(1, 4)})


def test_unexpected_names_are_an_error() -> None:
    with pytest.raises(CoefficientsError, match=r"'vae\.coeff'.*expected only unet/<attention path>\.coeff"):
        Coefficients.from_named_tensors({"vae.coeff": torch.zeros(4, 4)})


def test_names_of_the_first_versions_are_an_error_that_says_what_to_do() -> None:
    old = {f"unet.{SELF}.coeff": torch.zeros(4, 4), "text_encoder.token": torch.zeros(1, 4)}
    with pytest.raises(CoefficientsError, match=r"named in the way of the first versions .*coeff-diffusion convert"):
        Coefficients.from_named_tensors(old, CoefficientsInfo(trigger="sks dog"))


def test_paths_may_lead_into_a_transformer() -> None:
    subject = Coefficients({SELF: torch.ones(4, 4)}, denoiser="transformer")
    assert list(subject.named_tensors()) == [f"transformer/{SELF}.coeff"]
    assert Coefficients.from_bytes(subject.to_bytes()).denoiser == "transformer"
    assert subject.scaled(0.5).denoiser == "transformer"
    both = {**subject.named_tensors(), **new().named_tensors()}
    with pytest.raises(CoefficientsError, match="coefficients of transformer and unet"):
        Coefficients.from_named_tensors(both)
    with pytest.raises(CoefficientsError, match="denoiser is 'vae', expected one of unet, transformer"):
        subject.replace(denoiser="vae")


def test_scaled_scales_coefficients_and_leaves_the_word() -> None:
    coefficients = new(tokens=True)
    half = coefficients.scaled(0.5)
    assert torch.equal(half[SELF], coefficients[SELF] * 0.5)
    assert torch.equal(half.tokens["text_encoder"], coefficients.tokens["text_encoder"])


# --- info -------------------------------------------------------------------------------------------------------------


FULL = CoefficientsInfo(
    name="Möpp 🐶",
    trigger="sks dog",
    class_word="dog",
    instance_prompt="a photo of sks dog",
    class_prompt="a photo of a dog\nin two lines",
    base_model="user/model",
    base_revision="abc",
    base_architecture="stable-diffusion-v1",
    base_fingerprint="0" * 64,
    base_sample=(0.5, -1.25),
    resolution=512,
    prediction_type="epsilon",
    layers="cross",
    blocks=("up_blocks.*",),
    train_steps=300,
    seed=0,
    gate="always",
    license="CC0-1.0",
    created="2026-01-02T03:04:05Z",
    trained_with="coeff-diffusion 0.1.0",
    final_loss=0.1234,
    effect=0.5,
    extra={"newer": {"nested": [1, None, "x"]}},
)


@pytest.mark.parametrize("info", [CoefficientsInfo(), FULL])
def test_info_round_trip(info: CoefficientsInfo) -> None:
    assert CoefficientsInfo.from_json(info.to_json()) == info


def test_info_is_small_and_keeps_what_newer_versions_write() -> None:
    assert CoefficientsInfo().to_json() == "{}"
    info = CoefficientsInfo.from_json('{"name":"dog","novelty":{"a":1}}')
    assert info.extra == {"novelty": {"a": 1}}
    assert json.loads(info.to_json()) == {"name": "dog", "novelty": {"a": 1}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "expected a JSON object"),
        ('{"name":3}', "name is 3, expected str"),
        ('{"seed":"x"}', r"seed is 'x', expected int \| None"),
        ('{"seed":true}', r"seed is True, expected int \| None"),
        ('{"gate":"sometimes"}', "gate is 'sometimes', expected one of 'trigger', 'always'"),
        ('{"base_sample":["x"]}', "base_sample"),
        ('{"final_loss":NaN}', "not JSON"),
        ('{"final_loss":1e999}', "final_loss is inf"),
        ('{"name":"' + "x" * 3_000 + '"}', "name has 3000 characters, expected at most 2000"),
        ('{"name":"\\u001b[2J"}', "name holds control characters"),
        ('{"trigger":"\\ud800"}', "trigger holds control characters"),
        ('{"blocks":["' + "x" * 3_000 + '"]}', "blocks has 3000 characters"),
        ('{"blocks":[' + ",".join(['"x"'] * 257) + "]}", "blocks has 257 entries, expected at most 256"),
        ('{"base_sample":[' + ",".join(["0"] * 257) + "]}", "base_sample has 257 entries"),
    ],
)
def test_info_that_makes_no_sense_is_an_error(text: str, message: str) -> None:
    with pytest.raises(CoefficientsError, match=message):
        CoefficientsInfo.from_json(text)


def test_stage_tokens_are_kept_and_have_to_make_sense(tmp_path: Path) -> None:
    info = CoefficientsInfo(trigger="sks dog")
    token, stages = {"text_encoder": torch.ones(2, 8)}, {"mid_block": torch.full((2, 6), 0.5)}
    subject = Coefficients({}, token, info, stage_tokens=stages)
    assert "unet/mid_block.token" in subject.named_tensors()
    subject.save(tmp_path / "dog.safetensors")
    assert Coefficients.load(tmp_path / "dog.safetensors") == subject
    assert torch.equal(subject.scaled(2).stage_tokens["mid_block"], torch.ones(2, 6))
    assert torch.equal(subject.scaled(2).tokens["text_encoder"], token["text_encoder"])
    for wrong, message in (
        ({"stage_tokens": {"mid_block": torch.ones(3, 6)}}, "different numbers of vectors"),
        ({"tokens": {}}, "tokens of stages, but none of a text encoder"),
        ({"stage_tokens": {"mid block": torch.ones(2, 6)}}, "'mid block' is no stage"),
        ({"stage_tokens": {"mid_block": torch.ones(6)}}, r"unet/mid_block.token is \[6\]"),
        ({"stage_tokens": {"mid_block": torch.full((2, 6), torch.inf)}}, "unet/mid_block.token holds inf"),
    ):
        with pytest.raises(CoefficientsError, match=message):
            subject.replace(**wrong)


def test_numbers_that_float16_holds_take_half_the_size(tmp_path: Path) -> None:
    exact = Coefficients({SELF: torch.tensor([[0.5, -0.25], [0.0, 2.0]])})
    rough = Coefficients({SELF: torch.tensor([[0.1, -0.25], [0.0, 2.0]])})
    assert len(exact.to_bytes()) == len(rough.to_bytes()) - 8
    assert len(exact.to_bytes(torch.float32)) == len(rough.to_bytes())
    assert Coefficients.from_bytes(rough.to_bytes()) == rough
    assert rough.rounded() != rough
    assert Coefficients.from_bytes(rough.rounded().to_bytes()) == rough.rounded()
    torch.testing.assert_close(rough.rounded()[SELF], rough[SELF], atol=1e-4, rtol=0)
