"""Which base a UNet is, and whether coefficients belong to it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig

from coeff_diffusion import Coefficients, CoefficientsError, CoefficientsInfo, check_fits, describe_base
from coeff_diffusion.fingerprint import architecture, fingerprint, same_weights, weight_sample

Subject = Callable[..., Coefficients]


def meta(**options: Any) -> UNet2DConditionModel:
    with torch.device("meta"):
        return UNet2DConditionModel(**options)


def test_families_are_known_by_construction(tiny_pipe: StableDiffusionPipeline) -> None:
    one = meta(cross_attention_dim=768, attention_head_dim=8)
    two = meta(cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20))
    assert [architecture(unet) for unet in (one, two, tiny_pipe.unet)] == [
        "stable-diffusion-v1",
        "stable-diffusion-v2",
        "custom",
    ]
    assert len({fingerprint(unet) for unet in (one, two, tiny_pipe.unet)}) == 3
    assert fingerprint(one) == fingerprint(meta(cross_attention_dim=768, attention_head_dim=8))


def test_describe_base_fills_the_info(tiny_pipe: StableDiffusionPipeline) -> None:
    info = CoefficientsInfo(**describe_base(tiny_pipe.unet))
    assert info.base_fingerprint == fingerprint(tiny_pipe.unet)
    assert len(info.base_sample) == 16
    assert CoefficientsInfo.from_json(info.to_json()) == info


def test_weights_are_recognized_across_precisions_and_adapters(tiny_pipe: StableDiffusionPipeline) -> None:
    unet = tiny_pipe.unet
    sample = weight_sample(unet)
    unet.add_adapter(LoraConfig(r=2, target_modules=["conv_in", "to_q"]))
    assert weight_sample(unet) == sample
    assert same_weights(sample, weight_sample(unet.half()))
    with torch.no_grad():
        unet.conv_out.weight.mul_(1.1)
    assert not same_weights(sample, weight_sample(unet))
    assert not same_weights(sample, sample[:8])


def test_what_was_trained_on_this_base_fits(tiny_pipe: StableDiffusionPipeline, new_subject: Subject) -> None:
    subject = new_subject()
    check_fits(subject, tiny_pipe.unet)
    cross = {path: coeff for path, coeff in subject.items() if path.endswith("attn2")}
    check_fits(Coefficients(cross, info=CoefficientsInfo(layers="cross")), tiny_pipe.unet)
    check_fits(Coefficients({}, {"text_encoder": torch.zeros(1, 32)}, CoefficientsInfo(trigger="sks")), tiny_pipe.unet)


def test_what_was_trained_on_another_base_is_an_error_that_names_both(
    tiny_pipe: StableDiffusionPipeline, new_subject: Subject
) -> None:
    subject = new_subject(base_model="user/tiny")
    with pytest.raises(
        CoefficientsError, match=r"for user/tiny \(custom, 14 layers\).*stable-diffusion-v1 with 32 layers"
    ):
        check_fits(subject, meta(cross_attention_dim=768, attention_head_dim=8))


def test_every_way_not_to_fit(tiny_pipe: StableDiffusionPipeline, new_subject: Subject) -> None:
    subject, unet = new_subject(), tiny_pipe.unet
    path = "mid_block.attentions.0.transformer_blocks.0.attn1"

    def wrong(coeffs: dict[str, torch.Tensor], message: str, **info: Any) -> None:
        with pytest.raises(CoefficientsError, match=message):
            check_fits(Coefficients(coeffs, info=CoefficientsInfo(**info)), unet)

    wrong({**subject, "mid_block.attn9": torch.zeros(4, 4)}, r"mid_block\.attn9 is no attention layer of this base")
    wrong({**subject, path: torch.zeros(4, 4)}, r"attn1 has 4 heads, in this base 8")
    wrong({key: value for key, value in subject.items() if key != path}, r"mid_block.*attn1 has no coefficients$")
    wrong({path: torch.zeros(8, 8)}, r"has no coefficients.*\(and 10 more\)")
    wrong({path: torch.zeros(8, 8)}, r"attn2 has no coefficients$", blocks=("mid_block.*",))
    wrong({path: torch.zeros(8, 8)}, r"matches", blocks=("elsewhere.*",))
    wrong(dict(subject), "the attention layers have other widths", base_fingerprint="0" * 64)
