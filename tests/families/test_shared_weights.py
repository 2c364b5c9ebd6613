"""A second structure over the same weights."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from diffusers import StableDiffusionPipeline
from subject_maker import make_subject

from coeff_diffusion.families.shared_weights import shared_copy, shared_pipeline
from coeff_diffusion.inference.pipeline_subjects import load_coefficients, loaded_coefficients
from coeff_diffusion.inference.request import DrawRequest
from coeff_diffusion.inference.studio import Studio
from coeff_diffusion.method.attachment import attach, is_attached


def test_the_same_weights_in_another_structure(tiny_pipe: StableDiffusionPipeline) -> None:
    unet = tiny_pipe.unet
    copy = shared_copy(unet)
    pairs = list(zip(unet.parameters(), copy.parameters(), strict=True))
    assert all(mine.data_ptr() == theirs.data_ptr() and mine is not theirs for mine, theirs in pairs)
    assert all(mine.requires_grad and not theirs.requires_grad for mine, theirs in pairs)
    assert copy.config == unet.config
    attach(copy)
    copy.enable_gradient_checkpointing()
    assert not is_attached(unet)
    assert not unet.is_gradient_checkpointing
    assert not set(map(id, unet.attn_processors.values())) & set(map(id, copy.attn_processors.values()))


def test_another_dtype_leaves_the_original(tiny_pipe: StableDiffusionPipeline) -> None:
    copy = shared_copy(tiny_pipe.unet, dtype=torch.bfloat16)
    assert (copy.dtype, tiny_pipe.unet.dtype) == (torch.bfloat16, torch.float32)
    encoder = shared_copy(tiny_pipe.text_encoder, dtype=torch.bfloat16)
    assert all(not buffer.is_floating_point() or buffer.dtype == torch.bfloat16 for buffer in encoder.buffers())
    ids = tiny_pipe.tokenizer("a dog", return_tensors="pt").input_ids
    assert encoder(ids)[0].dtype == torch.bfloat16


def test_a_shared_pipeline_draws_the_same_and_changes_on_its_own(tiny_pipe: StableDiffusionPipeline) -> None:
    shared = shared_pipeline(tiny_pipe)
    request = DrawRequest("a dog", seed=1, steps=2)
    expected = Studio(tiny_pipe).draw(request)[0].image.tobytes()
    assert Studio(shared).draw(request)[0].image.tobytes() == expected
    assert shared.name_or_path == tiny_pipe.name_or_path
    request = replace(request, prompt="a sks dog", subjects={"rex": 1.0})
    load_coefficients(shared, make_subject(shared.unet, shared.text_encoder, "rex", "sks dog", "dog"))
    assert Studio(shared).draw(request)[0].image.tobytes() != expected
    assert loaded_coefficients(tiny_pipe) == {}
    request = replace(request, prompt="a dog", subjects={})
    assert Studio(tiny_pipe).draw(request)[0].image.tobytes() == expected


def test_offloaded_weights_are_refused(tiny_pipe: StableDiffusionPipeline) -> None:
    tiny_pipe.unet.conv_in._hf_hook = SimpleNamespace()
    with pytest.raises(ValueError, match="UNet2DConditionModel is managed by accelerate hooks"):
        shared_copy(tiny_pipe.unet)
