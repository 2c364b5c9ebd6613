"""Which base a UNet is, and whether coefficients belong to it."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from peft import LoraConfig

from coeff_diffusion import (
    Coefficients,
    CoefficientsError,
    CoefficientsInfo,
    check_fits,
    describe_base,
    load_coefficients,
)
from coeff_diffusion.families.fingerprint import (
    architecture,
    base_hash,
    check_tokens_fit,
    fingerprint,
    same_weights,
    weight_sample,
)
from coeff_diffusion.method.sites import find_sites

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
    assert len(info.base_sample) == 24
    assert CoefficientsInfo.from_json(info.to_json()) == info


@pytest.mark.parametrize("first", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("second", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_are_recognized_across_precisions(
    tiny_pipe: StableDiffusionPipeline, first: torch.dtype, second: torch.dtype
) -> None:
    unet = tiny_pipe.unet
    with torch.no_grad():  # among them numbers that float16 hardly knows
        unet.conv_in.weight.copy_(
            torch.randn_like(unet.conv_in.weight) * 10 ** torch.linspace(-9, 0, 8)[:4, None, None]
        )
    copies = [weight_sample(copy.deepcopy(unet).to(dtype)) for dtype in (first, second)]
    assert same_weights(*copies)
    assert base_hash(unet) == base_hash(copy.deepcopy(unet))


def test_weights_are_recognized_under_an_adapter(tiny_pipe: StableDiffusionPipeline) -> None:
    sample = weight_sample(tiny_pipe.unet)
    tiny_pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["conv_in", "to_q", "to_v"]))
    assert weight_sample(tiny_pipe.unet) == sample


def test_fine_tunes_are_other_weights(tiny_pipe: StableDiffusionPipeline) -> None:
    unet = tiny_pipe.unet
    sample = weight_sample(unet)
    assert not same_weights(sample, sample[:8])
    tuned = copy.deepcopy(unet)
    with torch.no_grad():  # what a few hundred steps of AdamW at a learning rate of 1e-6 do to a convolution
        tuned.conv_in.weight.add_(4e-4 * torch.randn_like(tuned.conv_in.weight).sign())
    assert not same_weights(sample, weight_sample(tuned))
    assert not same_weights(sample, weight_sample(tuned.half()))
    merged = copy.deepcopy(unet)  # a LoRA merged into the attention layers leaves the convolutions as they are
    with torch.no_grad():
        for module in merged.modules():
            if isinstance(module, Attention):
                module.to_v.weight.add_(0.01 * torch.randn_like(module.to_v.weight))
    assert not same_weights(sample, weight_sample(merged))
    assert fingerprint(merged) == fingerprint(unet)


def test_weights_out_of_reach_tell_nothing(tiny_pipe: StableDiffusionPipeline) -> None:
    unet = meta(cross_attention_dim=768, attention_head_dim=8)
    assert weight_sample(unet) == ()
    assert base_hash(unet) is None
    tiny_pipe.unet.conv_in.to("meta")  # as sequential offload leaves it between two pictures
    assert weight_sample(tiny_pipe.unet) == ()


def test_weights_of_eight_bits_tell_nothing_of_the_base_they_were(
    tiny_pipe: StableDiffusionPipeline, new_subject: Subject, recwarn: pytest.WarningsRecorder
) -> None:
    before, digits = weight_sample(tiny_pipe.unet), base_hash(tiny_pipe.unet)
    subject = new_subject()
    assert same_weights(subject.info.base_sample, before)
    tiny_pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert weight_sample(tiny_pipe.unet) == ()
    assert base_hash(tiny_pipe.unet) not in (None, digits)  # which is of the weights as they are
    load_coefficients(tiny_pipe, subject)
    assert not [one for one in recwarn if "other weights" in str(one.message)]


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


def test_no_weight_is_looked_at(tiny_pipe: StableDiffusionPipeline, new_subject: Subject) -> None:
    """The checks run on a UNet that has none."""
    unet = UNet2DConditionModel.from_config(tiny_pipe.unet.config)
    subject = new_subject()
    unet = unet.to("meta")
    assert all(weight.is_meta for weight in unet.parameters())
    check_fits(subject, unet)
    with pytest.raises(CoefficientsError, match="mid_block.attn9 is no attention layer of this base"):
        check_fits(subject.replace(coeffs={**subject, "mid_block.attn9": torch.zeros(2, 2)}), unet)


def test_tokens_fit_their_text_encoder(new_subject: Subject) -> None:
    subject = new_subject(vectors=2, base_model="user/tiny")
    check_tokens_fit(subject, {"text_encoder": 32, "text_encoder_2": 64})
    check_tokens_fit(new_subject(), {})
    with pytest.raises(
        CoefficientsError, match="has 32 channels, but the text_encoder of this base has 768.*user/tiny"
    ):
        check_tokens_fit(subject, {"text_encoder": 768})
    with pytest.raises(CoefficientsError, match="a token for text_encoder, which this base does not have"):
        check_tokens_fit(subject, {"text_encoder_2": 32})


def test_endless_names_are_cut(tiny_pipe: StableDiffusionPipeline) -> None:
    info = CoefficientsInfo(base_model="b" * 2_000, base_architecture="a" * 2_000)
    coeffs = {f"{'x' * 10_000}{number}": torch.zeros(1, 1) for number in range(5)}
    with pytest.raises(CoefficientsError, match=r"for bbb.*xxx\.\.\. is no attention layer.*\(and 2 more\)") as caught:
        check_fits(Coefficients(coeffs, info=info), tiny_pipe.unet)
    assert len(str(caught.value)) < 700


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


def test_subjects_of_the_first_embedded_base_are_told_that_it_is_gone(tiny_pipe: StableDiffusionPipeline) -> None:
    first = meta(
        sample_size=16, in_channels=16, out_channels=16, block_out_channels=(64, 128, 256), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=8,
        cross_attention_dim=256, norm_num_groups=32,
    )  # fmt: skip
    coeffs = {path: torch.zeros(site.heads, site.heads) for path, site in find_sites(first).items()}
    subject = Coefficients(coeffs, info=CoefficientsInfo(base_fingerprint=fingerprint(first)))
    check_fits(subject, first)
    with pytest.raises(CoefficientsError, match=r"for the first embedded base \(131 concepts\), .* teach it anew"):
        check_fits(subject, tiny_pipe.unet)
