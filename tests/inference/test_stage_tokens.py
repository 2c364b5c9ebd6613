"""Subjects that tell each stage of the denoiser something of its own about their trigger."""

import warnings
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from torch import Tensor

from coeff_diffusion import (
    Coefficients,
    CoefficientsError,
    CoefficientsInfo,
    LayerStrengths,
    blend,
    load_coefficients,
    set_coefficients,
    unload_coefficients,
)
from coeff_diffusion.families.registry import denoiser_of, encoders_of
from coeff_diffusion.inference.trigger_tokens import initial_vectors

STAGES = ("down_blocks.0", "mid_block", "up_blocks.1")
DOG, BEACH = "a sks dog on a beach", "a red pot on a beach"


def telling(pipe: Any, trigger: str = "sks dog", vectors: int = 2, seed: int = 0, stages: Any = STAGES) -> Coefficients:
    """A subject that has tokens and nothing else."""
    generator, unet = torch.Generator().manual_seed(seed), denoiser_of(pipe)
    tokens = {
        name: torch.randn(vectors, encoder.config.hidden_size, generator=generator)
        for name, encoder in encoders_of(pipe).items()
    }
    width = unet.config.cross_attention_dim
    stage_tokens = {stage: torch.randn(vectors, width, generator=generator) for stage in stages}
    info = CoefficientsInfo(name=trigger.split()[-1], trigger=trigger, class_word=trigger.split()[-1])
    return Coefficients({}, tokens, info, stage_tokens=stage_tokens)


def without(subject: Coefficients) -> Coefficients:
    return subject.replace(stage_tokens={})


def draw(pipe: Any, prompt: str | list[str] | None, **settings: Any) -> Tensor:
    count = len(prompt) if isinstance(prompt, list) else 1
    generators = [torch.Generator().manual_seed(i) for i in range(count)]
    settings = {"num_inference_steps": 2, "guidance_scale": 4.0, "output_type": "pt", **settings}
    return pipe(prompt, generator=generators, **settings).images  # type: ignore[no-any-return]


def test_they_act_where_the_trigger_stands_and_nowhere_else(tiny_pipe: StableDiffusionPipeline) -> None:
    base = draw(tiny_pipe, [DOG, BEACH])
    subject = telling(tiny_pipe)
    load_coefficients(tiny_pipe, without(subject))
    token = draw(tiny_pipe, [DOG, BEACH])
    unload_coefficients(tiny_pipe)
    load_coefficients(tiny_pipe, subject)
    found = draw(tiny_pipe, [DOG, BEACH])
    assert not torch.allclose(found[0], token[0])
    assert torch.equal(found[1], base[1])
    set_coefficients(tiny_pipe, {"dog": 1.0}, layers=LayerStrengths(cross_attention=0))
    assert torch.equal(draw(tiny_pipe, [DOG, BEACH]), token)
    unload_coefficients(tiny_pipe)
    assert torch.equal(draw(tiny_pipe, [DOG, BEACH]), base)
    assert not [name for name in vars(tiny_pipe.unet) if name.startswith("_coeff")]


def test_a_batch_is_what_its_pictures_are_alone(tiny_pipe: StableDiffusionPipeline) -> None:
    load_coefficients(tiny_pipe, telling(tiny_pipe))
    load_coefficients(tiny_pipe, telling(tiny_pipe, "zwx cat", vectors=3, seed=1))
    prompts = [DOG, "grass and a red zwx cat in snow", "a zwx cat and a sks dog", BEACH]
    together = draw(tiny_pipe, prompts)
    for number, prompt in enumerate(prompts):
        pipe_seed = [torch.Generator().manual_seed(number)]
        alone = tiny_pipe(
            prompt, generator=pipe_seed, num_inference_steps=2, guidance_scale=4.0, output_type="pt"
        ).images
        torch.testing.assert_close(together[number], alone[0], atol=1e-5, rtol=0)
    set_coefficients(tiny_pipe, per_sample=[{"dog": 1}, {"cat": 0.5}, {}, {"dog": 1}])
    mixed = draw(tiny_pipe, prompts)
    assert torch.equal(mixed[0], together[0])
    assert not torch.allclose(mixed[1], together[1])


def test_strength_and_layer_factors_scale_them(tiny_pipe: StableDiffusionPipeline) -> None:
    subject = telling(tiny_pipe)
    encoder = tiny_pipe.text_encoder
    start = initial_vectors(tiny_pipe.tokenizer, encoder, "dog", 2)
    learned = subject.tokens["text_encoder"]
    half_way = {"text_encoder": start + 0.5 * (learned - start)}
    load_coefficients(tiny_pipe, subject.scaled(0.5).replace(tokens=half_way))
    half = draw(tiny_pipe, DOG)
    unload_coefficients(tiny_pipe)
    load_coefficients(tiny_pipe, subject, strength=0.5)
    torch.testing.assert_close(draw(tiny_pipe, DOG), half, atol=1e-4, rtol=0)
    set_coefficients(tiny_pipe, {"dog": 1.0}, layers=LayerStrengths(down=0, mid=0))
    up = draw(tiny_pipe, DOG)
    unload_coefficients(tiny_pipe)
    load_coefficients(tiny_pipe, subject.replace(stage_tokens={"up_blocks.1": subject.stage_tokens["up_blocks.1"]}))
    assert torch.equal(draw(tiny_pipe, DOG), up)


def test_a_prompt_that_is_not_known_is_said(tiny_pipe: StableDiffusionPipeline) -> None:
    load_coefficients(tiny_pipe, telling(tiny_pipe), gate="always")
    embeds, negative = tiny_pipe.encode_prompt(DOG, "cpu", 1, True)
    with pytest.warns(UserWarning, match="stage tokens of 'dog' act where the prompt has the trigger; the prompt"):
        draw(tiny_pipe, None, prompt_embeds=embeds, negative_prompt_embeds=negative)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(tiny_pipe, DOG)


def test_sdxl_reads_them_beside_both_encoders(tiny_xl_pipe: StableDiffusionXLPipeline) -> None:
    base = draw(tiny_xl_pipe, [DOG, BEACH])
    subject = telling(tiny_xl_pipe, stages=("mid_block",))
    load_coefficients(tiny_xl_pipe, without(subject))
    token = draw(tiny_xl_pipe, [DOG, BEACH])
    unload_coefficients(tiny_xl_pipe)
    load_coefficients(tiny_xl_pipe, subject)
    found = draw(tiny_xl_pipe, [DOG, BEACH])
    assert not torch.allclose(found[0], token[0])
    assert torch.equal(found[1], base[1])


@pytest.mark.parametrize(
    ("stage", "width", "message"),
    [
        ("down_blocks.7", 32, "down_blocks.7 is no stage of this base that reads the prompt"),
        ("mid_block", 31, "the token of mid_block has 31 channels, in this base 32"),
    ],
)
def test_those_of_another_base_are_refused(
    tiny_pipe: StableDiffusionPipeline, stage: str, width: int, message: str
) -> None:
    subject = telling(tiny_pipe).replace(stage_tokens={stage: torch.ones(2, width)})
    with pytest.raises(CoefficientsError, match=message):
        load_coefficients(tiny_pipe, subject)
    assert not [name for name in vars(tiny_pipe.unet) if name.startswith("_coeff")]


def test_a_blend_sums_them(tiny_pipe: StableDiffusionPipeline) -> None:
    first, second = telling(tiny_pipe), telling(tiny_pipe, seed=5)
    mixed = blend({first: 0.25, second: 0.75})
    torch.testing.assert_close(
        mixed.stage_tokens["mid_block"],
        0.25 * first.stage_tokens["mid_block"] + 0.75 * second.stage_tokens["mid_block"],
    )
