"""Refiners in every form that people have them in, and what is none."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline
from hub_server import HubServer
from safetensors.torch import save_file
from single_file import write_refiner_checkpoint
from tiny_refiners import NARROW, make_refiner, save_refiner

from coeff_diffusion.families.errors import BaseModelError
from coeff_diffusion.families.quantization import quantization_of, quantize
from coeff_diffusion.families.refiners import load_refiner
from coeff_diffusion.families.stable_diffusion_xl import StableDiffusionXL


def weights(refiner: Any) -> dict[str, torch.Tensor]:
    parts = ("unet", "text_encoder_2")
    return {f"{part}.{key}": one for part in parts for key, one in getattr(refiner, part).state_dict().items()}


def assert_same(found: Any, expected: Any) -> None:
    """Bit by bit, in the half precision that files have."""
    mine, theirs = weights(found), weights(expected)
    assert mine.keys() == theirs.keys()
    assert [key for key, one in theirs.items() if not torch.equal(mine[key].half(), one.half())] == []


def test_a_folder_shares_what_the_base_has(tiny_xl_pipe: Any, tmp_path: Path) -> None:
    found = load_refiner(save_refiner(tiny_xl_pipe, tmp_path / "refiner"), tiny_xl_pipe)
    assert_same(found.pipe, make_refiner(tiny_xl_pipe))
    assert found.name == "refiner"
    for part in ("vae", "text_encoder_2", "tokenizer_2"):
        assert getattr(found.pipe, part) is getattr(tiny_xl_pipe, part)
    assert (found.pipe.text_encoder, found.pipe.tokenizer) == (None, None)
    other = load_refiner(save_refiner(tiny_xl_pipe, tmp_path / "other", seed=5), tiny_xl_pipe)
    assert other.digits != found.digits


def test_a_base_with_another_text_encoder_leaves_it_its_own(tiny_xl_pipe: Any, tmp_path: Path) -> None:
    folder = save_refiner(tiny_xl_pipe, tmp_path / "refiner")
    own = copy.deepcopy(tiny_xl_pipe.text_encoder_2)
    with torch.no_grad():
        tiny_xl_pipe.text_encoder_2.text_projection.weight.mul_(2)
    found = load_refiner(folder, tiny_xl_pipe).pipe.text_encoder_2
    assert found is not tiny_xl_pipe.text_encoder_2
    assert torch.equal(found.text_projection.weight, own.text_projection.weight)


@pytest.mark.parametrize("quantization", ["no", "int8"])
def test_it_is_in_the_precision_of_the_base(tiny_xl_pipe: Any, tmp_path: Path, quantization: str) -> None:
    folder = save_refiner(tiny_xl_pipe, tmp_path / "refiner")
    pipe = tiny_xl_pipe.to(torch.bfloat16)
    quantize(pipe, quantization)
    found = load_refiner(folder, pipe).pipe
    assert (found.unet.dtype, quantization_of(found.unet)) == (torch.bfloat16, quantization)
    assert found.text_encoder_2 is pipe.text_encoder_2
    assert not any(one.requires_grad for one in found.unet.parameters())


def test_a_single_file_is_the_folder(tiny_xl_pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(StableDiffusionXL.known, "Stable Diffusion XL refiner", NARROW)  # type: ignore[arg-type]
    refiner = make_refiner(tiny_xl_pipe)
    path = write_refiner_checkpoint(refiner, tmp_path / "one.safetensors")
    tiny_xl_pipe.text_encoder_2.half().float()  # as the file has it
    found = load_refiner(path, tiny_xl_pipe)
    assert_same(found.pipe, refiner)
    assert found.pipe.text_encoder_2 is tiny_xl_pipe.text_encoder_2
    assert found.pipe.config.requires_aesthetics_score is True
    assert found.pipe.config.force_zeros_for_empty_prompt is False


def test_of_a_repository_no_more_is_fetched_than_is_drawn_with(
    server: HubServer, tiny_xl_pipe: Any, tmp_path: Path
) -> None:
    folder = save_refiner(tiny_xl_pipe, tmp_path / "refiner")
    files = {one.relative_to(folder).as_posix(): one.read_bytes() for one in folder.rglob("*.*") if one.is_file()}
    server.add("stabilityai/refiner", {**files, "sd_xl_refiner_1.0.safetensors": b"x" * 100})
    found = load_refiner("stabilityai/refiner", tiny_xl_pipe)
    assert found.name == "stabilityai/refiner"
    cached = [one for one in (tmp_path / "cache").rglob("*") if one.is_file() and "snapshots" in one.parts]
    fetched = {one.parent.name for one in cached} | {one.name for one in cached}
    assert {"unet", "text_encoder_2", "tokenizer_2", "scheduler"} <= fetched
    assert not fetched & {"vae", "sd_xl_refiner_1.0.safetensors"}
    server.stop()
    assert load_refiner("stabilityai/refiner", tiny_xl_pipe).digits == found.digits
    with pytest.raises(BaseModelError, match="stabilityai/other: not a file or folder here, and the Hub cannot be re"):
        load_refiner("stabilityai/other", tiny_xl_pipe)


def test_what_is_none_is_named(tiny_xl_pipe: Any, tiny_pipe: Any, tiny_base_dir: Path, tmp_path: Path) -> None:
    tiny_xl_pipe.save_pretrained(tmp_path / "base")
    StableDiffusionXLImg2ImgPipeline(**tiny_xl_pipe.components, add_watermarker=False).save_pretrained(tmp_path / "as")
    save_file({"lora_unet_a.lora_down.weight": torch.zeros(1)}, tmp_path / "lora.safetensors")
    save_file({"model.diffusion_model.a": torch.zeros(1)}, tmp_path / "unet.safetensors")
    (tmp_path / "a.pt").write_bytes(b"PK\3\4")
    for name, sentence in {
        "base": "'StableDiffusionXLPipeline', not the refiner of Stable Diffusion XL; expected a diffusers folder",
        "as": "'a base with both text encoders', not the refiner of Stable Diffusion XL",
        str(tiny_base_dir): "'StableDiffusionPipeline', not the refiner of Stable Diffusion XL",
        "lora.safetensors": "is a LoRA, not a base, not the refiner of Stable Diffusion XL",
        "unet.safetensors": "is a file without the text encoder of one, not the refiner",
        "a.pt": r"expected a refiner as a \.safetensors file",
        "nothing/at/all": "no refiner '.*nothing/at/all'; expected a diffusers folder",
    }.items():
        with pytest.raises(BaseModelError, match=sentence) as caught:
            load_refiner(tmp_path / name, tiny_xl_pipe)
        assert "\n" not in str(caught.value)
    folder = save_refiner(tiny_xl_pipe, tmp_path / "refiner")
    with pytest.raises(BaseModelError, match=r"is Stable Diffusion 1\.x / 2\.x, which has no refiner|has no refiner"):
        load_refiner(folder, tiny_pipe)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(BaseModelError, match="is damaged or incomplete"):
        load_refiner(folder, tiny_xl_pipe)


def test_one_that_cannot_go_on_from_the_base_is_refused(tiny_xl_pipe: Any, tmp_path: Path) -> None:
    own = tiny_xl_pipe.scheduler
    for changes, sentence in (
        ({"beta_end": 0.02}, "was trained with another noise schedule than"),
        ({"rescale_betas_zero_snr": True}, "was trained with another noise schedule than"),
        ({"prediction_type": "v_prediction"}, "predicts 'v_prediction' and .* predicts 'epsilon'"),
    ):
        scheduler = type(own).from_config(own.config, **changes)
        folder = save_refiner(tiny_xl_pipe, tmp_path / next(iter(changes)), scheduler=scheduler)
        with pytest.raises(BaseModelError, match=sentence):
            load_refiner(folder, tiny_xl_pipe)
