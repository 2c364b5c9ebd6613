"""Subjects on a stock pipeline: what they draw, whom they leave alone, and that they leave no trace."""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from coeff_diffusion import (
    AttachmentError,
    Coefficients,
    CoefficientsError,
    CoefficientsInfo,
    attach,
    blend,
    load_coefficients,
    loaded_coefficients,
    set_coefficients,
    unload_coefficients,
)
from coeff_diffusion.method.attachment import is_attached
from coeff_diffusion.subject.layer_strengths import LayerStrengths

Subject = Callable[..., Coefficients]
DOG, CAT, BEACH = "a photo of sks dog", "a Zwx  Cat, red", "a beach in the snow"


def draw(pipe: Any, prompts: str | list[str], seeds: list[int] | None = None, **options: Any) -> Tensor:
    """Latents of one picture per prompt and image, the picture at position i of seed i."""
    count = (1 if isinstance(prompts, str) else len(prompts)) * options.get("num_images_per_prompt", 1)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds or range(count)]
    options = {"num_inference_steps": 2, "guidance_scale": 5.0, "output_type": "latent", **options}
    latents: Tensor = pipe(prompts, generator=generators, **options).images
    return latents


def same(first: Tensor, second: Tensor) -> bool:
    """Whether two pictures are the same but for rounding."""
    return torch.allclose(first, second, rtol=1e-3, atol=1e-3)


def snapshot(pipe: Any) -> dict[str, Any]:
    """All of a pipeline that loading could change."""
    return {
        "attributes": set(pipe.__dict__),
        "config": dict(pipe.config),
        "parts": {name: id(part) for name, part in pipe.components.items()},
        "encode_prompt": pipe.encode_prompt,
        "processors": {name: id(one) for name, one in pipe.unet.attn_processors.items()},
        "unet attributes": set(pipe.unet.__dict__),
        "hooks": (dict(pipe.unet._forward_pre_hooks), dict(pipe.unet._forward_hooks)),
        "embedding": id(pipe.text_encoder.get_input_embeddings()),
        "weights": {
            key: value.clone() for part in (pipe.unet, pipe.text_encoder) for key, value in part.state_dict().items()
        },
        "tokenizer": pipe.tokenizer.backend_tokenizer.to_str(),
    }


def assert_unchanged(pipe: Any, before: dict[str, Any]) -> None:
    after = snapshot(pipe)
    weights, expected = after.pop("weights"), {**before}.pop("weights")
    assert after == {key: value for key, value in before.items() if key != "weights"}
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[key], value) for key, value in expected.items())


# --- loading and unloading --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vectors", [0, 1, 3])
def test_unloading_leaves_no_trace(tiny_pipe: StableDiffusionPipeline, new_subject: Subject, vectors: int) -> None:
    prompts = [DOG, CAT, BEACH]
    base, before = draw(tiny_pipe, prompts), snapshot(tiny_pipe)
    embeddings = tiny_pipe.encode_prompt(prompts, "cpu", 1, True)
    load_coefficients(tiny_pipe, new_subject("dog", "sks dog", vectors))
    load_coefficients(tiny_pipe, new_subject("cat", "zwx cat", vectors, seed=2))
    assert not same(draw(tiny_pipe, prompts), base)
    unload_coefficients(tiny_pipe, "dog")
    unload_coefficients(tiny_pipe)
    assert_unchanged(tiny_pipe, before)
    assert torch.equal(draw(tiny_pipe, prompts), base)
    after = tiny_pipe.encode_prompt(prompts, "cpu", 1, True)
    assert all(torch.equal(one, other) for one, other in zip(after, embeddings, strict=True))
    unload_coefficients(tiny_pipe)


def test_sources_and_names(tiny_pipe: StableDiffusionPipeline, new_subject: Subject, tmp_path: Path) -> None:
    subject = new_subject("dog", vectors=1)
    subject.save(tmp_path / "dog.safetensors")
    (tmp_path / "run").mkdir()
    subject.save(tmp_path / "run" / "coefficients.safetensors")
    assert load_coefficients(tiny_pipe, subject) == "dog"
    assert load_coefficients(tiny_pipe, tmp_path / "dog.safetensors", name="file", trigger="zwx one") == "file"
    assert load_coefficients(tiny_pipe, str(tmp_path / "run"), name="folder", trigger="zwx two") == "folder"
    loaded = loaded_coefficients(tiny_pipe)
    assert list(loaded) == ["dog", "file", "folder"]
    assert loaded["dog"] == subject
    assert loaded["folder"].info.trigger == "zwx two"
    unload_coefficients(tiny_pipe)
    assert loaded_coefficients(tiny_pipe) == {}


def test_a_saved_subject_draws_the_same_bitwise(
    tiny_pipe: StableDiffusionPipeline, new_subject: Subject, tmp_path: Path
) -> None:
    new_subject(vectors=2).save(tmp_path / "dog.safetensors")
    load_coefficients(tiny_pipe, new_subject(vectors=2))
    direct = draw(tiny_pipe, DOG)
    unload_coefficients(tiny_pipe)
    load_coefficients(tiny_pipe, tmp_path / "dog.safetensors")
    assert torch.equal(draw(tiny_pipe, DOG), direct)


def test_the_pipeline_still_saves_as_the_base(
    tiny_pipe: StableDiffusionPipeline, new_subject: Subject, tmp_path: Path
) -> None:
    base = draw(tiny_pipe, DOG)
    load_coefficients(tiny_pipe, new_subject(vectors=1))
    tiny_pipe.save_pretrained(tmp_path)
    again = StableDiffusionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(draw(again, DOG), base)
    load_coefficients(again, new_subject(vectors=1))
    assert torch.equal(draw(again, DOG), draw(tiny_pipe, DOG))


# --- what acts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vectors", [0, 2])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_prompts_without_the_trigger_are_the_base_bitwise(
    tiny_pipe: StableDiffusionPipeline, new_subject: Subject, vectors: int, guidance: float
) -> None:
    mixed = [BEACH, DOG, "a dog", "sks dogs", CAT]
    base = draw(tiny_pipe, mixed, guidance_scale=guidance)
    load_coefficients(tiny_pipe, new_subject("dog", "sks dog", vectors))
    drawn = draw(tiny_pipe, mixed, guidance_scale=guidance)
    assert [torch.equal(one, other) for one, other in zip(drawn, base, strict=True)] == [True, False, True, True, True]
    assert not same(drawn[1], base[1])
    assert torch.equal(draw(tiny_pipe, BEACH), draw(tiny_pipe, BEACH, seeds=[0]))


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_a_mixed_batch_is_its_pictures_drawn_alone(
    tiny_pipe: StableDiffusionPipeline, new_subject: Subject, guidance: float
) -> None:
    load_coefficients(tiny_pipe, new_subject("dog", "sks dog", 1))
    load_coefficients(tiny_pipe, new_subject("cat", "zwx cat", 2, seed=2), strength=0.5)
    prompts = [DOG, CAT, BEACH, f"{DOG} and {CAT}"]
    together = draw(tiny_pipe, prompts, guidance_scale=guidance)
    for i, prompt in enumerate(prompts):
        assert same(draw(tiny_pipe, prompt, seeds=[i], guidance_scale=guidance)[0], together[i])
    assert not same(together[0], together[1])


def test_several_images_per_prompt(tiny_pipe: StableDiffusionPipeline, new_subject: Subject) -> None:
    base = draw(tiny_pipe, [BEACH, DOG], num_images_per_prompt=2)
    load_coefficients(tiny_pipe, new_subject())
    drawn = draw(tiny_pipe, [BEACH, DOG], num_images_per_prompt=2)
    assert [torch.equal(one, other) for one, other in zip(drawn, base, strict=True)] == [True, True, False, False]


def test_always_acts_on_every_prompt(tiny_pipe: StableDiffusionPipeline, new_subject: Subject) -> None:
    base = draw(tiny_pipe, BEACH)
    load_coefficients(tiny_pipe, new_subject(gate="always"))
    always = draw(tiny_pipe, BEACH)
    assert not same(always, base)
    set_coefficients(tiny_pipe, {"dog": 1}, gate="trigger")
    assert torch.equal(draw(tiny_pipe, BEACH), base)
    set_coefficients(tiny_pipe, {"dog": 1})
    assert torch.equal(draw(tiny_pipe, BEACH), always)
    unload_coefficients(tiny_pipe)
    load_coefficients(tiny_pipe, new_subject(trigger=""))  # without a trigger there is nothing to wait for
    assert torch.equal(draw(tiny_pipe, BEACH), always)


def test_strengths_blend_linearly(tiny_pipe: StableDiffusionPipeline, new_subject: Subject) -> None:
    dog, cat = new_subject("dog", gate="always"), new_subject("cat", "zwx cat", seed=2, gate="always")
    load_coefficients(tiny_pipe, dog)
    load_coefficients(tiny_pipe, cat)
    set_coefficients(tiny_pipe, {"dog": 0.75, "cat": -0.25})
    both = draw(tiny_pipe, BEACH)
    unload_coefficients(tiny_pipe)
    load_coefficients(tiny_pipe, blend({dog: 0.75, cat: -0.25}))
    assert same(draw(tiny_pipe, BEACH), both)


def test_strength_zero_is_the_base_bitwise(tiny_pipe: StableDiffusionPipeline, new_subject: Subject) -> None:
    base = draw(tiny_pipe, [DOG, CAT])
    load_coefficients(tiny_pipe, new_subject("dog"))
    load_coefficients(tiny_pipe, new_subject("cat", "zwx cat", seed=2))
    set_coefficients(tiny_pipe, {})
    assert torch.equal(draw(tiny_pipe, [DOG, CAT]), base)
    set_coefficients(tiny_pipe, {"dog": 0, "cat": 0.0}, gate="always")
    assert torch.equal(draw(tiny_pipe, [DOG, CAT]), base)
    set_coefficients(tiny_pipe, {"dog": 1})
    drawn = draw(tiny_pipe, [DOG, CAT])
    assert not same(drawn[0], base[0])
    assert torch.equal(drawn[1], base[1])


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_a_subject_of_its_own_for_every_picture(
    tiny_pipe: StableDiffusionPipeline, new_subject: Subject, guidance: float
) -> None:
    load_coefficients(tiny_pipe, new_subject("dog", gate="always"))
    load_coefficients(tiny_pipe, new_subject("cat", "zwx cat", seed=2, gate="always"))
    choice = [{"dog": 1.0}, {"cat": 0.5}, {}, {"dog": 0.5, "cat": 0.5}]
    set_coefficients(tiny_pipe, per_sample=choice)
    together = draw(tiny_pipe, [BEACH] * 4, guidance_scale=guidance)
    for i, strengths in enumerate(choice):
        set_coefficients(tiny_pipe, strengths)
        assert same(draw(tiny_pipe, BEACH, seeds=[i], guidance_scale=guidance)[0], together[i])
    unload_coefficients(tiny_pipe)
    assert torch.equal(draw(tiny_pipe, [BEACH] * 4, guidance_scale=guidance)[2], together[2])


def test_subjects_of_other_layers_in_one_batch(tiny_pipe: StableDiffusionPipeline, new_subject: Subject) -> None:
    every = new_subject("all")
    cross = {path: coeff for path, coeff in new_subject(seed=2).items() if path.endswith("attn2")}
    info = CoefficientsInfo(name="cross", trigger="zwx cat", layers="cross")
    base = draw(tiny_pipe, [DOG, CAT, BEACH])
    load_coefficients(tiny_pipe, every)
    load_coefficients(tiny_pipe, Coefficients(cross, info=info))
    together = draw(tiny_pipe, [DOG, CAT, BEACH])
    for i, prompt in enumerate([DOG, CAT]):
        assert same(draw(tiny_pipe, prompt, seeds=[i])[0], together[i])
        assert not same(together[i], base[i])
    assert torch.equal(together[2], base[2])


KINDS: dict[str, Callable[[str], bool]] = {
    "self_attention": lambda path: path.endswith("attn1"),
    "cross_attention": lambda path: path.endswith("attn2"),
    "down": lambda path: path.startswith("down_blocks."),
    "mid": lambda path: path.startswith("mid_block."),
    "up": lambda path: path.startswith("up_blocks."),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_of_layer_can_be_left_to_the_base(
    tiny_pipe: StableDiffusionPipeline, new_subject: Subject, kind: str
) -> None:
    """Bitwise what a subject draws that has no coefficients there, and in those layers nothing of ours is computed."""
    whole = new_subject()
    rest = {path: coeff for path, coeff in whole.items() if not KINDS[kind](path)}
    assert 0 < len(rest) < len(whole)
    load_coefficients(tiny_pipe, Coefficients(rest, info=CoefficientsInfo(trigger="sks dog", blocks=tuple(rest))))
    expected = draw(tiny_pipe, [DOG, BEACH])
    unload_coefficients(tiny_pipe)
    load_coefficients(tiny_pipe, whole)
    everywhere = draw(tiny_pipe, [DOG, BEACH])
    set_coefficients(tiny_pipe, {"dog": 1}, layers=LayerStrengths(**{kind: 0}))
    found = draw(tiny_pipe, [DOG, BEACH])
    assert torch.equal(found, expected)
    assert not same(found[0], everywhere[0])
    overrides = tiny_pipe.unet._coeff_attachment.overrides
    assert {path for path, one in overrides.items() if one.acting is None} == whole.keys() - rest
    set_coefficients(tiny_pipe, {"dog": 1})  # factors hold for the choice they were made with
    assert torch.equal(draw(tiny_pipe, [DOG, BEACH]), everywhere)


def test_factors_of_kind_and_part_multiply(tiny_pipe: StableDiffusionPipeline, new_subject: Subject) -> None:
    layers = LayerStrengths(self_attention=-0.5, cross_attention=2, down=0.25, up=0.5)  # exact in floating point
    subject = new_subject()
    scaled = {
        path: coeff
        * (-0.5 if KINDS["self_attention"](path) else 2)
        * (0.25 if KINDS["down"](path) else 0.5 if KINDS["up"](path) else 1)
        for path, coeff in subject.items()
    }
    load_coefficients(tiny_pipe, subject.replace(coeffs=scaled))
    expected = draw(tiny_pipe, DOG)
    unload_coefficients(tiny_pipe)
    load_coefficients(tiny_pipe, subject)
    set_coefficients(tiny_pipe, {"dog": 1}, layers=layers)
    assert torch.equal(draw(tiny_pipe, DOG), expected)
    load_coefficients(tiny_pipe, new_subject("cat", "zwx cat", seed=2))  # leaves what was chosen
    assert torch.equal(draw(tiny_pipe, DOG), expected)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_factors_in_a_mixed_batch(tiny_pipe: StableDiffusionPipeline, new_subject: Subject, guidance: float) -> None:
    prompts = [DOG, CAT, BEACH, f"{DOG} and {CAT}"]
    base = draw(tiny_pipe, prompts, guidance_scale=guidance)
    load_coefficients(tiny_pipe, new_subject())
    load_coefficients(tiny_pipe, new_subject("cat", "zwx cat", seed=2))
    layers = LayerStrengths(cross_attention=0.5, mid=0)
    choice = [{"dog": 1.0}, {"cat": 0.5}, {"dog": 1.0}, {"dog": 0.5, "cat": -0.5}]
    set_coefficients(tiny_pipe, per_sample=choice, layers=layers)
    together = draw(tiny_pipe, prompts, guidance_scale=guidance)
    assert torch.equal(together[2], base[2])
    for i, (prompt, strengths) in enumerate(zip(prompts, choice, strict=True)):
        set_coefficients(tiny_pipe, strengths, layers=layers)
        assert same(draw(tiny_pipe, prompt, seeds=[i], guidance_scale=guidance)[0], together[i])


def test_the_unconditional_branch_can_be_left_to_the_base(
    tiny_pipe: StableDiffusionPipeline, new_subject: Subject
) -> None:
    """Guidance is u + s (c - u): with s = 2, one step, the branches' share in the result tells them apart."""
    seen: list[Tensor] = []
    handle = tiny_pipe.unet.register_forward_hook(lambda module, args, output: seen.append(output[0]))
    draw(tiny_pipe, [DOG, BEACH], num_inference_steps=1)
    load_coefficients(tiny_pipe, new_subject(), guidance_rows="cond")
    draw(tiny_pipe, [DOG, BEACH], num_inference_steps=1)
    set_coefficients(tiny_pipe, {"dog": 1}, guidance_rows="both")
    draw(tiny_pipe, [DOG, BEACH], num_inference_steps=1)
    draw(tiny_pipe, [DOG, BEACH], num_inference_steps=1, guidance_scale=1.0)
    handle.remove()
    base, cond, both, unguided = seen
    assert [torch.equal(cond[row], base[row]) for row in range(4)] == [True, True, False, True]
    assert [torch.equal(both[row], base[row]) for row in range(4)] == [False, True, False, True]
    assert same(cond[2], both[2])
    assert same(unguided, both[2:])


def test_token_alone(tiny_pipe: StableDiffusionPipeline) -> None:
    base = draw(tiny_pipe, [DOG, BEACH])
    word = Coefficients({}, {"text_encoder": torch.randn(2, 32)}, CoefficientsInfo(name="word", trigger="sks dog"))
    load_coefficients(tiny_pipe, word)
    drawn = draw(tiny_pipe, [DOG, BEACH])
    assert not same(drawn[0], base[0])
    assert torch.equal(drawn[1], base[1])


def test_half_precision(tiny_pipe: StableDiffusionPipeline, new_subject: Subject) -> None:
    load_coefficients(tiny_pipe, new_subject(vectors=1))
    exact = draw(tiny_pipe, [DOG, BEACH], num_inference_steps=1)
    tiny_pipe.to(torch.bfloat16)
    drawn = draw(tiny_pipe, [DOG, BEACH], num_inference_steps=1)
    assert drawn.dtype == torch.bfloat16
    torch.testing.assert_close(drawn.float(), exact, rtol=0.1, atol=0.3)


def test_compiled_unet(tiny_pipe: StableDiffusionPipeline, new_subject: Subject) -> None:
    """The doors stand in front of a compiled UNet, too. (What is compiled is tested with the attachment.)"""
    load_coefficients(tiny_pipe, new_subject())
    expected = draw(tiny_pipe, [DOG, BEACH])
    tiny_pipe.unet = torch.compile(tiny_pipe.unet, disable=True)
    assert torch.equal(draw(tiny_pipe, [DOG, BEACH]), expected)
    unload_coefficients(tiny_pipe)
    assert not is_attached(tiny_pipe.unet)


# --- what cannot be ---------------------------------------------------------------------------------------------------


def other(subject: Coefficients, **changes: Any) -> Coefficients:
    return subject.replace(info=CoefficientsInfo(**{**vars(subject.info), **changes}))


def test_what_does_not_fit_changes_nothing(tiny_pipe: StableDiffusionPipeline, new_subject: Subject) -> None:
    good = new_subject(vectors=1)
    path = next(iter(good))
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (good.replace(coeffs={**good, path: torch.zeros(3, 3)}), {}, "attn1 has 3 heads, in this base 4"),
        (good.replace(coeffs={**good, "nowhere": torch.zeros(4, 4)}), {}, "nowhere is no attention layer"),
        (good.replace(coeffs={k: v for k, v in good.items() if k != path}), {}, "attn1 has no coefficients"),
        (good.replace(tokens={"text_encoder": torch.zeros(1, 768)}), {}, "768 channels, .* of this base has 32"),
        (good.replace(tokens={"text_encoder_2": torch.zeros(1, 32)}), {}, "text_encoder_2, which this base"),
        (other(good, trigger="<|endoftext|>"), {}, "clashes with the tokenizer's token"),
        (new_subject(trigger=""), {"gate": "trigger"}, "no trigger to be gated by"),
        (good, {"strength": float("nan")}, "finite strengths"),
        (good, {"guidance_rows": "all"}, "guidance_rows is 'all'"),
        ("nowhere.safetensors", {}, "there is no file"),
    ]
    before = snapshot(tiny_pipe)
    for source, options, message in cases:
        with pytest.raises(CoefficientsError, match=message):
            load_coefficients(tiny_pipe, source, **options)
        assert_unchanged(tiny_pipe, before)


def test_a_failed_second_subject_leaves_the_first(tiny_pipe: StableDiffusionPipeline, new_subject: Subject) -> None:
    load_coefficients(tiny_pipe, new_subject(vectors=1))
    drawn, tokenizer = draw(tiny_pipe, [DOG, BEACH]), tiny_pipe.tokenizer
    for name, trigger, message in [
        ("dog", "zwx", "a subject 'dog' is already loaded"),
        ("cat", "SKS Dog", "'SKS Dog' of 'cat' clashes with 'sks dog' of 'dog'"),
        ("cat", "dog", "'dog' of 'cat' clashes with 'sks dog' of 'dog'"),
        ("cat", "-", "at least one letter"),
    ]:
        for vectors in (0, 1) if name == "cat" and trigger != "-" else (1,):
            with pytest.raises(CoefficientsError, match=message):
                load_coefficients(tiny_pipe, new_subject(vectors=vectors), name=name, trigger=trigger)
    assert tiny_pipe.tokenizer is tokenizer
    assert list(loaded_coefficients(tiny_pipe)) == ["dog"]
    assert torch.equal(draw(tiny_pipe, [DOG, BEACH]), drawn)


def test_subjects_without_tokens_may_share_a_trigger(tiny_pipe: StableDiffusionPipeline, new_subject: Subject) -> None:
    load_coefficients(tiny_pipe, new_subject("early"))
    load_coefficients(tiny_pipe, new_subject("late", seed=2))
    draw(tiny_pipe, DOG)


def test_a_fine_tune_of_the_base_warns_once(tiny_pipe: StableDiffusionPipeline, new_subject: Subject) -> None:
    subject = new_subject(base_model="user/tiny")
    with torch.no_grad():
        tiny_pipe.unet.conv_in.weight.mul_(1.2)
    with pytest.warns(UserWarning, match="user/tiny.* other weights") as caught:
        load_coefficients(tiny_pipe, subject)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(tiny_pipe, DOG)


def test_an_override_of_the_gate_does_not_break_loading(
    tiny_pipe: StableDiffusionPipeline, new_subject: Subject
) -> None:
    load_coefficients(tiny_pipe, new_subject())
    set_coefficients(tiny_pipe, {"dog": 1}, gate="trigger")
    before = snapshot(tiny_pipe)
    with pytest.raises(CoefficientsError, match="'nameless' has no trigger to be gated by"):
        load_coefficients(tiny_pipe, new_subject(trigger=""), name="nameless")
    assert_unchanged(tiny_pipe, before)
    assert list(loaded_coefficients(tiny_pipe)) == ["dog"]


def test_wrong_choices_change_nothing(tiny_pipe: StableDiffusionPipeline, new_subject: Subject) -> None:
    with pytest.raises(CoefficientsError, match="no coefficients are loaded"):
        set_coefficients(tiny_pipe, {"dog": 1})
    with pytest.raises(CoefficientsError, match=r"no subject 'dog' is loaded; loaded are \[\]"):
        unload_coefficients(tiny_pipe, "dog")
    load_coefficients(tiny_pipe, new_subject())
    load_coefficients(tiny_pipe, new_subject(trigger=""), name="nameless", strength=0)
    drawn = draw(tiny_pipe, DOG)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"strengths": {"cat": 1}}, r"no subject 'cat' is loaded; loaded are \['dog', 'nameless'\]"),
        ({"per_sample": [{"dog": 1}, {"cat": 1}]}, "no subject 'cat'"),
        ({"strengths": {"dog": float("inf")}}, "finite strengths, got {'dog': inf}"),
        ({}, "either strengths"),
        ({"strengths": {}, "per_sample": []}, "either strengths"),
        ({"per_sample": []}, "per_sample is empty, expected one mapping per picture"),
        ({"strengths": {"dog": 1}, "layers": LayerStrengths(mid=float("nan"))}, "in mid layers is nan, expected a fin"),
        ({"strengths": {}, "layers": LayerStrengths(up=float("-inf"))}, "in up layers is -inf"),
        ({"strengths": {"dog": 1}, "gate": "never"}, "gate is 'never'"),
        ({"strengths": {"dog": 1}, "guidance_rows": "none"}, "guidance_rows is 'none'"),
        ({"strengths": {"nameless": 1}, "gate": "trigger"}, "'nameless' has no trigger to be gated by"),
    ]
    for options, message in wrong:
        with pytest.raises(CoefficientsError, match=message):
            set_coefficients(tiny_pipe, **options)
    with pytest.raises(CoefficientsError, match=r"no subject 'cat' is loaded; loaded are \['dog', 'nameless'\]"):
        unload_coefficients(tiny_pipe, "cat")
    assert torch.equal(draw(tiny_pipe, DOG), drawn)


def test_batches_that_do_not_match_are_an_error(tiny_pipe: StableDiffusionPipeline, new_subject: Subject) -> None:
    load_coefficients(tiny_pipe, new_subject())
    set_coefficients(tiny_pipe, per_sample=[{"dog": 1}] * 3)
    with pytest.raises(CoefficientsError, match="per_sample has 3 entries, but the prompts make 2"):
        draw(tiny_pipe, [DOG, BEACH])
    set_coefficients(tiny_pipe, {"dog": 1})
    tiny_pipe.encode_prompt([DOG, BEACH], "cpu", 1, True)
    with pytest.raises(CoefficientsError, match="got 5 rows for 2 pictures, expected 2 or, guided, 4"):
        tiny_pipe.unet(torch.randn(5, 4, 8, 8), 1, torch.randn(5, 7, 32))


def test_the_prompts_of_one_drawing_do_not_outlive_it(tiny_pipe: StableDiffusionPipeline, new_subject: Subject) -> None:
    load_coefficients(tiny_pipe, new_subject())
    draw(tiny_pipe, DOG)
    other_pipe = StableDiffusionPipeline(**tiny_pipe.components, requires_safety_checker=False)
    other_pipe.set_progress_bar_config(disable=True)
    with pytest.raises(CoefficientsError, match="another pipeline draws with the same network"):
        draw(other_pipe, BEACH)
    set_coefficients(tiny_pipe, {})
    draw(other_pipe, BEACH)


def test_prompts_that_are_not_known(tiny_pipe: StableDiffusionPipeline, new_subject: Subject) -> None:
    embeddings, negative = tiny_pipe.encode_prompt(DOG, "cpu", 1, True)

    def draw_embeddings() -> Tensor:
        generator = torch.Generator().manual_seed(0)
        options = {"num_inference_steps": 1, "output_type": "latent", "generator": generator}
        return tiny_pipe(prompt_embeds=embeddings, negative_prompt_embeds=negative, **options).images

    base = draw_embeddings()
    load_coefficients(tiny_pipe, new_subject())
    with pytest.raises(CoefficientsError, match="'dog' acts by what the prompt says, but the prompt is not known"):
        tiny_pipe.unet(torch.randn(1, 4, 8, 8), 1, torch.randn(1, 7, 32))
    with pytest.raises(CoefficientsError, match='prompt_embeds were given.* gate="always"'):
        draw_embeddings()
    set_coefficients(tiny_pipe, {"dog": 1}, gate="always")
    assert not same(draw_embeddings(), base)
    set_coefficients(tiny_pipe, {"dog": 1}, gate="always", guidance_rows="cond")
    assert not same(draw_embeddings(), base)
    set_coefficients(tiny_pipe, {})
    assert torch.equal(draw_embeddings(), base)


def test_what_is_exchanged_afterwards_is_an_error(tiny_pipe: StableDiffusionPipeline, new_subject: Subject) -> None:
    unet, other = tiny_pipe.unet, copy.deepcopy(tiny_pipe.unet)
    load_coefficients(tiny_pipe, new_subject(vectors=1))
    embedding = tiny_pipe.text_encoder.get_input_embeddings()
    tiny_pipe.unet = other
    with pytest.raises(CoefficientsError, match="unet was exchanged or resized"):
        draw(tiny_pipe, DOG)
    tiny_pipe.unet = unet
    tiny_pipe.text_encoder.set_input_embeddings(embedding.base)
    with pytest.raises(CoefficientsError, match="text_encoder was exchanged or resized"):
        draw(tiny_pipe, DOG)
    tiny_pipe.text_encoder.set_input_embeddings(embedding)
    tokenizer = tiny_pipe.tokenizer
    tiny_pipe.tokenizer = copy.deepcopy(tokenizer)
    with pytest.raises(CoefficientsError, match="tokenizer was exchanged or resized"):
        draw(tiny_pipe, DOG)
    tiny_pipe.tokenizer = tokenizer
    draw(tiny_pipe, DOG)


def test_a_textual_inversion_beside_it(tiny_pipe: StableDiffusionPipeline, new_subject: Subject) -> None:
    tiny_pipe.load_textual_inversion({"<toy>": torch.randn(32)})
    base = draw(tiny_pipe, ["a <toy> dog", DOG])
    load_coefficients(tiny_pipe, new_subject(vectors=2))
    drawn = draw(tiny_pipe, ["a <toy> dog", DOG])
    assert torch.equal(drawn[0], base[0])
    assert not same(drawn[1], base[1])
    unload_coefficients(tiny_pipe)
    assert torch.equal(draw(tiny_pipe, ["a <toy> dog", DOG]), base)


def test_a_unet_in_training_is_not_touched(tiny_pipe: StableDiffusionPipeline, new_subject: Subject) -> None:
    attach(tiny_pipe.unet)
    before = snapshot(tiny_pipe)
    with pytest.raises(AttachmentError, match="already attached"):
        load_coefficients(tiny_pipe, new_subject(vectors=1))
    assert_unchanged(tiny_pipe, before)
