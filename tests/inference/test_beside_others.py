"""Subjects beside what else people do to a pipeline: it works as without, or is refused before anything changes."""

import copy
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import accelerate
import pytest
import torch
from conftest import XL_WIDTHS
from diffusers import (
    AnimateDiffPipeline,
    AutoPipelineForImage2Image,
    MotionAdapter,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from peft import LoraConfig
from PIL import Image
from subject_maker import make_subject, with_adapter
from test_pipeline_subjects import BEACH, CAT, DOG, Subject, assert_unchanged, draw, same, snapshot

from coeff_diffusion import (
    AttachmentError,
    Coefficients,
    CoefficientsError,
    CoefficientsInfo,
    UserError,
    describe_base,
    layer_heads,
    load_coefficients,
    loaded_coefficients,
    set_coefficients,
    unload_coefficients,
)
from coeff_diffusion.families.registry import encoders_of, family_of
from coeff_diffusion.inference.gating import Gate, GuidanceRows
from coeff_diffusion.method.sites import find_sites, text_stages
from coeff_diffusion.training.config import TrainConfig
from coeff_diffusion.training.trainer import train

TOY = "a <toy> dog"


# --- words ------------------------------------------------------------------------------------------------------------


def test_a_textual_inversion_that_comes_later(tiny_pipe: StableDiffusionPipeline, new_subject: Subject) -> None:
    toy = {"<toy>": torch.randn(32)}
    alone = StableDiffusionPipeline(**copy.deepcopy(tiny_pipe.components), requires_safety_checker=False)
    alone.set_progress_bar_config(disable=True)
    load_coefficients(tiny_pipe, new_subject(vectors=2))
    drawn = draw(tiny_pipe, DOG)
    for pipe in (tiny_pipe, alone):
        pipe.load_textual_inversion(toy)
    assert torch.equal(draw(tiny_pipe, DOG), drawn)
    assert torch.equal(draw(tiny_pipe, TOY), draw(alone, TOY))
    load_coefficients(tiny_pipe, new_subject("cat", "zwx cat", vectors=1, seed=2))  # which once lost the toy
    assert torch.equal(draw(tiny_pipe, TOY), draw(alone, TOY))
    assert torch.equal(draw(tiny_pipe, DOG), drawn)
    unload_coefficients(tiny_pipe)
    assert torch.equal(draw(tiny_pipe, [TOY, DOG, CAT]), draw(alone, [TOY, DOG, CAT]))


def test_a_textual_inversion_that_goes_first(tiny_pipe: StableDiffusionPipeline, new_subject: Subject) -> None:
    base = draw(tiny_pipe, [DOG, BEACH])
    tiny_pipe.load_textual_inversion({"<toy>": torch.randn(32)})
    load_coefficients(tiny_pipe, new_subject(vectors=2))
    drawn = draw(tiny_pipe, [DOG, BEACH])
    tiny_pipe.unload_textual_inversion()
    assert torch.equal(draw(tiny_pipe, [DOG, BEACH]), drawn)
    unload_coefficients(tiny_pipe)
    assert torch.equal(draw(tiny_pipe, [DOG, BEACH]), base)


def test_a_table_resized_by_hand(tiny_pipe: StableDiffusionPipeline, new_subject: Subject) -> None:
    base = draw(tiny_pipe, DOG)
    load_coefficients(tiny_pipe, new_subject(vectors=2))
    drawn = draw(tiny_pipe, DOG)
    tiny_pipe.text_encoder.resize_token_embeddings(600, mean_resizing=False)
    assert torch.equal(draw(tiny_pipe, DOG), drawn)
    unload_coefficients(tiny_pipe)
    assert torch.equal(draw(tiny_pipe, DOG), base)


def test_a_table_put_in_place_of_ours_is_said_and_can_be_left(
    tiny_pipe: StableDiffusionPipeline, new_subject: Subject
) -> None:
    base = draw(tiny_pipe, DOG)
    pooling = getattr(tiny_pipe.text_encoder, "text_model", tiny_pipe.text_encoder)
    pooling.eos_token_id = 2  # as the published configs have it: the pooled token is the one of the highest id
    load_coefficients(tiny_pipe, new_subject(vectors=2))
    assert pooling.eos_token_id != 2
    other = torch.nn.Embedding.from_pretrained(tiny_pipe.text_encoder.get_input_embeddings().weight.detach().clone())
    tiny_pipe.text_encoder.set_input_embeddings(other)
    with pytest.raises(CoefficientsError, match="text_encoder was exchanged or resized"):
        draw(tiny_pipe, DOG)
    with pytest.raises(CoefficientsError, match="text_encoder was exchanged or resized"):
        load_coefficients(tiny_pipe, new_subject("cat", "zwx cat"))
    unload_coefficients(tiny_pipe)
    assert tiny_pipe.text_encoder.get_input_embeddings() is other
    assert torch.equal(draw(tiny_pipe, DOG), base)
    assert pooling.eos_token_id == 2


# --- prompts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vectors", [0, 2])
def test_a_trigger_that_is_cut_off_does_not_act_and_that_is_said(
    tiny_pipe: StableDiffusionPipeline, new_subject: Subject, vectors: int
) -> None:
    long = "red " * 90 + "sks dog"
    base = draw(tiny_pipe, [long, BEACH])
    load_coefficients(tiny_pipe, new_subject(vectors=vectors))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert torch.equal(draw(tiny_pipe, [long, BEACH]), base)
        assert not same(draw(tiny_pipe, ["sks dog " + long, BEACH])[0], base[0])
    first, second, third = (str(one.message) for one in caught)
    assert re.fullmatch(
        r"prompt: \d\d of \d\d tokens are cut off, the text encoder does not read '.*red sks dog'", first
    )
    assert "'sks dog' of 'dog' stands behind the tokens that the text encoder reads" in second
    assert third.startswith("prompt: ")


def xl_subject(pipe: StableDiffusionXLPipeline, tokens: bool) -> Coefficients:
    coeffs = {path: 0.5 * torch.randn(n, n) for path, n in layer_heads(pipe.unet).items()}
    vectors = {name: torch.randn(1, width) for name, width in XL_WIDTHS.items()} if tokens else {}
    return Coefficients(coeffs, vectors, CoefficientsInfo(name="dog", trigger="sks dog", **describe_base(pipe.unet)))


@pytest.mark.parametrize("tokens", [False, True])
def test_the_second_prompt_of_xl_calls_a_subject_up(tiny_xl_pipe: StableDiffusionXLPipeline, tokens: bool) -> None:
    base = draw(tiny_xl_pipe, [BEACH, BEACH], prompt_2=[BEACH, DOG])
    load_coefficients(tiny_xl_pipe, xl_subject(tiny_xl_pipe, tokens))
    drawn = draw(tiny_xl_pipe, [BEACH, BEACH], prompt_2=[BEACH, DOG])
    assert torch.equal(drawn[0], base[0])
    assert not same(drawn[1], base[1])
    unload_coefficients(tiny_xl_pipe)
    assert torch.equal(draw(tiny_xl_pipe, [BEACH, BEACH], prompt_2=[BEACH, DOG]), base)


def said_by(pipe: Any, caplog: pytest.LogCaptureFixture, *args: Any, **options: Any) -> list[str]:
    """What a drawing warns of; others log nothing beside it."""
    caplog.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        draw(pipe, *args, num_inference_steps=1, **options)
    assert caplog.records == []
    return [str(one.message) for one in caught]


def test_what_is_cut_off_is_said_once_and_in_words(
    tiny_pipe: StableDiffusionPipeline, new_subject: Subject, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_pipe.load_textual_inversion(torch.randn(3, 32), token="<toy>")
    load_coefficients(tiny_pipe, new_subject(vectors=4), gate="always")
    fits = "red " * 71 + "sks dog"  # with its 4 vectors, the beginning and the end: 77 tokens
    assert said_by(tiny_pipe, caplog, [fits, BEACH], negative_prompt=[fits, BEACH]) == []
    cut, first, second = "tokens are cut off, the text encoder does not read", f"a {fits} in snow", f"red {fits}"
    all_three, lost = said_by(tiny_pipe, caplog, [first, second, second], negative_prompt=[f"<toy> {fits}"] * 3)
    assert all_three.split("; ") == [
        f"prompt: 3 of 80 {cut} 'sks dog in snow'",
        f"prompt: 1 of 78 {cut} 'sks dog'",
        f"negative prompt: 3 of 80 {cut} 'sks dog'",
    ]
    assert lost == (
        "the trigger 'sks dog' of 'dog' stands behind the tokens that the text encoder reads of the prompt, so its "
        "word is lost; move it to the front or shorten the prompt"
    )
    assert said_by(tiny_pipe, caplog, BEACH, negative_prompt=second, guidance_scale=1.0) == []
    set_coefficients(tiny_pipe, {})
    assert said_by(tiny_pipe, caplog, "<toy> " + "red " * 73) == [f"prompt: 1 of 78 {cut} 'red'"]


def test_each_text_encoder_of_xl_says_what_it_does_not_read(
    tiny_xl_pipe: StableDiffusionXLPipeline, caplog: pytest.LogCaptureFixture
) -> None:
    load_coefficients(tiny_xl_pipe, xl_subject(tiny_xl_pipe, tokens=True))
    long, cut = "red " * 74 + "sks dog on grass", "tokens are cut off, text_encoder"
    assert said_by(tiny_xl_pipe, caplog, long) == [
        "prompt: 2 of 79 tokens are cut off, the text encoder does not read 'on grass'"
    ]
    assert said_by(tiny_xl_pipe, caplog, DOG, prompt_2=long) == [f"prompt: 2 of 79 {cut}_2 does not read 'on grass'"]
    assert said_by(tiny_xl_pipe, caplog, [DOG, DOG], negative_prompt=[f"a {long}", BEACH], negative_prompt_2=long) == [
        f"negative prompt: 3 of 80 {cut} does not read 'sks dog on grass'; "
        f"negative prompt: 2 of 79 {cut}_2 does not read 'on grass'"
    ]


@pytest.mark.filterwarnings("ignore:'dog' also acts where the prompt is read")
@pytest.mark.parametrize("text_heads", [False, True])
def test_text_encoders_may_be_put_away_once_the_prompt_is_encoded(
    tiny_pipe: StableDiffusionPipeline, new_subject: Subject, text_heads: bool
) -> None:
    subject = new_subject(vectors=1)
    if text_heads:
        sites = family_of(tiny_pipe).text_sites("text_encoder", tiny_pipe.text_encoder)
        heads = {path: torch.randn(site.heads, site.heads) for path, site in sites.items()}
        coeffs = {path: subject[path] for path in subject}
        subject = subject.replace(coeffs={**coeffs, **heads}, info=replace(subject.info, layers="all+text"))
    load_coefficients(tiny_pipe, subject, gate="always")
    drawn = draw(tiny_pipe, DOG)
    with torch.no_grad():
        embeddings, negative = tiny_pipe.encode_prompt(DOG, "cpu", 1, True)
    encoder, tokenizer = tiny_pipe.text_encoder, tiny_pipe.tokenizer
    tiny_pipe.text_encoder = tiny_pipe.tokenizer = None

    def draw_encoded() -> torch.Tensor:
        given = {"prompt_embeds": embeddings, "negative_prompt_embeds": negative, "generator": torch.manual_seed(0)}
        return tiny_pipe(**given, num_inference_steps=2, guidance_scale=5.0, output_type="latent").images

    assert torch.equal(draw_encoded(), drawn)
    set_coefficients(tiny_pipe, {"dog": 0.5})
    assert not same(draw_encoded(), drawn)
    unload_coefficients(tiny_pipe)
    tiny_pipe.text_encoder, tiny_pipe.tokenizer = encoder, tokenizer
    load_coefficients(tiny_pipe, subject, gate="always")
    assert torch.equal(draw(tiny_pipe, DOG), drawn)


# --- other pipelines --------------------------------------------------------------------------------------------------


def test_a_pipeline_that_tells_no_prompts_is_refused_before_anything(
    tiny_pipe: StableDiffusionPipeline, new_subject: Subject
) -> None:
    parts = {name: part for name, part in tiny_pipe.components.items() if name != "image_encoder"}
    other = StableDiffusionInstructPix2PixPipeline(**parts, requires_safety_checker=False)
    before = snapshot(tiny_pipe)
    with pytest.raises(CoefficientsError, match="StableDiffusionInstructPix2PixPipeline has no encode_prompt"):
        load_coefficients(other, new_subject(vectors=1))
    assert_unchanged(tiny_pipe, before)


class Odd:
    """No pipeline of a family that is known."""

    unet = transformer = None


def test_an_unknown_family_is_refused_in_words(new_subject: Subject, tmp_path: Any) -> None:
    with pytest.raises(CoefficientsError, match="Odd is of no known family; expected Stable Diffusion 1.x"):
        load_coefficients(Odd(), new_subject())
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    config = TrainConfig(instance_data_dir=str(tmp_path), class_word="dog", output_dir=str(tmp_path / "out"))
    with pytest.raises(UserError, match="Odd is of no known family"):
        train(config, Odd())


Sibling = Callable[[StableDiffusionPipeline], Any]


@pytest.fixture(params=["from_pipe", "auto", "components"])
def sibling(request: pytest.FixtureRequest) -> Sibling:
    """The usual second pipeline over the same parts, for a hires fix."""

    def make(pipe: StableDiffusionPipeline) -> Any:
        if request.param == "from_pipe":
            other = StableDiffusionImg2ImgPipeline.from_pipe(pipe)
        elif request.param == "auto":
            other = AutoPipelineForImage2Image.from_pipe(pipe)
        else:
            other = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
        other.set_progress_bar_config(disable=True)
        return other

    return make


def again(pipe: Any, prompt: str) -> torch.Tensor:
    """A second pass over a grey picture."""
    grey, generator = Image.new("RGB", (16, 16), "grey"), torch.Generator().manual_seed(0)
    options = {"num_inference_steps": 4, "guidance_scale": 5.0, "generator": generator, "output_type": "latent"}
    latents: torch.Tensor = pipe(prompt, image=grey, strength=0.5, **options).images
    return latents


def test_a_sibling_that_knows_nothing_of_the_subject_is_told_so(
    tiny_pipe: StableDiffusionPipeline, new_subject: Subject, sibling: Sibling
) -> None:
    load_coefficients(tiny_pipe, new_subject(vectors=1))
    other = sibling(tiny_pipe)
    drawn = draw(tiny_pipe, DOG)
    with pytest.raises(CoefficientsError, match="load the subject into that pipeline, too"):
        again(other, BEACH)
    assert torch.equal(draw(tiny_pipe, DOG), drawn)


def test_a_sibling_with_the_subject_draws_it(
    tiny_pipe: StableDiffusionPipeline, new_subject: Subject, sibling: Sibling
) -> None:
    subject, plain = new_subject(vectors=1), sibling(tiny_pipe)
    base = [again(plain, DOG), again(plain, BEACH)]
    load_coefficients(plain, subject)
    expected = again(plain, DOG)
    unload_coefficients(plain)
    draw(tiny_pipe, DOG)
    before = snapshot(tiny_pipe)

    load_coefficients(tiny_pipe, subject)
    drawn, other = draw(tiny_pipe, DOG), sibling(tiny_pipe)
    load_coefficients(other, subject)
    assert torch.equal(again(other, DOG), expected)
    assert torch.equal(again(other, BEACH), base[1])
    assert torch.equal(draw(tiny_pipe, DOG), drawn)
    unload_coefficients(tiny_pipe)  # and the sibling goes on
    assert list(loaded_coefficients(other)) == ["dog"]
    assert torch.equal(again(other, DOG), expected)
    unload_coefficients(other)
    assert torch.equal(again(other, DOG), base[0])
    assert_unchanged(tiny_pipe, before)


def test_after_unloading_a_sibling_reads_words_again(
    tiny_pipe: StableDiffusionPipeline, new_subject: Subject, sibling: Sibling
) -> None:
    """It once indexed rows that were gone, or called another subject's token."""
    base = again(sibling(tiny_pipe), DOG)
    load_coefficients(tiny_pipe, new_subject(vectors=1))
    other = sibling(tiny_pipe)
    unload_coefficients(tiny_pipe)
    assert torch.equal(again(other, DOG), base)
    load_coefficients(tiny_pipe, new_subject("cat", "zwx cat", vectors=1), gate="always")
    set_coefficients(tiny_pipe, {})
    assert torch.equal(again(other, DOG), base)


def test_prompts_encoded_by_a_sibling_are_not_taken_for_ones_own(
    tiny_pipe: StableDiffusionPipeline, new_subject: Subject, sibling: Sibling
) -> None:
    load_coefficients(tiny_pipe, new_subject())
    tiny_pipe.encode_prompt([DOG], "cpu", 1, True)  # and then something fails, so that its drawing never ends
    with pytest.raises(CoefficientsError, match="the prompt is not known"):
        again(sibling(tiny_pipe), BEACH)


@pytest.mark.parametrize("gate", ["trigger", "always"])
@pytest.mark.parametrize("rows", ["both", "cond"])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_perturbed_attention_guidance(
    tiny_pipe: StableDiffusionPipeline, gate: Gate, rows: GuidanceRows, guidance: float
) -> None:
    """One part of the batch more, drawn by the prompts; in the layers it perturbs that part does not attend at all."""
    pipe = StableDiffusionPAGPipeline(**tiny_pipe.components, pag_applied_layers=["mid"], requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    prompts, options = [DOG, BEACH, "sks dog, red"], {"guidance_scale": guidance, "pag_scale": 3.0}
    base = draw(pipe, prompts, **options)
    subject = make_subject(pipe.unet, pipe.text_encoder, "dog", "sks dog", "dog")
    width, stages = pipe.unet.config.cross_attention_dim, text_stages(find_sites(pipe.unet).values())
    subject = subject.replace(stage_tokens={stage: torch.randn(1, width) for stage in stages})
    load_coefficients(pipe, subject, gate=gate, guidance_rows=rows)
    drawn = draw(pipe, prompts, **options)
    for number, prompt in enumerate(prompts):
        assert same(draw(pipe, prompt, seeds=[number], **options)[0], drawn[number])
        acts = gate == "always" or prompt != BEACH
        assert torch.equal(drawn[number], base[number]) is not acts
    nearly_none = draw(pipe, prompts, guidance_scale=guidance, pag_scale=1e-6)
    assert same(nearly_none, draw(pipe, prompts, guidance_scale=guidance, pag_scale=0.0))


# --- other parts ------------------------------------------------------------------------------------------------------


def ip_adapter(unet: Any, dim: int = 32) -> dict[str, Any]:
    """The weights of an IP-Adapter, by the names that diffusers knows."""
    generator, modules = torch.Generator().manual_seed(3), dict(unet.named_modules())
    layers = {}
    for number, name in enumerate(unet.attn_processors):
        if "attn2" in name:
            channels = modules[name.removesuffix(".processor")].inner_dim
            for which in ("to_k_ip", "to_v_ip"):
                layers[f"{number}.{which}.weight"] = torch.randn(channels, dim, generator=generator)
    projection = {
        "proj.weight": torch.randn(4 * dim, dim, generator=generator),
        "proj.bias": torch.zeros(4 * dim),
        "norm.weight": torch.ones(dim),
        "norm.bias": torch.zeros(dim),
    }
    return {"image_proj": projection, "ip_adapter": layers}


def draw_like(pipe: StableDiffusionPipeline, prompt: str) -> torch.Tensor:
    picture = torch.randn(2, 1, 32, generator=torch.Generator().manual_seed(5))
    return draw(pipe, prompt, ip_adapter_image_embeds=[picture])


@pytest.mark.parametrize("first", ["subject", "adapter"])
def test_an_ip_adapter_beside_it(tiny_pipe: StableDiffusionPipeline, new_subject: Subject, first: str) -> None:
    subject = new_subject(vectors=1)
    if first == "subject":
        load_coefficients(tiny_pipe, subject)
    tiny_pipe.unet._load_ip_adapter_weights([ip_adapter(tiny_pipe.unet)], low_cpu_mem_usage=False)
    if first == "adapter":
        base = draw_like(tiny_pipe, BEACH)
        load_coefficients(tiny_pipe, subject)
        assert torch.equal(draw_like(tiny_pipe, BEACH), base)
    with_both = draw_like(tiny_pipe, DOG)
    unload_coefficients(tiny_pipe)
    without = draw_like(tiny_pipe, DOG)
    assert not same(with_both, without)
    load_coefficients(tiny_pipe, subject)
    assert torch.equal(draw_like(tiny_pipe, DOG), with_both)


def test_the_unet_of_moving_pictures(tiny_pipe: StableDiffusionPipeline, new_subject: Subject) -> None:
    """AnimateDiff's layers between frames are the base's; a subject of the plain UNet acts in all others."""
    adapter = MotionAdapter(
        block_out_channels=(16, 32),
        motion_layers_per_block=1,
        motion_norm_num_groups=8,
        motion_num_attention_heads=4,
        use_motion_mid_block=False,
    )
    pipe = AnimateDiffPipeline(**{n: p for n, p in tiny_pipe.components.items() if n != "safety_checker"},
                               motion_adapter=adapter)  # fmt: skip
    pipe.set_progress_bar_config(disable=True)

    def film(prompts: list[str]) -> torch.Tensor:
        generator = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
        options = {"num_inference_steps": 2, "guidance_scale": 5.0, "num_frames": 3, "output_type": "latent"}
        frames: torch.Tensor = pipe(prompts, generator=generator, **options).frames
        return frames

    base = film([BEACH, DOG])
    load_coefficients(pipe, new_subject(vectors=1))
    drawn = film([BEACH, DOG])
    assert torch.equal(drawn[0], base[0])
    assert not same(drawn[1], base[1])
    unload_coefficients(pipe)
    assert torch.equal(film([BEACH, DOG]), base)


def add_lora(unet: Any) -> None:
    """A LoRA by PEFT, as `load_lora_weights` puts it there."""
    unet.add_adapter(LoraConfig(r=2, init_lora_weights="gaussian", target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    for name, weight in unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)


@pytest.mark.parametrize("kind", ["lora:2", "dora:2", "ia3"])
def test_a_lora_comes_and_goes_beside_a_subject_with_an_adapter(
    tiny_pipe: StableDiffusionPipeline, new_subject: Subject, kind: str
) -> None:
    subject = with_adapter(new_subject(vectors=1), tiny_pipe.unet, kind)
    load_coefficients(tiny_pipe, subject)
    alone = draw(tiny_pipe, DOG)
    torch.manual_seed(0)
    add_lora(tiny_pipe.unet)
    beside = draw(tiny_pipe, DOG)
    assert not same(beside, alone)
    unload_coefficients(tiny_pipe)
    load_coefficients(tiny_pipe, subject)
    assert torch.equal(draw(tiny_pipe, DOG), beside)  # whichever came first
    tiny_pipe.unload_lora_weights()
    assert torch.equal(draw(tiny_pipe, DOG), alone)


def test_an_adapter_that_would_not_act_any_more_is_an_error(
    tiny_pipe: StableDiffusionPipeline, new_subject: Subject
) -> None:
    load_coefficients(tiny_pipe, with_adapter(new_subject(vectors=1), tiny_pipe.unet))
    drawn = draw(tiny_pipe, DOG)
    tiny_pipe.fuse_qkv_projections(vae=False)
    with pytest.raises(AttachmentError, match=r"fused projections.*call pipe.unfuse_qkv_projections"):
        draw(tiny_pipe, DOG)
    set_coefficients(tiny_pipe, {"dog": 1}, adapter_strength=0)
    draw(tiny_pipe, DOG)
    set_coefficients(tiny_pipe, {"dog": 1})
    tiny_pipe.unfuse_qkv_projections(vae=False)
    assert torch.equal(draw(tiny_pipe, DOG), drawn)
    layer = tiny_pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1
    layer.to_q = copy.deepcopy(layer.to_q)
    with pytest.raises(AttachmentError, match=r"attn1.to_q was exchanged.*load them again"):
        draw(tiny_pipe, DOG)


def test_weights_that_an_adapter_cannot_read_are_an_error(
    tiny_pipe: StableDiffusionPipeline, new_subject: Subject
) -> None:
    load_coefficients(tiny_pipe, with_adapter(new_subject(), tiny_pipe.unet, "dora:2"))
    tiny_pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    with pytest.raises(AttachmentError, match=r"attn1.to_q is rounded to eight bits, which dora:2 cannot change"):
        draw(tiny_pipe, DOG)


# --- offloading -------------------------------------------------------------------------------------------------------


def offload_sequentially(pipe: Any) -> None:
    pipe.enable_sequential_cpu_offload(device="cpu")


def offload_leaves(pipe: Any) -> None:
    cpu = torch.device("cpu")
    pipe.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type="leaf_level")


@pytest.mark.parametrize("offload", [offload_sequentially, offload_leaves])
@pytest.mark.parametrize("first", ["subject", "offload"])
@pytest.mark.parametrize("base", ["tiny_pipe", "tiny_xl_pipe"])
def test_weights_that_come_and_go(
    offload: Callable[[Any], None], first: str, base: str,
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The whole of it on a CPU, which diffusers calls "cpu:0" here; PyTorch takes that for another device."""
    stock = accelerate.cpu_offload
    monkeypatch.setattr(accelerate, "cpu_offload", lambda model, _, **more: stock(model, torch.device("cpu"), **more))
    pipe = request.getfixturevalue(base)
    encoders = encoders_of(pipe)
    tokens = {name: torch.randn(2, encoder.config.hidden_size) for name, encoder in encoders.items()}
    info = CoefficientsInfo(name="dog", trigger="sks dog", class_word="dog")
    coeffs = {path: 0.3 * torch.randn(heads, heads) for path, heads in layer_heads(pipe.unet).items()}
    subject = Coefficients(coeffs, tokens, info)
    unloaded = draw(pipe, [DOG, BEACH])
    load_coefficients(pipe, subject, strength=0.7)
    drawn = draw(pipe, [DOG, BEACH])
    unload_coefficients(pipe)
    for step in [first, *({"subject", "offload"} - {first})]:
        if step == "offload":
            offload(pipe)
        else:
            load_coefficients(pipe, subject, strength=0.7)
    assert torch.equal(draw(pipe, [DOG, BEACH]), drawn)
    pipe.load_textual_inversion({"<toy>": torch.randn(32)}, text_encoder=pipe.text_encoder, tokenizer=pipe.tokenizer)
    assert torch.equal(draw(pipe, [DOG, BEACH]), drawn)
    pipe.remove_all_hooks()
    offload(pipe)
    assert torch.equal(draw(pipe, [DOG, BEACH]), drawn)
    unload_coefficients(pipe)
    assert torch.equal(draw(pipe, [DOG, BEACH]), unloaded)
