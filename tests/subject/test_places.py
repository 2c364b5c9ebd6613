"""Coefficients of text encoders beside those of the denoiser, in a subject and in its file."""

import re
from pathlib import Path

import pytest
import torch

from coeff_diffusion import Coefficients, CoefficientsError, CoefficientsInfo, blend
from coeff_diffusion.subject.pruning import keep_strongest

TEXT = "text_encoder/text_model.encoder.layers.0.self_attn"
SECOND = "text_encoder_2/text_model.encoder.layers.11.self_attn"
UNET = "mid_block.attentions.0.transformer_blocks.0.attn1"


def subject(**info: str) -> Coefficients:
    coeffs = {UNET: torch.full((2, 2), 0.5), TEXT: torch.tensor([[0.25, -2.0], [0, 1]]), SECOND: torch.ones(3, 3)}
    return Coefficients(coeffs, info=CoefficientsInfo(layers="all+text", **info))


def test_a_file_names_the_component(tmp_path: Path) -> None:
    subject().save(tmp_path / "it.safetensors")
    assert list(subject().named_tensors()) == [f"{TEXT}.coeff", f"{SECOND}.coeff", f"unet/{UNET}.coeff"]
    loaded = Coefficients.load(tmp_path / "it.safetensors")
    assert loaded == subject()
    assert (loaded.denoiser, list(loaded.of_text_encoder(""))) == ("unet", [UNET])
    assert list(loaded.of_text_encoder("text_encoder_2")) == [SECOND]


@pytest.mark.parametrize(
    "name",
    ["vae/a.coeff", "text_encoder_4/a.coeff", "text_encoder/.coeff", "text_encoder/a/b.coeff", "text_encoder/a.token"],
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(CoefficientsError, match=rf"unexpected tensors.*{re.escape(name)}"):
        Coefficients.from_named_tensors({name: torch.ones(2, 2)})


@pytest.mark.parametrize("path", ["vae/a", "text_encoder/", "unet/a.b", "text_encoder/a//b"])
def test_other_paths_are_refused(path: str) -> None:
    with pytest.raises(CoefficientsError, match="is no attention path"):
        Coefficients({path: torch.ones(2, 2)})


def test_values_are_checked_as_those_of_the_denoiser() -> None:
    with pytest.raises(CoefficientsError, match=r"self_attn.coeff holds nan"):
        Coefficients({TEXT: torch.full((2, 2), torch.nan)})
    with pytest.raises(CoefficientsError, match=r"self_attn.coeff is \[2, 3\], expected square"):
        Coefficients({TEXT: torch.ones(2, 3)})


def test_what_is_made_of_subjects_keeps_them() -> None:
    assert torch.equal(subject().scaled(0.5)[TEXT], subject()[TEXT] / 2)
    both = blend([(subject(), 0.5), (Coefficients({UNET: torch.ones(2, 2)}), 1)])
    assert torch.equal(both[UNET], torch.full((2, 2), 1.25))
    assert torch.equal(both[SECOND], torch.full((3, 3), 0.5))
    assert both.info.layers == "all+text"
    kept = keep_strongest(subject(), 0.77)  # SECOND and TEXT are stronger
    assert (list(kept), kept.info.layers, kept.info.blocks) == ([TEXT, SECOND], "all+text", (TEXT, SECOND))
    assert (
        keep_strongest(subject().replace(coeffs={UNET: torch.ones(2, 2), SECOND: torch.zeros(3, 3)}), 0.4).info.layers
        == "all"
    )
