"""A base whose large weights are rounded to eight bits still knows itself, draws, and teaches."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import nn

from coeff_diffusion import Coefficients, load_base
from coeff_diffusion.commands.generate import generate
from coeff_diffusion.commands.generate_config import GenerateConfig
from coeff_diffusion.families.errors import BaseModelError
from coeff_diffusion.families.fingerprint import base_hash, describe_base
from coeff_diffusion.families.quantization import Int8Linear, quantization_of, quantize
from coeff_diffusion.families.shared_weights import shared_pipeline
from coeff_diffusion.training.checkpoint import CheckpointError
from coeff_diffusion.training.config import TrainConfig
from coeff_diffusion.training.trainer import train


@pytest.fixture
def rounded(tiny_base_dir: Path) -> Any:
    return load_base(tiny_base_dir, quantization="int8")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_rounds_each_weight_to_the_nearest_step(dtype: torch.dtype) -> None:
    layer = nn.Linear(24, 6).to(dtype)
    with torch.no_grad():
        layer.weight[2] = 0  # an output that nothing reaches
        layer.weight[3] *= 1000
    found = Int8Linear(layer)
    wide = found.weight.float() * found.scale.float()
    step = layer.weight.abs().amax(1, keepdim=True).float() / 127
    assert ((wide - layer.weight.float()).abs() <= step * (0.501 if dtype == torch.float32 else 1)).all()

    x = torch.randn(5, 24, dtype=dtype, requires_grad=True)
    expected = nn.functional.linear(x, wide.to(dtype), layer.bias)
    wanted = torch.autograd.grad(expected.float().square().sum(), x)[0]
    assert torch.allclose(found(x), expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-2)
    assert torch.allclose(torch.autograd.grad(found(x).float().square().sum(), x)[0], wanted, rtol=2e-2, atol=5e-2)
    assert found(x).dtype == dtype


def test_the_base_takes_less_memory_and_knows_itself(tiny_pipe: StableDiffusionPipeline, rounded: Any) -> None:
    def linear_bytes(pipe: Any) -> int:
        layers = [m for part in (pipe.unet, pipe.text_encoder) for m in part.modules() if isinstance(m, nn.Linear)]
        return sum(layer.weight.nbytes for layer in layers)

    assert linear_bytes(rounded) < 0.3 * linear_bytes(tiny_pipe)  # of float32
    assert describe_base(rounded.unet) == describe_base(tiny_pipe.unet)
    parts = [(pipe.unet, pipe.text_encoder, pipe.vae.decoder) for pipe in (tiny_pipe, rounded)]
    assert base_hash(*parts[0]) == base_hash(*parts[1])
    shared = shared_pipeline(rounded, dtype=torch.bfloat16)
    assert quantization_of(shared.unet) == "int8"
    layer, copied = (next(m for m in pipe.unet.modules() if isinstance(m, Int8Linear)) for pipe in (rounded, shared))
    assert copied.weight.data_ptr() == layer.weight.data_ptr()
    assert copied.scale.dtype == torch.bfloat16


def test_a_drawing_of_it_is_drawn_again_from_its_file(
    tiny_base_dir: Path, rounded: Any, new_subject: Callable[..., Coefficients], tmp_path: Path
) -> None:
    subject = tmp_path / "dog.safetensors"
    new_subject().save(subject)
    config = GenerateConfig(
        prompt=["a sks dog"], subject=[str(subject)], base=str(tiny_base_dir), embed_subjects=True,
        settings={"num_inference_steps": 2}, output_dir=str(tmp_path / "out"),
    )  # fmt: skip
    whole = generate(config)[0]
    first = generate(replace(config, quantization="int8"))[0]
    again = GenerateConfig(from_picture=str(first), base=str(tiny_base_dir), output_dir=str(tmp_path / "out"))
    pixels = [np.asarray(Image.open(path)) for path in (whole, first, generate(again)[0])]
    assert np.array_equal(pixels[1], pixels[2])
    assert not np.array_equal(pixels[0], pixels[1])


def test_training_on_it_teaches_and_resumes_on_it_alone(
    tiny_base_dir: Path, tiny_pipe: StableDiffusionPipeline, subject_images: Path, tmp_path: Path
) -> None:
    config = TrainConfig(
        pretrained_model_name_or_path=str(tiny_base_dir), quantization="int8", instance_data_dir=str(subject_images),
        class_word="dog", resolution=16, max_train_steps=2, validation_steps=0, checkpointing_steps=1,
        output_dir=str(tmp_path / "int8"), gradient_checkpointing=True,
    )  # fmt: skip
    loaded = train(config)
    given = train(replace(config, output_dir=str(tmp_path / "given")), tiny_pipe)  # rounded in a copy of its own
    assert quantization_of(tiny_pipe.unet) == "no"
    assert loaded.losses == given.losses
    whole = train(replace(config, output_dir=str(tmp_path / "whole"), quantization="no"))
    assert whole.losses != loaded.losses
    assert whole.losses == pytest.approx(loaded.losses, rel=0.02)
    learned = Coefficients.load(tmp_path / "int8")
    assert learned.info.base_sample == Coefficients.load(tmp_path / "whole").info.base_sample
    with pytest.raises(CheckpointError, match="quantization was 'int8' and is 'no'"):
        train(replace(config, quantization="no", max_train_steps=3, resume_from_checkpoint="latest"))


def test_what_cannot_be_had_is_said(tiny_base_dir: Path, rounded: Any) -> None:
    with pytest.raises(BaseModelError, match="'int4' is not known, expected no or int8"):
        load_base(tiny_base_dir, quantization="int4")
    with pytest.raises(BaseModelError, match="has int8 weights"):
        quantize(rounded, "no")
