"""Subjects that recombine the heads of text encoders: which texts are read with them, and that they leave no trace."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from peft import LoraConfig
from torch import Tensor

from coeff_diffusion import (
    Coefficients,
    CoefficientsError,
    CoefficientsInfo,
    LayerStrengths,
    load_coefficients,
    set_coefficients,
    unload_coefficients,
)
from coeff_diffusion.families.registry import encoders_of, family_of
from coeff_diffusion.inference.request import DrawRequest
from coeff_diffusion.inference.studio import Studio
from coeff_diffusion.method.recombination import recombined_attention

DOG, CAT, BEACH = "a photo of sks dog", "a zwx cat, red", "a beach in the snow"


def reading(pipe: Any, word: str = "dog", trigger: str = "sks dog", vectors: int = 0, seed: int = 0) -> Coefficients:
    """A subject that recombines heads of text encoders and nothing else; with `vectors`, its trigger is a token."""
    generator, family = torch.Generator().manual_seed(seed), family_of(pipe)
    coeffs = {
        path: torch.randn(site.heads, site.heads, generator=generator)
        for name, encoder in encoders_of(pipe).items()
        for path, site in family.text_sites(name, encoder).items()
    }
    tokens = {
        name: torch.randn(vectors, encoder.config.hidden_size, generator=generator)
        for name, encoder in encoders_of(pipe).items()
        if vectors
    }
    return Coefficients(coeffs, tokens, CoefficientsInfo(name=word, trigger=trigger, class_word=word, layers="text"))


def encoded(pipe: Any, prompts: str | Sequence[str], negative: Any = None, images: int = 1) -> list[Tensor]:
    """What the text encoders make of prompts and of negative prompts, and of XL the pooled text."""
    prompts = prompts if isinstance(prompts, str) else list(prompts)
    found = pipe.encode_prompt(
        prompts, device="cpu", num_images_per_prompt=images, do_classifier_free_guidance=True, negative_prompt=negative
    )
    return [one.detach() for one in found]


def changed(found: Sequence[Tensor], base: Sequence[Tensor]) -> list[list[bool]]:
    """Of each tensor, the rows that are not the same bits."""
    return [
        [not torch.equal(mine, theirs) for mine, theirs in zip(*pair, strict=True)]
        for pair in zip(found, base, strict=True)
    ]


@pytest.mark.parametrize("vectors", [0, 2])
def test_a_text_without_the_trigger_is_the_bases(tiny_pipe: StableDiffusionPipeline, vectors: int) -> None:
    prompts, negative = [DOG, BEACH, "two sks  Dogs, a SKS dog!"], ["", DOG, "blurry"]
    base = encoded(tiny_pipe, prompts, negative)
    load_coefficients(tiny_pipe, reading(tiny_pipe, vectors=vectors))
    found = encoded(tiny_pipe, prompts, negative)
    # The second negative prompt has the trigger, but guides a picture that does not show the subject.
    assert changed(found, base) == [[True, False, True], [False, bool(vectors), False]]
    set_coefficients(tiny_pipe, {"dog": 0.0})
    assert changed(encoded(tiny_pipe, [BEACH], ["blurry"]), [base[0][1:2], base[1][2:]]) == [[False], [False]]


def test_a_negative_prompt_with_the_trigger_is_read_with_the_subject(tiny_pipe: StableDiffusionPipeline) -> None:
    base = encoded(tiny_pipe, DOG, DOG)
    load_coefficients(tiny_pipe, reading(tiny_pipe))
    assert changed(encoded(tiny_pipe, DOG, DOG), base) == [[True], [True]]
    set_coefficients(tiny_pipe, {"dog": 1}, guidance_rows="cond")
    assert changed(encoded(tiny_pipe, DOG, DOG), base) == [[True], [False]]


def test_with_the_gate_open_every_text_is(tiny_pipe: StableDiffusionPipeline) -> None:
    base = encoded(tiny_pipe, [DOG, BEACH])
    load_coefficients(tiny_pipe, reading(tiny_pipe), gate="always")
    assert changed(encoded(tiny_pipe, [DOG, BEACH]), base) == [[True, True], [True, True]]
    set_coefficients(tiny_pipe, {"dog": 1}, guidance_rows="cond")
    assert changed(encoded(tiny_pipe, [DOG, BEACH]), base) == [[True, True], [False, False]]


def test_zero_is_the_base_bitwise_and_unloading_leaves_no_trace(tiny_pipe: StableDiffusionPipeline) -> None:
    encoder = tiny_pipe.text_encoder
    base = encoded(tiny_pipe, [DOG, BEACH])
    before = set(vars(encoder)), [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in encoder.modules()]
    nothing = reading(tiny_pipe).scaled(0.0)
    load_coefficients(tiny_pipe, nothing, gate="always")
    assert changed(encoded(tiny_pipe, [DOG, BEACH]), base) == [[False] * 2] * 2
    unload_coefficients(tiny_pipe)
    load_coefficients(tiny_pipe, reading(tiny_pipe, vectors=1))
    load_coefficients(
        tiny_pipe, Coefficients({}, {"text_encoder": torch.ones(1, 32)}, CoefficientsInfo("pot", "red pot"))
    )
    encoded(tiny_pipe, [DOG, BEACH])
    unload_coefficients(tiny_pipe, "dog")  # the other one recombines nothing
    assert not [name for name in vars(encoder) if name.startswith("_coeff")]
    unload_coefficients(tiny_pipe)
    assert changed(encoded(tiny_pipe, [DOG, BEACH]), base) == [[False] * 2] * 2
    assert before == (
        set(vars(encoder)),
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in encoder.modules()],
    )


def by_hand(encoder: Any, ids: Tensor, coeffs: Mapping[str, Tensor]) -> Tensor:
    """The hidden states of CLIP, written down once more, with recombined maps and a causal mask."""
    hidden = encoder.embeddings(input_ids=ids)
    mask = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
    for layer, coeff in zip(encoder.encoder.layers, coeffs.values(), strict=True):
        own, normed = layer.self_attn, layer.layer_norm1(hidden)
        query, key, value = (
            projection(normed).unflatten(-1, (own.num_heads, -1)).transpose(1, 2)
            for projection in (own.q_proj, own.k_proj, own.v_proj)
        )
        mixed = recombined_attention(query, key, value, coeff, mask, own.scale).transpose(1, 2).flatten(2)
        hidden = hidden + own.out_proj(mixed)
        hidden = hidden + layer.mlp(layer.layer_norm2(hidden))
    return encoder.final_layer_norm(hidden)  # type: ignore[no-any-return]


def test_it_is_the_method_with_a_causal_mask(tiny_pipe: StableDiffusionPipeline) -> None:
    subject = reading(tiny_pipe)
    ids = tiny_pipe.tokenizer([DOG, CAT], padding="max_length", max_length=77, return_tensors="pt").input_ids
    expected = by_hand(tiny_pipe.text_encoder, ids, subject)
    load_coefficients(tiny_pipe, subject, gate="always")
    torch.testing.assert_close(encoded(tiny_pipe, [DOG, CAT])[0], expected.detach(), atol=1e-5, rtol=1e-5)
    start = encoded(tiny_pipe, [f"{DOG} on a beach", f"{DOG} in snow"])[0]
    words = len(tiny_pipe.tokenizer(DOG).input_ids) - 1
    assert torch.equal(start[0, :words], start[1, :words])  # a word is read without those that follow
    assert not torch.equal(start[0], start[1])


def test_padding_that_is_masked_is_not_read(tiny_pipe: StableDiffusionPipeline) -> None:
    tiny_pipe.text_encoder.config.use_attention_mask = True
    load_coefficients(tiny_pipe, reading(tiny_pipe), gate="always")
    padded = encoded(tiny_pipe, [DOG, f"{DOG} on a beach in the snow"])[0]
    alone = encoded(tiny_pipe, DOG)[0]
    torch.testing.assert_close(padded[:1], alone, atol=1e-5, rtol=1e-5)


def test_a_batch_is_what_its_texts_are_alone(tiny_pipe: StableDiffusionPipeline) -> None:
    load_coefficients(tiny_pipe, reading(tiny_pipe, vectors=1))
    load_coefficients(tiny_pipe, reading(tiny_pipe, "cat", "zwx cat", seed=1))
    prompts = [DOG, CAT, "a zwx cat and a sks dog", BEACH]
    strengths = [{"dog": 1.0}, {"cat": 0.5}, {"cat": -1.0, "dog": 0.5}, {"dog": 1.0}]
    set_coefficients(tiny_pipe, per_sample=strengths)
    together = encoded(tiny_pipe, prompts)[0]
    for row, (prompt, one) in enumerate(zip(prompts, strengths, strict=True)):
        set_coefficients(tiny_pipe, one)
        torch.testing.assert_close(together[row], encoded(tiny_pipe, prompt)[0][0], atol=1e-5, rtol=1e-5)
    set_coefficients(tiny_pipe, per_sample=[{"cat": 1}, {"cat": 0.5}])
    with pytest.raises(CoefficientsError, match=r"pictures of one prompt have 'cat' at strengths \[0.5, 1.0\]"):
        encoded(tiny_pipe, CAT, images=2)


def test_strengths_are_linear_and_have_a_factor_of_their_own(tiny_pipe: StableDiffusionPipeline) -> None:
    dog, base = reading(tiny_pipe), encoded(tiny_pipe, DOG)
    load_coefficients(tiny_pipe, dog.scaled(0.5))
    half = encoded(tiny_pipe, DOG)
    unload_coefficients(tiny_pipe)
    load_coefficients(tiny_pipe, dog, strength=2)
    assert not torch.equal(encoded(tiny_pipe, DOG)[0], half[0])
    set_coefficients(tiny_pipe, {"dog": 2}, layers=LayerStrengths(text=0.25, self_attention=7))
    assert torch.equal(encoded(tiny_pipe, DOG)[0], half[0])
    set_coefficients(tiny_pipe, {"dog": 2}, layers=LayerStrengths(text=0))
    assert torch.equal(encoded(tiny_pipe, DOG)[0], base[0])


def test_both_text_encoders_of_xl(tiny_xl_pipe: StableDiffusionXLPipeline) -> None:
    base = encoded(tiny_xl_pipe, [DOG, BEACH], ["", ""])
    subject = reading(tiny_xl_pipe, vectors=1)
    load_coefficients(tiny_xl_pipe, subject)
    whole = encoded(tiny_xl_pipe, [DOG, BEACH], ["", ""])
    assert changed(whole, base) == [[True, False], [False, False]] * 2
    unload_coefficients(tiny_xl_pipe)
    info = replace(subject.info, blocks=("text_encoder_2/*",))
    load_coefficients(tiny_xl_pipe, subject.replace(coeffs=subject.of_text_encoder("text_encoder_2"), info=info))
    second = encoded(tiny_xl_pipe, [DOG, BEACH], ["", ""])
    assert torch.equal(second[0][..., 32:], whole[0][..., 32:])
    assert torch.equal(second[2], whole[2])
    assert not torch.equal(second[0][0, :, :32], whole[0][0, :, :32])


def test_a_prompt_of_the_second_encoder_alone(tiny_xl_pipe: StableDiffusionXLPipeline) -> None:
    """Each encoder reads its own prompt: the trigger may stand in one of them."""

    def both() -> Tensor:
        found: Tensor = tiny_xl_pipe.encode_prompt(
            BEACH, prompt_2=DOG, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )[0]
        return found.detach()

    base = both()
    load_coefficients(tiny_xl_pipe, reading(tiny_xl_pipe))
    assert torch.equal(both()[..., :32], base[..., :32])
    assert not torch.equal(both()[..., 32:], base[..., 32:])


def test_a_lora_of_the_text_encoder_acts_beside_it(tiny_pipe: StableDiffusionPipeline) -> None:
    base = encoded(tiny_pipe, [DOG, BEACH])
    tiny_pipe.text_encoder.add_adapter(LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    lora = encoded(tiny_pipe, [DOG, BEACH])
    load_coefficients(tiny_pipe, reading(tiny_pipe))
    both = encoded(tiny_pipe, [DOG, BEACH])
    assert changed(both, lora) == [[True, False], [False, False]]
    assert changed(both, base)[0] == [True, True]
    unload_coefficients(tiny_pipe)
    assert changed(encoded(tiny_pipe, [DOG, BEACH]), lora) == [[False] * 2] * 2


def test_what_stages_read_at_the_trigger_stays_where_it_is(tiny_pipe: StableDiffusionPipeline) -> None:
    def latents() -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
        found: Tensor = tiny_pipe(
            [DOG, BEACH], num_inference_steps=2, generator=generators, output_type="latent"
        ).images
        return found

    base, subject = latents(), reading(tiny_pipe, vectors=1)
    subject = subject.replace(stage_tokens={"mid_block": torch.ones(1, 32)})
    load_coefficients(tiny_pipe, subject.replace(coeffs={}))
    told = latents()
    unload_coefficients(tiny_pipe)
    load_coefficients(tiny_pipe, subject)
    both = latents()
    assert changed([both], [base]) == [[True, False]]
    assert changed([both], [told]) == [[True, False]]
    set_coefficients(tiny_pipe, {"dog": 1}, layers=LayerStrengths(text=0))
    assert torch.equal(latents(), told)


def test_pipelines_may_share_a_text_encoder(tiny_pipe: StableDiffusionPipeline) -> None:
    sibling = StableDiffusionImg2ImgPipeline.from_pipe(tiny_pipe)
    base = encoded(tiny_pipe, [DOG, CAT])
    load_coefficients(tiny_pipe, reading(tiny_pipe))
    load_coefficients(sibling, reading(tiny_pipe, "cat", "zwx cat", seed=1))
    assert changed(encoded(tiny_pipe, [DOG, CAT]), base)[0] == [True, False]
    assert changed(encoded(sibling, [DOG, CAT]), base)[0] == [False, True]
    unload_coefficients(tiny_pipe)
    assert changed(encoded(sibling, [DOG, CAT]), base)[0] == [False, True]
    twin = copy.deepcopy(sibling)
    unload_coefficients(sibling)
    assert changed(encoded(tiny_pipe, [DOG, CAT]), base)[0] == [False, False]
    assert changed(encoded(twin, [DOG, CAT]), base)[0] == [False, True]


def test_the_prompt_is_read_once_whenever_the_subject_acts(tiny_pipe: StableDiffusionPipeline) -> None:
    """`act_from` and `act_until` are of denoising; the text encoder has read the prompt by then."""
    studio = Studio(tiny_pipe)
    name = studio.load(reading(tiny_pipe))
    settings: dict[str, Any] = {"subjects": {name: 1.0}, "steps": 2, "seed": 0}
    whole, late = (studio.draw(DrawRequest(DOG, begin=begin, **settings))[0].image for begin in (0.0, 0.5))
    without = studio.draw(DrawRequest(DOG, layers=LayerStrengths(text=0), **settings))[0].image
    assert late.tobytes() == whole.tobytes() != without.tobytes()


def test_what_cannot_act_is_said(tiny_pipe: StableDiffusionPipeline) -> None:
    embeds, negative = encoded(tiny_pipe, DOG)
    load_coefficients(tiny_pipe, reading(tiny_pipe), gate="always")
    with pytest.warns(UserWarning, match="'dog' also acts where the prompt is read; prompt_embeds were given"):
        tiny_pipe(prompt_embeds=embeds, negative_prompt_embeds=negative, num_inference_steps=1, output_type="latent")
    other = copy.deepcopy(tiny_pipe).text_encoder
    unload_coefficients(tiny_pipe)
    load_coefficients(tiny_pipe, reading(tiny_pipe))
    tiny_pipe.text_encoder = other
    with pytest.raises(CoefficientsError, match="text_encoder was exchanged"):
        encoded(tiny_pipe, DOG)


def test_an_error_ends_the_reading(tiny_pipe: StableDiffusionPipeline) -> None:
    base = encoded(tiny_pipe, [DOG, BEACH])
    load_coefficients(tiny_pipe, reading(tiny_pipe))
    with pytest.raises(ValueError, match="batch size"):
        encoded(tiny_pipe, [DOG, BEACH], ["one", "two", "three"])
    ids = tiny_pipe.tokenizer(DOG, padding="max_length", max_length=77, return_tensors="pt").input_ids
    assert torch.equal(tiny_pipe.text_encoder(ids)[0].detach(), base[0][:1])  # outside of a prompt nothing acts


def test_another_way_to_attend_is_refused(tiny_pipe: StableDiffusionPipeline) -> None:
    subject = reading(tiny_pipe)
    tiny_pipe.text_encoder.set_attn_implementation("eager")
    with pytest.raises(CoefficientsError, match="computes its attention by 'eager'"):
        load_coefficients(tiny_pipe, subject)
    assert not [part for part in (tiny_pipe.unet, tiny_pipe.text_encoder) for name in vars(part) if "_coeff" in name]
