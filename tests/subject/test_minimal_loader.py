"""The loader of `docs/minimal_loader.py`: draws what the package draws, and needs nothing of it."""

import ast
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from torch import Tensor

from coeff_diffusion import Coefficients, CoefficientsInfo, layer_heads, load_coefficients
from coeff_diffusion.families.shared_weights import shared_pipeline

LOADER = Path(__file__).parents[2] / "docs" / "minimal_loader.py"
PROMPT = "a photo of Sks  dog, red, in the snow"


def load_subject(pipe: Any, path: Path) -> None:
    runpy.run_path(str(LOADER))["load_subject"](pipe, path)


def draw(pipe: Any, prompt: str | list[str] = PROMPT, each: int = 1) -> Tensor:
    """The latents of a picture or several."""
    generator = torch.Generator().manual_seed(0)
    options = {"num_inference_steps": 2, "guidance_scale": 5.0, "output_type": "latent", "num_images_per_prompt": each}
    prompt, negative = (prompt, "blue sks dog") if isinstance(prompt, str) else (prompt, ["blue sks dog"] * len(prompt))
    latents: Tensor = pipe(prompt, negative_prompt=negative, generator=generator, **options).images
    return latents


def test_it_is_short_and_needs_nothing_of_ours() -> None:
    text = LOADER.read_text()
    assert len(text.splitlines()) < 100
    nodes = list(ast.walk(ast.parse(text)))
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in imported} <= {
        "json",
        "re",
        "unicodedata",
        "torch",
        "diffusers",
        "safetensors",
    }


@pytest.mark.parametrize("vectors", [0, 1, 3])
def test_it_draws_what_the_package_draws(
    vectors: int, tiny_base_dir: Path, new_subject: Callable[..., Coefficients], tmp_path: Path
) -> None:
    path = tmp_path / "dog.safetensors"
    subject = new_subject(vectors=vectors)
    if vectors:
        subject = subject.replace(stage_tokens={s: torch.randn(vectors, 32) for s in ("mid_block", "up_blocks.1")})
    subject.save(path, torch.int8 if vectors == 3 else None)
    base, ours, theirs = (StableDiffusionPipeline.from_pretrained(tiny_base_dir) for _ in range(3))
    for pipe in (base, ours, theirs):
        pipe.set_progress_bar_config(disable=True)
    load_coefficients(ours, path, gate="always")
    load_subject(theirs, path)
    expected = draw(ours)
    torch.testing.assert_close(draw(theirs), expected, rtol=1e-4, atol=1e-4)
    assert (draw(base) - expected).abs().max() > 0.01
    without = "a beach"
    torch.testing.assert_close(draw(theirs, without), draw(ours, without), rtol=1e-4, atol=1e-4)


def test_it_finds_letters_that_are_written_in_parts(
    tiny_base_dir: Path, new_subject: Callable[..., Coefficients], tmp_path: Path
) -> None:
    path = tmp_path / "dog.safetensors"
    new_subject(trigger="caf\u00e9 dog", vectors=2).save(path)
    ours, theirs = (StableDiffusionPipeline.from_pretrained(tiny_base_dir) for _ in range(2))
    load_coefficients(ours, path, gate="always")
    load_subject(theirs, path)
    for prompt in ("a cafe\u0301 dog", "a CAF\u00c9  dog"):
        torch.testing.assert_close(draw(theirs, prompt), draw(ours, prompt), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pooled_at_highest", [False, True])
def test_it_draws_what_the_package_draws_on_xl(
    pooled_at_highest: bool, tiny_xl_pipe: StableDiffusionXLPipeline, tmp_path: Path
) -> None:
    """Two text encoders, whose second pools the whole prompt, in old configs at the highest id."""
    if pooled_at_highest:
        tiny_xl_pipe.text_encoder_2.text_model.eos_token_id = 2
    coeffs = {path: 0.3 * torch.randn(heads, heads) for path, heads in layer_heads(tiny_xl_pipe.unet).items()}
    encoders = {name: getattr(tiny_xl_pipe, name) for name in ("text_encoder", "text_encoder_2")}
    tokens = {name: torch.randn(2, encoder.config.hidden_size) for name, encoder in encoders.items()}
    width = tiny_xl_pipe.unet.config.cross_attention_dim
    stages = {stage: torch.randn(2, width) for stage in ("mid_block", "up_blocks.0")}
    path = tmp_path / "dog.safetensors"
    Coefficients(coeffs, tokens, CoefficientsInfo(name="dog", trigger="sks dog"), "unet", stages).save(path)
    ours, theirs = (shared_pipeline(tiny_xl_pipe) for _ in range(2))
    for pipe in (ours, theirs):
        pipe.set_progress_bar_config(disable=True)
    load_coefficients(ours, path, gate="always")
    load_subject(theirs, path)
    prompts = [PROMPT, "a beach"]
    expected = draw(ours, prompts, each=2)
    torch.testing.assert_close(draw(theirs, prompts, each=2), expected, rtol=1e-4, atol=1e-4)
    assert (draw(tiny_xl_pipe, prompts, each=2) - expected)[:2].abs().max() > 0.01


def test_it_refuses_what_does_not_fit(
    tiny_pipe: StableDiffusionPipeline, new_subject: Callable[..., Coefficients], tmp_path: Path
) -> None:
    path = tmp_path / "dog.safetensors"
    before = {name: id(one) for name, one in tiny_pipe.unet.attn_processors.items()}
    for layer in ("down_blocks.9.attn1", "text_encoder/text_model.encoder.layers.0.self_attn"):
        Coefficients({layer: torch.zeros(4, 4)}).save(path)
        with pytest.raises(ValueError, match=f"does not fit this base.*{layer}"):
            load_subject(tiny_pipe, path)
    assert before == {name: id(one) for name, one in tiny_pipe.unet.attn_processors.items()}
