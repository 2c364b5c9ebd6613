"""A strength reaches the learned word, too: 0 is the base's own picture of the class word, bitwise."""

import pytest
import torch

from coeff_diffusion import (
    Coefficients,
    CoefficientsError,
    CoefficientsInfo,
    load_coefficients,
    loaded_coefficients,
    set_coefficients,
    unload_coefficients,
)
from coeff_diffusion.inference.trigger_tokens import initial_vectors

DOG, CAT = "a sks dog on a beach", "a red zwx cat"


def draw(pipe, prompt, **settings):
    count = len(prompt) if isinstance(prompt, list) else 1
    pictures = count * settings.get("num_images_per_prompt", 1)
    generators = [torch.Generator().manual_seed(i) for i in range(pictures)]
    settings = {"num_inference_steps": 2, "guidance_scale": 4.0, "output_type": "pt", **settings}
    return pipe(prompt, generator=generators, **settings).images


@pytest.mark.parametrize("vectors", [1, 3])
def test_zero_is_the_bases_picture_of_the_class_word_bitwise(tiny_pipe, new_subject, vectors: int) -> None:
    words = ["a dog on a beach", "a red cat", "a dog's bowl"]
    base = draw(tiny_pipe, words, negative_prompt=["", "a dog", ""])
    load_coefficients(tiny_pipe, new_subject("dog", vectors=vectors, class_word="dog"))
    load_coefficients(tiny_pipe, new_subject("cat", "zwx cat", vectors=vectors, seed=2, class_word="cat"))
    for strengths in ({}, {"dog": 0, "cat": 0.0}):
        set_coefficients(tiny_pipe, strengths)
        asked = [DOG, CAT, "a SKS  dog's bowl"]
        assert torch.equal(draw(tiny_pipe, asked, negative_prompt=["", "a sks dog", ""]), base)


def test_one_is_what_was_learned_bitwise_and_between_lies_the_line(tiny_pipe, new_subject) -> None:
    subject = new_subject("dog", vectors=2, class_word="dog")
    start = initial_vectors(tiny_pipe.tokenizer, tiny_pipe.text_encoder, "dog", 2)
    load_coefficients(tiny_pipe, subject)
    embedding, learned = tiny_pipe.text_encoder.get_input_embeddings(), subject.tokens["text_encoder"]
    ids = tiny_pipe.tokenizer("sks dog", add_special_tokens=False, return_tensors="pt").input_ids.repeat(4, 1)
    strengths = (0.0, 0.5, 1.0, 1.5)
    with embedding.at_strengths("dog", strengths):
        found = embedding(ids)
    assert torch.equal(found[0], start)
    assert torch.equal(found[2], learned)
    for number, strength in enumerate(strengths):
        torch.testing.assert_close(found[number], start + strength * (learned - start))
    assert torch.equal(embedding(ids)[0], learned)  # as it was
    as_learned = draw(tiny_pipe, DOG)
    set_coefficients(tiny_pipe, {"dog": 1.0})
    assert torch.equal(draw(tiny_pipe, DOG), as_learned)


@pytest.mark.parametrize("class_word", ["dog", ""])
def test_it_does_not_matter_what_was_drawn_before_the_subject_was_loaded(
    tiny_pipe, new_subject, class_word: str
) -> None:
    subject = new_subject("dog", vectors=2, class_word=class_word)
    load_coefficients(tiny_pipe, subject, strength=0.5)
    at_once = draw(tiny_pipe, DOG)
    unload_coefficients(tiny_pipe)
    draw(tiny_pipe, "a beach")
    load_coefficients(tiny_pipe, subject, strength=0.5)
    assert torch.equal(draw(tiny_pipe, DOG), at_once)


def test_each_picture_has_the_strengths_of_its_own(tiny_pipe, new_subject) -> None:
    load_coefficients(tiny_pipe, new_subject("dog", vectors=1, class_word="dog"))
    load_coefficients(tiny_pipe, new_subject("cat", "zwx cat", vectors=2, seed=2, class_word="cat"))
    prompts, choice = [DOG, "a sks dog and a zwx cat", DOG], [{"dog": 0.5}, {"dog": 0.3, "cat": 0.7}, {}]
    set_coefficients(tiny_pipe, per_sample=choice)
    together = draw(tiny_pipe, prompts)
    for number, strengths in enumerate(choice):
        set_coefficients(tiny_pipe, strengths)
        alone = tiny_pipe(
            prompts[number], generator=[torch.Generator().manual_seed(number)], num_inference_steps=2,
            guidance_scale=4.0, output_type="pt",
        ).images  # fmt: skip
        torch.testing.assert_close(together[number], alone[0], atol=1e-3, rtol=0)


@pytest.mark.parametrize("strengths", [(0, 1), (1, 0), (0.5, 0)])
def test_one_negative_prompt_is_read_at_the_strength_of_each_picture(tiny_xl_pipe, strengths) -> None:
    encoders = ("text_encoder", "text_encoder_2")
    tokens = {name: torch.randn(1, getattr(tiny_xl_pipe, name).config.hidden_size) for name in encoders}
    info = CoefficientsInfo(name="dog", trigger="sks dog", class_word="red dog")
    load_coefficients(tiny_xl_pipe, Coefficients({}, tokens, info))
    set_coefficients(tiny_xl_pipe, per_sample=[{"dog": strength} for strength in strengths])
    together = draw(tiny_xl_pipe, ["a beach", "a beach"], negative_prompt="a sks dog")
    for number, strength in enumerate(strengths):
        set_coefficients(tiny_xl_pipe, {"dog": strength})
        alone = draw(tiny_xl_pipe, ["a beach", "a beach"], negative_prompt="a sks dog")
        torch.testing.assert_close(together[number], alone[number], atol=1e-4, rtol=0)


def test_pictures_of_one_prompt_have_one_strength(tiny_pipe, new_subject) -> None:
    load_coefficients(tiny_pipe, new_subject("dog", vectors=1, class_word="dog"))
    set_coefficients(tiny_pipe, per_sample=[{"dog": 1}, {"dog": 0.5}])
    with pytest.raises(CoefficientsError, match="of one prompt have 'dog' at strengths .*once for each picture"):
        draw(tiny_pipe, DOG, num_images_per_prompt=2)
    set_coefficients(tiny_pipe, per_sample=[{"dog": 0.5}, {"dog": 0.5}])
    twice = draw(tiny_pipe, DOG, num_images_per_prompt=2)
    set_coefficients(tiny_pipe, per_sample=[{"dog": 0.5}, {"dog": 0.5}])
    torch.testing.assert_close(twice, draw(tiny_pipe, [DOG, DOG]), atol=1e-4, rtol=0)


def test_prompts_that_others_encode_are_read_at_the_strength_too(tiny_pipe, new_subject) -> None:
    """Compel and others call the text encoder themselves and give `prompt_embeds`."""
    load_coefficients(tiny_pipe, new_subject("dog", vectors=1, class_word="dog"), gate="always")

    @torch.no_grad()
    def encoded(text: str) -> torch.Tensor:
        ids = tiny_pipe.tokenizer(text, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return tiny_pipe.text_encoder(ids)[0]

    for strength in (1, 0.5, 0):
        set_coefficients(tiny_pipe, {"dog": strength})
        ours, _ = tiny_pipe.encode_prompt(DOG, "cpu", 1, False)
        assert torch.equal(encoded(DOG), ours)
    set_coefficients(tiny_pipe, per_sample=[{"dog": 0.5}, {"dog": 0}])
    tiny_pipe.encode_prompt([DOG, DOG], "cpu", 1, False)
    assert encoded([DOG, DOG, DOG]).shape[0] == 3  # nobody knows whose they are


def test_without_a_class_word_zero_is_the_triggers_own_words(tiny_pipe, new_subject) -> None:
    subject = new_subject("dog", vectors=1, class_word="")
    own = initial_vectors(tiny_pipe.tokenizer, tiny_pipe.text_encoder, "sks dog", 1)
    load_coefficients(tiny_pipe, subject)
    set_coefficients(tiny_pipe, {})
    found = draw(tiny_pipe, DOG)
    unload_coefficients(tiny_pipe)
    load_coefficients(tiny_pipe, subject.replace(coeffs={}, tokens={"text_encoder": own}))
    assert torch.equal(draw(tiny_pipe, DOG), found)


def test_sdxl_reads_it_with_both_encoders(tiny_xl_pipe) -> None:
    base = draw(tiny_xl_pipe, "a dog on a beach", prompt_2="one dog")
    encoders = ("text_encoder", "text_encoder_2")
    tokens = {name: torch.randn(1, getattr(tiny_xl_pipe, name).config.hidden_size) for name in encoders}
    info = CoefficientsInfo(name="dog", trigger="sks dog", class_word="dog")
    load_coefficients(tiny_xl_pipe, Coefficients({}, tokens, info))
    learned = draw(tiny_xl_pipe, DOG, prompt_2="one sks dog")
    assert not torch.allclose(learned, base)
    set_coefficients(tiny_xl_pipe, {"dog": 0})
    assert torch.equal(draw(tiny_xl_pipe, DOG, prompt_2="one sks dog"), base)
    assert list(loaded_coefficients(tiny_xl_pipe)) == ["dog"]
