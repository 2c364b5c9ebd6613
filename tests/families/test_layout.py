"""Bases known by heart: their attention layers as their own configs give them, without a weight."""

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from coeff_diffusion.base import embedded_path
from coeff_diffusion.families import layout as topologies
from coeff_diffusion.families.fingerprint import architecture, fingerprint
from coeff_diffusion.families.layout import known_layout
from coeff_diffusion.method.attachment import layer_heads

# As published with the checkpoints, in full.
SD1: dict[str, Any] = {
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}
SD1_INPAINTING = {**SD1, "in_channels": 9}
SD2 = {
    **SD1,
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "dual_cross_attention": False,
    "only_cross_attention": False,
    "sample_size": 96,
    "upcast_attention": True,
    "use_linear_projection": True,
}


def on_meta(config: dict[str, Any]) -> UNet2DConditionModel:
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(config)


@pytest.mark.parametrize(
    ("config", "family", "values"),
    [
        (SD1, "stable-diffusion-v1", 2_048),
        (SD1_INPAINTING, "stable-diffusion-v1", 2_048),
        (SD2, "stable-diffusion-v2", 6_050),
    ],
)
def test_published_configs_are_known(config: dict[str, Any], family: str, values: int) -> None:
    unet = on_meta(config)
    found = known_layout(fingerprint(unet))
    assert found is not None
    assert found.fingerprint == fingerprint(unet)
    assert found.heads == layer_heads(unet)
    assert list(found.heads) == sorted(found.heads)
    assert sum(heads * heads for heads in found.heads.values()) == values
    assert found.widths["text_encoder"] == config["cross_attention_dim"]
    assert architecture(found.denoiser) == family


def test_the_embedded_base_is_known() -> None:
    unet = UNet2DConditionModel.from_pretrained(embedded_path() / "unet")
    found = known_layout(fingerprint(unet)[:16])
    assert found is not None
    assert found.heads == layer_heads(unet)
    assert found.widths["text_encoder"] == unet.config.cross_attention_dim
    assert found.fingerprint == fingerprint(unet)


def test_other_bases_are_not() -> None:
    assert known_layout("0123456789abcdef") is None
    assert known_layout(fingerprint(on_meta({**SD1, "layers_per_block": 1}))) is None


def test_no_more_is_built_than_needed() -> None:
    embedded = known_layout("")  # the first one
    assert embedded is not None
    topologies._known.cache_clear()
    found = known_layout(embedded.fingerprint)
    assert found is not None
    assert found.fingerprint == embedded.fingerprint
    assert known_layout(embedded.fingerprint) is found
    assert topologies._known.cache_info().currsize == 1


def test_no_weight_is_made_and_no_random_number_drawn() -> None:
    topologies._known.cache_clear()
    state = torch.get_rng_state()
    found = known_layout(fingerprint(on_meta(SD1)))
    assert found is not None
    assert all(parameter.is_meta for parameter in found.denoiser.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.empty(1).device.type == "cpu"


def test_without_the_embedded_base_the_others_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise FileNotFoundError

    monkeypatch.setattr(topologies, "embedded_path", missing)
    topologies._known.cache_clear()
    try:
        assert known_layout(fingerprint(on_meta(SD1))) is not None
        assert known_layout("0123456789abcdef") is None
    finally:
        topologies._known.cache_clear()
