"""What of a prompt a text encoder does not read, for any prompt and with learned triggers."""

from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from hypothesis import given
from hypothesis import strategies as st
from tiny_tokenizer import tiny_tokenizer

from coeff_diffusion.inference.cut_off import CutOff, cut_off
from coeff_diffusion.inference.trigger import reads_trigger
from coeff_diffusion.inference.trigger_tokens import add_trigger

TOKENIZER = tiny_tokenizer()


def test_a_tokenizer_is_left_as_it_was(tiny_pipe: StableDiffusionPipeline) -> None:
    tokenizer = tiny_pipe.tokenizer
    assert cut_off(tokenizer, "a dog") is None
    fits = " ".join(["dog"] * 75)
    again = tokenizer(["a dog", fits], truncation=True, padding="max_length").input_ids
    state = tokenizer.backend_tokenizer.to_str()
    assert cut_off(tokenizer, fits) is None
    assert cut_off(tokenizer, f"{fits} on Snow, Beach") == CutOff(4, 81, "on Snow, Beach")
    assert [len(ids) for ids in again] == [77, 77]
    assert tokenizer.backend_tokenizer.to_str() == state


@pytest.mark.parametrize("gap", [" ", "  \n"])
def test_a_learned_trigger_counts_as_its_vectors_and_is_named_whole(
    tiny_pipe: StableDiffusionPipeline, gap: str
) -> None:
    add_trigger(tiny_pipe.tokenizer, tiny_pipe.text_encoder, "dog", "sks dog", torch.randn(8, 32))
    end = f"Sks{gap}Dog on Snow"
    for words, cut in [(65, None), (66, "Snow"), (67, "on Snow"), (68, end), (70, end), (75, end), (76, f"red {end}")]:
        prompt = "red " * words + end
        found = cut_off(tiny_pipe.tokenizer, prompt)
        assert (found and found.words) == cut
        assert found is None or found.tokens == words - 65
        assert reads_trigger(tiny_pipe.tokenizer, prompt, "sks dog") == (words < 68)


@given(st.text(max_size=400))
def test_the_words_that_are_cut_are_the_end_of_the_prompt(text: str) -> None:
    tokenizer: Any = TOKENIZER
    found = cut_off(tokenizer, text)
    assert (found is not None) == (len(tokenizer(text, verbose=False).input_ids) > 77)
    if found is not None:
        assert found.words
        assert text.rstrip().endswith(found.words.rstrip())
