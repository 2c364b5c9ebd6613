"""The embedded base, as it ships: what stock diffusers makes of the folder, without any code of ours."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

import coeff_diffusion.base
from coeff_diffusion.base import embedded_path
from coeff_diffusion.method.attachment import layer_heads


@pytest.fixture(scope="module")
def embedded() -> Any:
    pipe = StableDiffusionPipeline.from_pretrained(embedded_path(), safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_missing_base_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coeff_diffusion.base, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(FileNotFoundError, match="reinstall"):
        embedded_path()


def test_it_is_small_and_holds_no_pickle() -> None:
    files = [path for path in embedded_path().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 55_000_000
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".txt", ".md", ".png"}


def test_it_is_made_of_stock_classes(embedded: Any) -> None:
    assert type(embedded.vae) is AutoencoderTiny
    assert type(embedded.unet) is UNet2DConditionModel
    assert type(embedded.text_encoder) is CLIPTextModel
    assert isinstance(embedded.tokenizer, CLIPTokenizer)
    assert {embedded.vae.dtype, embedded.unet.dtype, embedded.text_encoder.dtype} == {torch.float32}


def test_its_attention_layers_can_be_recombined(embedded: Any) -> None:
    heads = layer_heads(embedded.unet)
    assert len(heads) >= 12
    assert set(heads.values()) == {8}
    assert len({re.match(r"\w+\.\d|mid", path)[0] for path in heads}) >= 4  # type: ignore[index]


def test_any_prompt_tokenizes(embedded: Any) -> None:
    for prompt in ("sks", "xyzzy!", "狗 on grass", "a dog\n\tin the snow", "é" * 50, "🐕"):
        ids = embedded.tokenizer(prompt, add_special_tokens=False).input_ids
        assert ids
        assert embedded.tokenizer.unk_token_id not in ids


def test_every_class_and_colour_is_one_token_a_word(embedded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "tools" / "base"))
    from concepts import COLOURS, CONCEPTS, VAGUE_CLASSES

    words = {word for name in (*CONCEPTS, *COLOURS) if name not in VAGUE_CLASSES for word in name.split()}
    assert {word for word in words if len(embedded.tokenizer.tokenize(word)) > 1} == set()


def test_it_draws_what_is_asked_for(embedded: Any) -> None:
    colours = {"red": (214, 40, 40), "blue": (45, 95, 210), "green": (60, 160, 75)}
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    prompts = [f"a banana on a {colour} background" for colour in colours]
    pictures = embedded(prompts, num_inference_steps=8, guidance_scale=4.0, generator=generators).images
    for picture, colour in zip(pictures, colours, strict=True):
        assert picture.size == (128, 128)
        edge = np.asarray(picture, dtype=np.float32)[:4].mean((0, 1))
        nearest = min(colours, key=lambda name: float(np.square(edge - np.array(colours[name])).sum()))
        assert nearest == colour
