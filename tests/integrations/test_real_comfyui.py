"""The nodes in ComfyUI itself, against the same subject in diffusers. Runs where COMFYUI_PATH names a checkout."""

import asyncio
import importlib
import inspect
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfyui_contract as contract
import pytest
import real_comfyui as host
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers import UNet2DConditionModel as UNet
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from coeff_diffusion import Coefficients, CoefficientsInfo, describe_base, layer_heads, load_coefficients
from coeff_diffusion.families.fingerprint import fingerprint
from coeff_diffusion.families.registry import FAMILIES
from coeff_diffusion.method.sites import find_sites, text_stages
from coeff_diffusion.sources.image_card import embed
from coeff_diffusion.subject.errors import CoefficientsError
from coeff_diffusion.subject.layer_strengths import LayerStrengths

CHECKOUT = os.environ.get("COMFYUI_PATH", "")
pytestmark = [
    pytest.mark.skipif(not CHECKOUT, reason="COMFYUI_PATH names no checkout of ComfyUI"),
    pytest.mark.filterwarnings("ignore"),  # theirs
]
WITH, WITHOUT = "a photo of sks dog on the beach", "a photo of the beach"
SIGMA, CFG = 5.0, 3.0
PUBLISHED = {name: config for family in FAMILIES for name, config in family.known.items()}
HEADS_XL = (2, 4, 4)  # of 16 channels each
Node = Callable[..., tuple[Any, Any]]


@pytest.fixture(scope="module")
def comfy() -> Any:
    return host.import_comfyui(Path(CHECKOUT))


@pytest.fixture(scope="module")
def apply(comfy: Any) -> Any:
    return importlib.import_module("integrations.comfyui.apply").apply_subject


def text_config(width: int = 32) -> CLIPTextConfig:
    return CLIPTextConfig(
        hidden_size=width, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, projection_dim=width
    )


def parts(comfy: Any) -> dict[str, Any]:
    tokenizer = CLIPTokenizer.from_pretrained(Path(CHECKOUT) / "comfy" / "sd1_tokenizer", model_max_length=77)
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
    return {"vae": vae, "tokenizer": tokenizer, "scheduler": DDIMScheduler()}


@pytest.fixture
def pipe(comfy: Any) -> StableDiffusionPipeline:
    """A Stable Diffusion 1.x, narrow: 2 levels, 8 heads everywhere, the real tokenizer."""
    torch.manual_seed(0)
    unet = UNet(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=8,
        cross_attention_dim=32,
    )
    extra: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return StableDiffusionPipeline(
        **parts(comfy), text_encoder=CLIPTextModel(text_config()).eval(), unet=unet.eval(), **extra
    )


@pytest.fixture
def xl_pipe(comfy: Any) -> StableDiffusionXLPipeline:
    """A Stable Diffusion XL, narrow: 3 levels as XL has them, several transformers a block, both text encoders."""
    torch.manual_seed(0)
    unet = UNet(
        sample_size=8,
        block_out_channels=(32, 64, 64),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 3),
        attention_head_dim=HEADS_XL,
        cross_attention_dim=32 + 32,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=32 + 6 * 256,
    )
    made = parts(comfy)
    second = CLIPTokenizer.from_pretrained(
        Path(CHECKOUT) / "comfy" / "sd1_tokenizer", pad_token="!", model_max_length=77
    )
    return StableDiffusionXLPipeline(
        **made,
        tokenizer_2=second,
        text_encoder=CLIPTextModel(text_config()).eval(),
        text_encoder_2=CLIPTextModelWithProjection(text_config()).eval(),
        unet=unet.eval(),
        add_watermarker=False,
    )


def new_subject(pipe: Any, trigger: str = "sks dog", seed: int = 1, stages: bool = True, **info: Any) -> Coefficients:
    """Matrices for all layers, two vectors for the trigger and stage tokens for all stages."""
    draw = torch.Generator().manual_seed(seed)
    coeffs = {path: 0.3 * torch.randn(n, n, generator=draw) for path, n in layer_heads(pipe.unet).items()}
    owners = [name for name in ("text_encoder", "text_encoder_2") if hasattr(pipe, name)]
    tokens = {owner: torch.randn(2, 32, generator=draw) for owner in owners}
    width = pipe.unet.config.cross_attention_dim
    reading = text_stages(find_sites(pipe.unet).values()) if stages else []
    stage_tokens = {stage: torch.randn(2, width, generator=draw) for stage in reading}
    known = CoefficientsInfo(trigger=trigger, **{**describe_base(pipe.unet), **info})
    return Coefficients(coeffs, tokens, known, stage_tokens=stage_tokens)


def timestep(comfy: Any, model: Any) -> float:
    return float(model.get_model_object("model_sampling").timestep(torch.tensor([SIGMA]))[0])


@torch.no_grad()
def in_diffusers(comfy: Any, pipe: Any, model: Any, noise: torch.Tensor, prompts: list[str], negative: str) -> Any:
    """What ComfyUI's `denoised` is, drawn with diffusers' parts: guided, at the same noise."""
    guided = {"negative_prompt": [negative] * len(prompts)}
    if isinstance(pipe, StableDiffusionXLPipeline):
        text, without, pooled, pooled_without = pipe.encode_prompt(prompts, **guided)
        sizes = torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2 * len(prompts))
        extra = {"added_cond_kwargs": {"text_embeds": torch.cat([pooled_without, pooled]), "time_ids": sizes}}
    else:
        text, without = pipe.encode_prompt(prompts, "cpu", 1, True, **guided)
        extra = {}
    rows = torch.cat([noise, noise]) / (SIGMA**2 + 1) ** 0.5
    eps = pipe.unet(rows, timestep(comfy, model), torch.cat([without, text]), **extra).sample
    base, found = eps.chunk(2)
    return noise - SIGMA * (base + CFG * (found - base))


def noise(rows: int = 2) -> torch.Tensor:
    return SIGMA * torch.randn(rows, 4, 8, 8, generator=torch.Generator().manual_seed(3))


def hosted(comfy: Any, pipe: Any) -> tuple[Any, Any]:
    """MODEL and CLIP of a pipeline, before any subject is loaded into it."""
    if isinstance(pipe, StableDiffusionXLPipeline):
        return host.new_model(comfy, pipe.unet, 16), host.new_clip(comfy, pipe.text_encoder, pipe.text_encoder_2)
    return host.new_model(comfy, pipe.unet), host.new_clip(comfy, pipe.text_encoder)


def draw(comfy: Any, model: Any, clip: Any, prompt: str, negative: str = "", **changes: Any) -> torch.Tensor:
    given = {"noise": noise(), "sigma": SIGMA, "cfg": CFG, **changes}
    return host.denoised(
        comfy, model, positive=host.encode(clip, prompt), negative=host.encode(clip, negative), **given
    )


@pytest.mark.parametrize("prompt", [WITH, WITHOUT, "SKS  dog, a sks dog's hat\nand sks dogs"])
@pytest.mark.parametrize("kind", ["pipe", "xl_pipe"])
@pytest.mark.parametrize("gate", ["trigger", "always"])
def test_draws_what_diffusers_draws(
    comfy: Any, apply: Any, request: pytest.FixtureRequest, kind: str, gate: str, prompt: str
) -> None:
    pipe = request.getfixturevalue(kind)
    model, clip = hosted(comfy, pipe)
    subject = new_subject(pipe, gate=gate)
    layers = importlib.import_module("coeff_diffusion.method.hosts.layers")
    unet = model.get_model_object("diffusion_model")
    assert layers.weight_sample(unet, layers.find_places(unet)) == subject.info.base_sample
    base = draw(comfy, model, clip, prompt, "sks dog in snow")
    mine = draw(comfy, *apply(model, clip, subject, 0.7), prompt, "sks dog in snow")
    assert torch.equal(draw(comfy, model, clip, prompt, "sks dog in snow"), base)  # the MODEL that went in is the base
    load_coefficients(pipe, subject.scaled(0.7), name="dog")  # here a strength does not reach the learned word
    theirs = in_diffusers(comfy, pipe, model, noise(), [prompt] * 2, "sks dog in snow")
    assert (mine - theirs).abs().max() < 1e-4 * theirs.abs().max()
    assert (mine - base).abs().max() > 0.01 * base.abs().max()  # if only by the token in the negative prompt


def test_a_prompt_without_the_trigger_is_the_base_bitwise(comfy: Any, apply: Any, pipe: Any) -> None:
    model, clip = hosted(comfy, pipe)
    base = draw(comfy, model, clip, WITHOUT)
    assert torch.equal(draw(comfy, *apply(model, clip, new_subject(pipe)), WITHOUT), base)


def test_prompts_of_many_tokens(comfy: Any, apply: Any, pipe: Any) -> None:
    """The trigger stands in the second 77 tokens, and the shorter negative prompt is repeated to that length."""
    model, clip = hosted(comfy, pipe)
    late, subject = f"{'a red pot, ' * 30} {WITH}", new_subject(pipe)
    applied = apply(model, clip, subject)
    note = host.encode(applied[1], late)[0][1]["coeff_diffusion"]
    assert note.places["sks dog"].shape == (154,)
    assert note.places["sks dog"].max() == 1
    assert not torch.equal(draw(comfy, *applied, late), draw(comfy, model, clip, late))


def test_emphasis_scales_what_the_trigger_has_learned(comfy: Any, apply: Any, pipe: Any) -> None:
    _, clip = apply(*hosted(comfy, pipe), new_subject(pipe))
    plain, more = (host.encode(clip, f"a photo of {words}")[0] for words in ("sks dog", "(sks dog:1.5)"))
    empty = host.encode(clip, "")[0][0]
    places = plain[1]["coeff_diffusion"].places["sks dog"]
    assert torch.equal(more[1]["coeff_diffusion"].places["sks dog"], places)
    scaled = torch.where((places >= 0)[None, :, None], empty + 1.5 * (plain[0] - empty), plain[0])
    torch.testing.assert_close(more[0], scaled)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(comfy: Any, apply: Any, pipe: Any, dtype: torch.dtype) -> None:
    model, clip = hosted(comfy, pipe)
    subject = new_subject(pipe)
    exact = draw(comfy, *apply(model, clip, subject), WITH)
    model.model.diffusion_model.to(dtype).dtype = dtype
    rounded = draw(comfy, *apply(model, clip, subject), WITH)
    assert 0 < (rounded - exact).abs().max() < 0.05 * exact.abs().max()


def test_two_subjects_add_up(comfy: Any, apply: Any, pipe: Any) -> None:
    model, clip = hosted(comfy, pipe)
    dog, cat = new_subject(pipe), new_subject(pipe, "zwx cat", 2)
    both = apply(*apply(model, clip, dog), cat, 0.5)
    for prompt in ("sks dog and zwx cat", "zwx cat", "sks dog"):
        mine = draw(comfy, *both, prompt)
        if prompt == "sks dog and zwx cat":
            load_coefficients(pipe, dog, name="dog")
            load_coefficients(pipe, cat.scaled(0.5), name="cat")
        theirs = in_diffusers(comfy, pipe, model, noise(), [prompt] * 2, "")
        assert (mine - theirs).abs().max() < 1e-4 * theirs.abs().max()


def test_layers_and_the_part_of_sampling(comfy: Any, apply: Any, pipe: Any) -> None:
    model, clip = hosted(comfy, pipe)
    subject = new_subject(pipe, stages=False)
    base = draw(comfy, *apply(model, clip, subject, 0.0), WITH)
    now = 1 - timestep(comfy, model) / 999  # ComfyUI's percent of this noise
    assert torch.equal(draw(comfy, *apply(model, clip, subject, begin=now + 0.01), WITH), base)
    assert torch.equal(draw(comfy, *apply(model, clip, subject, end=now - 0.01), WITH), base)
    acting = apply(model, clip, subject, begin=now - 0.01, end=now + 0.01)
    assert torch.equal(draw(comfy, *acting, WITH), draw(comfy, *apply(model, clip, subject), WITH))
    alone = apply(model, clip, subject, layers=LayerStrengths(cross_attention=0))
    assert "attn2" not in alone[0].model_options["transformer_options"]["patches_replace"]
    assert not torch.equal(draw(comfy, *alone, WITH), base)


def test_what_was_not_encoded_by_its_clip_is_refused(comfy: Any, apply: Any, pipe: Any) -> None:
    model, clip = hosted(comfy, pipe)
    applied, given = apply(model, clip, new_subject(pipe)), {"sigma": SIGMA, "cfg": CFG}
    changed = [[2 * text, extra] for text, extra in host.encode(applied[1], WITH)]
    for positive in (host.encode(clip, WITH), changed):
        with pytest.raises(CoefficientsError, match="the CLIP that Apply Coeff Subject gives"):
            host.denoised(comfy, applied[0], noise(), positive=positive, negative=host.encode(clip, ""), **given)


def test_a_node_behind_it_may_not_take_its_layers(comfy: Any, apply: Any, pipe: Any) -> None:
    model, clip = hosted(comfy, pipe)
    model, clip = apply(model, clip, new_subject(pipe))
    model = model.clone()
    model.set_model_attn1_replace(lambda q, k, v, options: v, "middle", 0, 0)
    with pytest.raises(CoefficientsError, match="another node has replaced.*mid_block"):
        draw(comfy, model, clip, WITH)


def test_the_contract_is_what_comfyui_has(comfy: Any) -> None:
    """Each method of the stand-in is there, and takes what the stand-in takes."""
    sd, sd1, patcher = comfy.sd, comfy.sd1_clip, comfy.model_patcher.ModelPatcher
    pairs = [(contract.ModelPatcher, patcher), (contract.CLIP, sd.CLIP), (contract.SD1Tokenizer, sd1.SD1Tokenizer),
             (contract.SDTokenizer, sd1.SDTokenizer), (contract.SD1ClipModel, sd1.SD1ClipModel)]  # fmt: skip
    for ours, theirs in pairs:
        for name, method in vars(ours).items():
            if not name.startswith("_"):
                taken = list(inspect.signature(getattr(theirs, name)).parameters)
                assert taken[: len(inspect.signature(method).parameters)] == list(inspect.signature(method).parameters)
    assert comfy.patcher_extension.WrappersMP.CALC_COND_BATCH == "calc_cond_batch"


def test_comfyui_finds_the_nodes_and_the_folder(comfy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_paths, nodes = sys.modules["folder_paths"], importlib.import_module("integrations.comfyui.nodes")
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", {})
    monkeypatch.setattr(nodes, "folder_paths", folder_paths)
    nodes.register_folder()
    (tmp_path / "coeff_subjects" / "dogs").mkdir(parents=True)
    for name in ("dogs/my-dog.safetensors", "notes.txt"):
        (tmp_path / "coeff_subjects" / name).touch()
    Image.new("RGB", (4, 4)).save(tmp_path / "coeff_subjects" / "dogs" / "my-dog.png")  # a preview
    card = embed(
        (tmp_path / "coeff_subjects" / "dogs" / "my-dog.png").read_bytes(), [Coefficients({"a": torch.eye(2)})]
    )
    (tmp_path / "coeff_subjects" / "card.png").write_bytes(card)
    files = nodes.LoadCoeffSubject.INPUT_TYPES()["required"]["file"][0]
    assert sorted(files) == ["card.png", "dogs/my-dog.safetensors"]
    assert len(nodes.LoadCoeffSubject.IS_CHANGED("dogs/my-dog.safetensors")) == 64


def test_the_workflow_runs(comfy: Any, pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI's own loader takes the folder, and its nodes draw the example, from behind the checkpoint to the VAE."""
    theirs, folder_paths = sys.modules["nodes"], sys.modules["folder_paths"]
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    folder = Path(__file__).parents[2] / "integrations" / "comfyui"
    assert asyncio.run(theirs.load_custom_node(str(folder)))
    (tmp_path / "coeff_subjects").mkdir()
    new_subject(pipe).save(tmp_path / "coeff_subjects" / "my-dog.safetensors")
    workflow = json.loads((folder / "workflows" / "subject_api.json").read_text())
    workflow["6"]["inputs"] |= {"width": 64, "height": 64}
    workflow["7"]["inputs"]["steps"] = 3

    def draw_with(strength: float, text: str) -> torch.Tensor:
        workflow["3"]["inputs"]["strength"], workflow["4"]["inputs"]["text"] = strength, text
        made: dict[str, Any] = {"1": (*hosted(comfy, pipe), None)}
        for number in sorted(set(workflow) - {"1", "8", "9"}):
            node = theirs.NODE_CLASS_MAPPINGS[workflow[number]["class_type"]]()
            given = workflow[number]["inputs"].items()
            inputs = {key: made[value[0]][value[1]] if isinstance(value, list) else value for key, value in given}
            made[number] = getattr(node, node.FUNCTION)(**inputs)
        drawn: torch.Tensor = made["7"][0]["samples"]
        return drawn

    assert torch.equal(draw_with(1.0, WITHOUT), draw_with(0.0, WITHOUT))
    assert not torch.allclose(draw_with(1.0, WITH), draw_with(0.0, WITH))


@pytest.mark.parametrize("name", PUBLISHED)
def test_layouts_of_published_bases(comfy: Any, apply: Any, name: str) -> None:
    """Every layer of the real bases has its place, with the heads and widths that the format's fingerprint records."""
    layers = importlib.import_module("coeff_diffusion.method.hosts.layers")
    with torch.device("meta"):
        theirs = UNet.from_config(PUBLISHED[name])
    detection = importlib.import_module("comfy.model_detection")
    found = detection.unet_config_from_diffusers_unet(theirs.state_dict(), torch.float32)
    config = detection.model_config_from_unet_config(found).unet_config
    unet = comfy.model_base.UNetModel(**config, device="meta")
    places = layers.find_places(unet)
    assert {path: place.site.heads for path, place in places.items()} == layer_heads(theirs)
    assert layers.fingerprint(places) == fingerprint(theirs)
    assert len({(place.name, place.key) for place in places.values()}) == len(places)
