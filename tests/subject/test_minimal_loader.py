"""The loader of `docs/minimal_loader.py`: draws what the package draws, and needs nothing of it."""

import ast
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from coeff_diffusion import Coefficients, load_coefficients

LOADER = Path(__file__).parents[2] / "docs" / "minimal_loader.py"
PROMPT = "a photo of Sks  dog, red, in the snow"


def load_subject(pipe: Any, path: Path) -> None:
    runpy.run_path(str(LOADER))["load_subject"](pipe, path)


def draw(pipe: Any, prompt: str = PROMPT) -> Tensor:
    """The latents of one picture."""
    generator = torch.Generator().manual_seed(0)
    options = {"num_inference_steps": 2, "guidance_scale": 5.0, "output_type": "latent"}
    latents: Tensor = pipe(prompt, negative_prompt="blue sks dog", generator=generator, **options).images
    return latents


def test_it_is_short_and_needs_nothing_of_ours() -> None:
    text = LOADER.read_text()
    assert len(text.splitlines()) < 85
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
    subject.save(path)
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


def test_it_refuses_what_does_not_fit(
    tiny_pipe: StableDiffusionPipeline, new_subject: Callable[..., Coefficients], tmp_path: Path
) -> None:
    path = tmp_path / "dog.safetensors"
    Coefficients({"down_blocks.9.attn1": torch.zeros(2, 2)}).save(path)
    before = {name: id(one) for name, one in tiny_pipe.unet.attn_processors.items()}
    with pytest.raises(ValueError, match="does not fit this base"):
        load_subject(tiny_pipe, path)
    assert before == {name: id(one) for name, one in tiny_pipe.unet.attn_processors.items()}
