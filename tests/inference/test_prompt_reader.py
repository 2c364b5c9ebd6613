"""Prompts read while they are written: what the studio would say of them, beside a drawing."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from coeff_diffusion import Coefficients, CoefficientsInfo
from coeff_diffusion.inference.prompt_reader import PromptReader
from coeff_diffusion.inference.request import DrawRequest
from coeff_diffusion.inference.studio import Studio

DOG = DrawRequest("", steps=4, guidance_scale=7.5, subjects={"dog": 1.0})


@pytest.mark.parametrize(
    ("prompt", "negative", "tokens"),
    [
        ("a sks dog", "", 5 + 3),
        ("a dog on grass", "", 6),
        ("red " * 70 + "sks dog on Snow", "", 72 + 5 + 2),
        ("red " * 76 + "sks dog", "grey " * 80, 78 + 5),
        ("a (sks dog:1.2)", "", None),
    ],
)
def test_it_says_what_the_studio_says(
    tiny_pipe: Any, new_subject: Callable[..., Coefficients], prompt: str, negative: str, tokens: int | None
) -> None:
    studio, subject = Studio(tiny_pipe), new_subject(vectors=5)
    request = replace(DOG, prompt=prompt, negative_prompt=negative)
    found = studio.reader.read(request, {"dog": subject})
    state = tiny_pipe.tokenizer.backend_tokenizer.to_str()
    studio.load(subject, "dog")
    assert found.notes == studio.notes(request)
    if tokens is not None:
        assert str(found) == f"{tokens}/77 tokens"
    # Asked where the subject is loaded, and without it.
    assert PromptReader(tiny_pipe).read(request, {"dog": subject}) == found
    assert studio.reader.read(request, {"dog": subject}) == found
    studio.unload("dog")
    assert tiny_pipe.tokenizer.backend_tokenizer.to_str() == state


def test_encoders_that_read_different_texts_are_told_apart(tiny_xl_pipe: StableDiffusionXLPipeline) -> None:
    reader = Studio(tiny_xl_pipe).reader
    tokens = {"text_encoder": torch.randn(2, 32), "text_encoder_2": torch.randn(2, 48)}
    subject = Coefficients({}, tokens, CoefficientsInfo(name="dog", trigger="sks dog"))
    asked = replace(DOG, prompt="a sks dog")
    assert str(reader.read(asked, {"dog": subject})) == "5/77 tokens"
    other = reader.read(replace(asked, prompt_2="red " * 80), {"dog": subject})
    assert str(other) == "5/77 tokens in text encoder 1, 82/77 tokens in text encoder 2"
    (note,) = other.notes
    assert note.startswith("prompt: 5 of 82 tokens are cut off, text_encoder_2 does not read")
