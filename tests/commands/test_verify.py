"""Whether a subject fits a base, found out from configs alone."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from single_file import write_original_checkpoint

from coeff_diffusion import Coefficients, CoefficientsError, CoefficientsInfo, layer_heads
from coeff_diffusion.commands.config import VerifyConfig
from coeff_diffusion.commands.verify import read_base, verify
from coeff_diffusion.families.load import BaseModelError

Subject = Callable[..., Coefficients]
MID = "mid_block.attentions.0.transformer_blocks.0.attn1"


@pytest.fixture
def configs(tiny_base_dir: Path, tmp_path: Path) -> Path:
    """The tiny base without a single weight."""
    folder = tmp_path / "configs"
    for name in ("unet/config.json", "text_encoder/config.json"):
        (folder / name).parent.mkdir(parents=True)
        shutil.copy(tiny_base_dir / name, folder / name)
    return folder


@pytest.fixture
def cached(configs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same as a repository in the Hub's cache, without a network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    repository, commit = tmp_path / "cache" / "models--user--tiny", "0" * 40
    shutil.copytree(configs, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    return "user/tiny"


@pytest.fixture
def save(tmp_path: Path) -> Callable[[Coefficients], str]:
    def save(subject: Coefficients) -> str:
        subject.save(tmp_path / "dog.safetensors")
        return str(tmp_path / "dog.safetensors")

    return save


def said(file: str, base: str | Path | None = None, **options: Any) -> str:
    """The one line that `verify` says."""
    lines: list[str] = []
    verify(VerifyConfig(file, None if base is None else str(base), **options), lines.append)
    (line,) = lines
    return line


def test_what_fits_is_said_in_one_line(new_subject: Subject, save: Any, configs: Path) -> None:
    file = save(new_subject(vectors=2))
    expected = f"{file} (14 layers, a token of 32 channels) fits {configs} (custom, 14 attention layers)"
    assert said(file, configs) == expected
    assert said(save(new_subject()), configs).startswith(f"{file} (14 layers) fits")


def test_a_base_is_read_without_weights(configs: Path, tiny_pipe: StableDiffusionPipeline) -> None:
    layout = read_base(str(configs))
    assert all(weight.is_meta for weight in layout.denoiser.parameters())
    assert layer_heads(layout.denoiser) == layer_heads(tiny_pipe.unet)
    assert layout.widths == {"text_encoder": 32}


def test_what_does_not_fit_is_an_error_that_names_both_sides(
    new_subject: Subject, save: Any, configs: Path, tiny_base_dir: Path
) -> None:
    subject = new_subject(base_model="user/tiny")

    def refused(message: str, coeffs: dict[str, torch.Tensor], tokens: Any = None, **info: Any) -> None:
        known = {"trigger": "sks dog", "base_model": "user/tiny", **info}
        file = save(Coefficients(coeffs, tokens, CoefficientsInfo(**known)))
        with pytest.raises(CoefficientsError, match=message):
            said(file, configs)

    sides = r"for user/tiny \(.*\), this base is custom with 14 layers: .*"
    refused(f"{sides}attn1 has 4 heads, in this base 8", {**subject, MID: torch.zeros(4, 4)})
    refused(f"{sides}mid_block.attn9 is no attention layer", {**subject, "mid_block.attn9": torch.zeros(4, 4)})
    refused(f"{sides}{MID} has no coefficients", {path: coeff for path, coeff in subject.items() if path != MID})
    refused(f"{sides}other widths", dict(subject), base_fingerprint="0" * 64)
    one = {"text_encoder": torch.zeros(1, 768)}
    refused("token has 768 channels, but the text_encoder of this base has 32: it was trained on user/tiny", {}, one)
    refused("a token for text_encoder_2, which this base does not have", {}, {"text_encoder_2": torch.zeros(1, 32)})

    with torch.device("meta"):
        other = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
    family = Coefficients(
        {path: torch.zeros(heads, heads) for path, heads in layer_heads(other).items()},
        info=CoefficientsInfo(base_model="user/sd", base_architecture="stable-diffusion-v1"),
    )
    with pytest.raises(CoefficientsError, match=r"user/sd \(stable-diffusion-v1, 32 layers\), this base is custom"):
        said(save(family), configs)


def test_a_repository_of_the_hub(new_subject: Subject, save: Any, cached: str) -> None:
    assert f"fits {cached} (custom" in said(save(new_subject()), cached)
    with pytest.raises(CoefficientsError, match="HF_HUB_OFFLINE"):
        said(save(new_subject()), "user/elsewhere")
    with pytest.raises(CoefficientsError, match="HF_HUB_OFFLINE"):
        said(save(new_subject()), cached, revision="v2")


# --- without --base ---------------------------------------------------------------------------------------------------


def test_without_a_base_the_recorded_one_is_taken_where_it_is_at_hand(
    new_subject: Subject, save: Any, cached: str, configs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "fits user/tiny" in said(save(new_subject(base_model=cached)))
    monkeypatch.setattr("coeff_diffusion.commands.verify.embedded_path", lambda: configs)
    assert "fits embedded" in said(save(new_subject(base_model="embedded")))
    with pytest.raises(CoefficientsError, match="for embedded .*attn1 has 4 heads"):
        said(save(new_subject(base_model="embedded").replace(coeffs={**new_subject(), MID: torch.zeros(4, 4)})))
    line = said(save(new_subject(base_model="user/elsewhere")))
    assert "dog.safetensors is sound (14 layers), but was not checked" in line
    assert "'user/elsewhere' is neither embedded nor in the Hub's cache; give --base" in line
    assert "it does not say for which; give --base" in said(save(new_subject()))


def test_what_a_stranger_recorded_opens_nothing(
    new_subject: Subject, save: Any, cached: str, configs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A base's name in a file is no path: neither to a folder here nor out of the cache."""
    monkeypatch.chdir(configs.parent)
    (configs.parent / "user").mkdir()
    configs.rename(configs.parent / "user" / "folder")
    for name in ("user/folder", str(configs), "../x", "./user/folder", "C:\\x", "\\\\host\\share", "a/../../x", "~/x"):
        assert "was not checked against a base" in said(save(new_subject(base_model=name)))
    assert "was not checked" in said(save(new_subject(base_model=cached, base_revision="../../x")))


# --- a single checkpoint ----------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tiny_pipe: StableDiffusionPipeline, tmp_path: Path) -> Path:
    return write_original_checkpoint(tiny_pipe, tmp_path / "model.safetensors")


def test_a_checkpoint_is_told_by_its_header(new_subject: Subject, save: Any, configs: Path, checkpoint: Path) -> None:
    file = save(new_subject(vectors=1))
    assert f"fits {checkpoint}" in said(file, checkpoint, base_config=str(configs))
    wrong = save(new_subject().replace(coeffs={**new_subject(), MID: torch.zeros(4, 4)}))
    with pytest.raises(CoefficientsError, match="attn1 has 4 heads, in this base 8"):
        said(wrong, checkpoint, base_config=str(configs))


def test_a_checkpoint_of_another_family_than_its_configs(configs: Path, checkpoint: Path) -> None:
    config = json.loads((configs / "unet" / "config.json").read_text())
    for change in ({"cross_attention_dim": 48}, {"layers_per_block": 2}, {"block_out_channels": [16, 48]}):
        (configs / "unet" / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(
            BaseModelError, match=r"does not have the tensors that the configs of .* call for|different families"
        ):
            read_base(str(checkpoint), config=str(configs))


def test_a_checkpoint_without_configs_says_what_to_give(checkpoint: Path, cached: str) -> None:
    with pytest.raises(BaseModelError, match=r"holds weights only.*HF_HUB_OFFLINE.*--base_config") as caught:
        read_base(str(checkpoint))
    assert "stable-diffusion-v1-5" in str(caught.value)
    with pytest.raises(BaseModelError, match=r"it is a checkpoint itself"):
        read_base(str(checkpoint), config=str(checkpoint))


def test_what_generate_refuses_is_no_base_here_either(
    configs: Path, tiny_base_dir: Path, new_subject: Subject, save: Any
) -> None:
    """An inpainting model has the same attention layers, but does not draw from text."""
    file, unet = save(new_subject()), configs / "unet" / "config.json"
    shutil.copy(tiny_base_dir / "model_index.json", configs)
    (configs / "vae").mkdir()
    shutil.copy(tiny_base_dir / "vae" / "config.json", configs / "vae")
    assert "fits" in said(file, configs)
    whole = unet.read_text()
    unet.write_text(json.dumps({**json.loads(whole), "in_channels": 9}))
    with pytest.raises(BaseModelError, match="takes 9 channels where its autoencoder makes 4: an inpainting"):
        said(file, configs)
    unet.write_text(whole)
    index = json.loads((configs / "model_index.json").read_text())
    (configs / "model_index.json").write_text(json.dumps({**index, "_class_name": "StableDiffusionInpaintPipeline"}))
    with pytest.raises(BaseModelError, match="is Stable Diffusion inpainting"):
        said(file, configs)


# --- what is no base --------------------------------------------------------------------------------------------------


def test_what_is_no_base_is_an_error(configs: Path, tmp_path: Path, new_subject: Subject, save: Any) -> None:
    def refused(name: Path | str, message: str, **options: Any) -> None:
        with pytest.raises(BaseModelError, match=message):
            said(save(new_subject()), name, **options)

    refused(tmp_path / "nowhere", "no such file or folder")
    refused("no base", "is not a base; a base is 'embedded', ")
    refused(tmp_path, "has no unet/config.json; expected a base in the layout of diffusers")
    refused(configs, "--revision only means something for a Hub id", revision="main")
    refused(configs, "--base_config only means something for a single checkpoint", base_config="x")
    refused(save(new_subject()), "a subject of coeff-diffusion, not a base")
    (tmp_path / "model.ckpt").touch()
    refused(tmp_path / "model.ckpt", "is an empty file")
    for text, message in {
        "{": "unet/config.json cannot be read",
        "[" * 100_000: "unet/config.json cannot be read",
        "[]": r"unet/config.json is \[\], expected a JSON object",
        '{"_class_name": "FluxTransformer2DModel"}': "draws with 'FluxTransformer2DModel'",
        '{"block_out_channels": [4]}': "unet/config.json makes no denoiser",
        '{"attention_head_dim": "x"}': "unet/config.json makes no denoiser",
        " " * 2**20 + "{}": "unet/config.json cannot be read",
    }.items():
        (configs / "unet" / "config.json").write_text(text)
        refused(configs, message)
