"""The layers of text encoders that coefficients may belong to, by their modules and by their configs alone."""

from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from transformers import CLIPTextConfig, CLIPTextModel

from coeff_diffusion import AttachmentError, Coefficients, CoefficientsError, CoefficientsInfo
from coeff_diffusion.families.layout import layout_of
from coeff_diffusion.families.registry import encoders_of, family_of
from coeff_diffusion.families.text_layers import text_heads, text_sites

PATH = "text_encoder/text_model.encoder.layers.{}.self_attn"


def test_paths_are_those_of_published_checkpoints(tiny_pipe: StableDiffusionPipeline) -> None:
    sites = text_sites("text_encoder", tiny_pipe.text_encoder)
    assert {path: (site.heads, site.kind) for path, site in sites.items()} == {
        PATH.format(number): (4, "text") for number in range(2)
    }
    modules = dict(tiny_pipe.text_encoder.named_modules())
    for number, site in enumerate(sites.values()):
        assert site.module in [m for name, m in modules.items() if name.endswith(f"encoder.layers.{number}.self_attn")]
    assert layout_of(tiny_pipe).text_heads == dict.fromkeys(sites, 4)


def test_of_xl_the_layer_that_nobody_reads_is_left_out(tiny_xl_pipe: StableDiffusionXLPipeline) -> None:
    """The UNet gets what goes into the last layer of each encoder; the second one's makes the pooled text."""
    pipe, family = tiny_xl_pipe, family_of(tiny_xl_pipe)
    counts = {name: len(family.text_sites(name, encoder)) for name, encoder in encoders_of(pipe).items()}
    assert counts == {"text_encoder": 1, "text_encoder_2": 2}
    assert len(layout_of(pipe).text_heads) == 3
    before = family.condition(pipe, ["a cat"], (16, 16))
    with torch.no_grad():
        pipe.text_encoder.encoder.layers[1].self_attn.out_proj.weight.mul_(-3)
    after = family.condition(pipe, ["a cat"], (16, 16))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_attention_without_heads_to_recombine_is_refused(tiny_pipe: StableDiffusionPipeline) -> None:
    tiny_pipe.text_encoder.set_attn_implementation("eager")
    with pytest.raises(AttachmentError, match=r"attention by 'eager'.*set_attn_implementation\(\"sdpa\"\)"):
        text_sites("text_encoder", tiny_pipe.text_encoder)


def test_a_config_is_taken_as_transformers_takes_it() -> None:
    config = CLIPTextConfig()
    with torch.device("meta"):
        encoder = CLIPTextModel(config)
    assert text_heads("text_encoder", {}) == {p: site.heads for p, site in text_sites("text_encoder", encoder).items()}


@pytest.mark.parametrize(
    "wrong", [{"num_hidden_layers": 10**9}, {"num_attention_heads": "8"}, {"num_hidden_layers": 0}]
)
def test_a_config_of_a_stranger_is_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="layers of"):
        text_heads("text_encoder", wrong)


@pytest.mark.parametrize(
    ("path", "heads", "said"),
    [
        (PATH.format(0), 3, "layers.0.self_attn has 3 heads, in this base 4"),
        (PATH.format(7), 4, "layers.7.self_attn is no attention layer of this base"),
        ("text_encoder_2/text_model.encoder.layers.0.self_attn", 4, "text_encoder_2/.* is no attention layer"),
    ],
)
def test_a_misfit_names_both_sides(tiny_pipe: StableDiffusionPipeline, path: str, heads: int, said: str) -> None:
    subject = Coefficients({path: torch.ones(heads, heads)}, info=CoefficientsInfo(layers="text"))
    with pytest.raises(CoefficientsError, match=rf"1 layers\), this base is custom with 16 layers: .*{said}"):
        layout_of(tiny_pipe).check_fits(subject)


def test_a_layer_that_was_trained_and_is_missing_is_missed(tiny_pipe: StableDiffusionPipeline) -> None:
    info = CoefficientsInfo(layers="text")
    subject = Coefficients({PATH.format(0): torch.ones(4, 4)}, info=info)
    with pytest.raises(CoefficientsError, match="layers.1.self_attn has no coefficients"):
        layout_of(tiny_pipe).check_fits(subject)
    layout_of(tiny_pipe).check_fits(subject.replace(info=CoefficientsInfo(layers="text", blocks=("*.0.self_attn",))))
