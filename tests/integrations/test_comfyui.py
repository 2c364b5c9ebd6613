"""The nodes for ComfyUI on a stand-in for it; `comfyui_contract.py` says what that promises."""

import importlib
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import comfyui_contract as host
import pytest
import torch
from PIL import Image

import coeff_diffusion
from coeff_diffusion import Coefficients, CoefficientsInfo
from coeff_diffusion.method.recombination import recombined_attention
from coeff_diffusion.sources.image_card import embed
from coeff_diffusion.subject.errors import CoefficientsError
from coeff_diffusion.subject.layer_strengths import LayerStrengths

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "integrations" / "comfyui"
WITH, WITHOUT = "a photo of sks dog on the beach", "a photo of the dog"
# What diffusers calls the 8 layers of the contract's UNet, in its order.
BLOCKS = (
    "down_blocks.0.attentions.0",
    "up_blocks.1.attentions.0",
    "up_blocks.1.attentions.1",
    "mid_block.attentions.0",
)
PATHS = [f"{block}.transformer_blocks.0.{name}" for block in BLOCKS for name in ("attn1", "attn2")]
MIDDLE = PATHS[-2]


@pytest.fixture(autouse=True)
def _modules() -> Iterator[None]:
    with host.modules():
        yield


@pytest.fixture
def apply() -> Any:
    return importlib.import_module("integrations.comfyui.apply").apply_subject


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, with `tmp_path` for ComfyUI's models folder."""
    module = importlib.import_module("integrations.comfyui.nodes")
    monkeypatch.setattr(module, "folder_paths", host.FolderPaths(str(tmp_path)))
    (tmp_path / "coeff_subjects").mkdir()
    module.register_folder()
    return module


def new_subject(trigger: str = "sks dog", seed: int = 1, vectors: int = 2, stages: bool = False, **info: Any) -> Any:
    draw = torch.Generator().manual_seed(seed)
    coeffs = {path: torch.randn(host.HEADS, host.HEADS, generator=draw) for path in PATHS}
    tokens = {"text_encoder": torch.randn(vectors, host.TEXT, generator=draw)} if vectors else {}
    reading = ("down_blocks.0", "mid_block") if stages else ()
    stage_tokens = {stage: torch.randn(vectors, host.TEXT, generator=draw) for stage in reading}
    return Coefficients(coeffs, tokens, CoefficientsInfo(trigger=trigger, **info), stage_tokens=stage_tokens)


def noise(rows: int = 2) -> torch.Tensor:
    return torch.randn(rows, 6, host.WIDTH, generator=torch.Generator().manual_seed(3))


def test_layers_have_diffusers_paths() -> None:
    layers = importlib.import_module("coeff_diffusion.method.hosts.layers")
    places = layers.find_places(host.UNetModel())
    assert list(places) == PATHS
    assert places[PATHS[2]].key == ("output", 2, 0)
    assert places[MIDDLE].key == ("middle", 0, 0)
    assert {place.site.kind for place in places.values() if place.name == "attn2"} == {"cross"}
    assert layers.block_paths([2, 2, 2, 2])["input", 8] == "down_blocks.2.attentions.1"
    assert layers.block_paths([2, 2, 2, 2])["output", 11] == "up_blocks.3.attentions.2"


def test_one_layer_is_recombined_attention(apply: Any) -> None:
    subject = new_subject(vectors=0, gate="always", blocks=("mid_block*",))
    subject = subject.replace(coeffs={path: subject[path] for path in PATHS[-2:]})
    model, _ = apply(host.new_model(), host.CLIP(), subject, 0.5)
    patch = model.model_options["transformer_options"]["patches_replace"]["attn1"]["middle", 0, 0]
    query, key, value = noise(), noise() + 1, noise() - 1
    options = {"n_heads": host.HEADS, "cond_or_uncond": [0], "sigmas": torch.tensor([5.0]), "uuids": ["a"]}
    parts = [x.unflatten(-1, (host.HEADS, -1)).transpose(1, 2) for x in (query, key, value)]
    expected = recombined_attention(*parts, 0.5 * subject[MIDDLE]).transpose(1, 2).flatten(2)
    torch.testing.assert_close(patch(query, key, value, options), expected)


def test_acts_on_pictures_whose_prompt_has_the_trigger(apply: Any) -> None:
    model, clip = host.new_model(), host.CLIP()
    mine, reader = apply(model, clip, new_subject(vectors=0))
    for prompt in (WITH, "SKS  dog's hat"):
        positive, negative = host.encode(reader, prompt), host.encode(clip, "")
        base, found = host.step(model, noise(), positive, negative), host.step(mine, noise(), positive, negative)
        assert (found - base).abs().amax((1, 2)).min() > 0.01  # in both branches of the guidance
    for prompt in (WITHOUT, "sks dogs"):
        positive, negative = (
            host.encode(reader, prompt),
            host.encode(reader, "sks dog"),
        )  # a negative prompt calls nothing up
        assert torch.equal(host.step(mine, noise(), positive, negative), host.step(model, noise(), positive, negative))


def test_each_prompt_of_a_batch_has_its_own(apply: Any) -> None:
    model, clip = host.new_model(), host.CLIP()
    mine, reader = apply(model, clip, new_subject(stages=True))
    several = host.encode(reader, WITHOUT) + host.encode(reader, WITH)
    base, found = host.step(model, noise(), several), host.step(mine, noise(), several)
    assert torch.equal(found[:2], base[:2])
    torch.testing.assert_close(found[2:], host.step(mine, noise(), host.encode(reader, WITH)))
    assert not torch.allclose(found[2:], base[2:])


def test_always_needs_no_prompt(apply: Any) -> None:
    model, clip = host.new_model(), host.CLIP()
    subject, foreign = new_subject(vectors=0), host.encode(clip, WITHOUT)
    mine, _ = apply(model, clip, subject, gate="always")
    assert not torch.allclose(host.step(mine, noise(), foreign), host.step(model, noise(), foreign))
    gated, _ = apply(model, clip, subject)
    with pytest.raises(CoefficientsError, match="encode it with the CLIP that Apply Coeff Subject gives"):
        host.step(gated, noise(), foreign)


def test_the_trigger_is_read_as_its_vectors(apply: Any) -> None:
    clip, subject = host.CLIP(), new_subject()
    _, reader = apply(host.new_model(), clip, subject)
    tokens = [token for token, _ in reader.tokenize("a photo of (SKS  Dog)")["l"][0]]
    plain = [token for token, _ in clip.tokenize("a photo of (")["l"][0]]
    vectors = [number for number, token in enumerate(tokens) if isinstance(token, torch.Tensor)]
    assert len(vectors) == 2
    assert torch.equal(torch.stack([tokens[number] for number in vectors]), subject.tokens["text_encoder"])
    assert tokens[: vectors[0]] == plain[:5]  # start, a, photo, of and the bracket
    note = host.encode(reader, WITH)[0][1]["coeff_diffusion"]
    assert note.places["sks dog"].tolist().index(0) == 4  # start, a, photo, of
    assert reader.tokenize(WITHOUT) == clip.tokenize(WITHOUT)
    assert all(not isinstance(token, torch.Tensor) for token, _ in clip.tokenize(WITH)["l"][0])  # the CLIP that went in


def test_stage_tokens_stand_where_the_trigger_stands(apply: Any) -> None:
    """Of one stage alone, without matrices, it is the base with another text in that stage."""
    model, clip = host.new_model(), host.CLIP()
    subject = new_subject(stages=True, gate="always").replace(coeffs={path: torch.zeros(4, 4) for path in PATHS})
    mine, reader = apply(model, clip, subject, 0.5)
    positive = host.encode(reader, WITH)
    expected = model.clone()

    def add(n: Any, context: Any, value: Any, options: Any) -> Any:
        stage = {"input": "down_blocks.0", "middle": "mid_block"}.get(options["block"][0])
        if stage:
            context = context.clone()
            context[:2, 4:6] += 0.5 * subject.stage_tokens[stage]
        return n, context, context

    expected.set_model_attn2_patch(add)
    negative = host.encode(reader, WITH)
    torch.testing.assert_close(
        host.step(mine, noise(), positive, negative), host.step(expected, noise(), positive, negative)
    )
    with pytest.raises(CoefficientsError, match="that is not known"):
        host.step(mine, noise(), host.encode(clip, WITH))


def test_subjects_add_up(apply: Any) -> None:
    model, clip = host.new_model(), host.CLIP()
    dog, cat = new_subject(vectors=0, gate="always"), new_subject("zwx cat", 2, vectors=0, gate="always")
    one_after_the_other = apply(*apply(model, clip, dog, 0.3), cat, 0.5)[0]
    blended = apply(model, clip, coeff_diffusion.blend([(dog, 0.3), (cat, 0.5)]), gate="always")[0]
    positive = host.encode(clip, WITHOUT)
    torch.testing.assert_close(host.step(one_after_the_other, noise(), positive), host.step(blended, noise(), positive))


def test_strength_layers_and_the_part_of_sampling(apply: Any) -> None:
    model, clip, subject = host.new_model(), host.CLIP(), new_subject(vectors=0, gate="always")
    positive = host.encode(clip, WITHOUT)

    def changes(sigma: float, *args: Any, **kwargs: Any) -> bool:
        mine = apply(model, clip, subject, *args, **kwargs)[0]
        drawn = host.step(mine, noise(), positive, sigma=sigma)
        return not torch.equal(drawn, host.step(model, noise(), positive, sigma=sigma))

    assert [changes(sigma, begin=0.2, end=0.6) for sigma in (9.0, 8.0, 5.0, 4.0, 3.9)] == [
        False,
        True,
        True,
        True,
        False,
    ]
    assert not changes(5.0, 0.0)
    assert not changes(5.0, 1.0, layers=LayerStrengths(self_attention=0, cross_attention=0))
    only_self = apply(model, clip, subject, layers=LayerStrengths(cross_attention=0))[0]
    assert set(only_self.model_options["transformer_options"]["patches_replace"]) == {"attn1"}


@pytest.mark.parametrize("key", [("middle", 0, 0), ("middle", 0)])
def test_another_nodes_patch_is_in_the_way(apply: Any, key: Any) -> None:
    def another_node(q: Any, k: Any, v: Any, options: Any) -> Any:
        return v

    model, clip = host.new_model(), host.CLIP()
    taken = model.clone()
    taken.set_model_attn1_replace(another_node, *key)
    with pytest.raises(CoefficientsError, match=rf"another_node.*{MIDDLE}"):
        apply(taken, clip, new_subject())
    mine, reader = apply(model, clip, new_subject())
    mine.set_model_attn1_replace(another_node, "middle", 0, 0)
    with pytest.raises(CoefficientsError, match=rf"another node has replaced.*{MIDDLE}"):
        host.step(mine, noise(), host.encode(reader, WITH))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"coeffs": {"down_blocks.7.attn1": torch.ones(4, 4)}}, "down_blocks.7.attn1 is no attention layer"),
        ({"coeffs": {MIDDLE: torch.ones(2, 2)}}, "2 heads, in this model 4"),
        ({"coeffs": {MIDDLE: torch.ones(4, 4)}}, "has no coefficients"),
        ({"info": CoefficientsInfo(trigger="sks dog", base_fingerprint="0" * 64)}, "have other widths"),
        ({"stage_tokens": {"up_blocks.0": torch.ones(2, host.TEXT)}}, "up_blocks.0 is no stage"),
        ({"stage_tokens": {"mid_block": torch.ones(2, 5)}}, "5 channels, in this model 12"),
        ({"tokens": {"text_encoder": torch.ones(2, 5)}}, "token has 5 channels, but clip_l of this CLIP has 12"),
        ({"tokens": {"text_encoder_2": torch.ones(2, 12)}}, "token for text_encoder_2.* it has clip_l"),
        ({"denoiser": "transformer"}, "its layers are those of a transformer"),
        (
            {"coeffs": {MIDDLE: torch.ones(4, 4), "text_encoder/text_model.a": torch.ones(2, 2)}},
            "heads of 1 layers of the t",
        ),
    ],
)
def test_a_subject_of_another_base_is_refused(apply: Any, changes: Any, message: str) -> None:
    subject = new_subject()
    given = {"coeffs": dict(subject), "tokens": subject.tokens, "info": subject.info, **changes}
    with pytest.raises(CoefficientsError, match=message):
        apply(host.new_model(), host.CLIP(), Coefficients(**given))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"begin": 0.5, "end": 0.5}, "the end behind the beginning"),
        ({"strength": float("nan")}, "strength is nan"),
        ({"gate": "trigger"}, "no trigger to be gated by"),
    ],
)
def test_settings_that_make_no_sense(apply: Any, given: Any, message: str) -> None:
    with pytest.raises(CoefficientsError, match=message):
        apply(host.new_model(), host.CLIP(), new_subject("", vectors=0), **given)


def test_other_models_and_triggers_that_clash(apply: Any) -> None:
    model, clip = host.new_model(), host.CLIP()
    applied = apply(model, clip, new_subject())
    with pytest.raises(CoefficientsError, match="'sks dog' clashes with 'sks dog'"):
        apply(*applied, new_subject(seed=2))
    other = host.new_model()
    other.model.diffusion_model = torch.nn.Linear(1, 1)
    with pytest.raises(CoefficientsError, match="a Linear; expected the UNet of a Stable Diffusion"):
        apply(other, clip, new_subject())
    foreign = host.CLIP()
    foreign.tokenizer = host.SDTokenizer()  # type: ignore[assignment]
    with pytest.raises(CoefficientsError, match="reads with a SDTokenizer"):
        apply(model, foreign, new_subject(vectors=0))


def test_other_weights_are_worth_a_warning(apply: Any, caplog: pytest.LogCaptureFixture) -> None:
    model, layers = host.new_model(), importlib.import_module("coeff_diffusion.method.hosts.layers")
    unet = model.model.diffusion_model
    sample = layers.weight_sample(unet, layers.find_places(unet))
    assert len(sample) == 24
    apply(model, host.CLIP(), new_subject(base_sample=sample))
    assert caplog.messages == []
    apply(model, host.CLIP(), new_subject(base_sample=tuple(1.1 * value for value in sample)))
    assert "has other weights" in caplog.messages[0]


def test_files_and_cards(nodes: Any, tmp_path: Path) -> None:
    dog, cat = new_subject(name="dog"), new_subject("zwx cat", 2, name="cat")
    folder = tmp_path / "coeff_subjects"
    dog.save(folder / "dog.safetensors")
    Image.new("RGB", (4, 4)).save(folder / "both.png")
    (folder / "both.png").write_bytes(embed((folder / "both.png").read_bytes(), [dog, cat]))
    (folder / "notes.txt").touch()
    for preview in ("dog.png", "dog.preview.png"):  # as other programs put them beside a model, of whatever kind
        Image.new("RGB", (4, 4)).save(folder / preview, "PNG" if preview == "dog.png" else "JPEG")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    node = nodes.LoadCoeffSubject()
    assert node.INPUT_TYPES()["required"]["file"] == (["both.png", "dog.safetensors"],)
    assert node.load("dog.safetensors") == (dog,)
    assert node.load("both.png", "cat") == (cat,)
    with pytest.raises(CoefficientsError, match="carries 2 subjects"):
        node.load("both.png")
    with pytest.raises(CoefficientsError, match=r"dog\.png carries no subject; programs that save"):
        node.load("dog.png")
    before = node.IS_CHANGED("dog.safetensors")
    dog.scaled(2).save(folder / "dog.safetensors")
    assert node.IS_CHANGED("dog.safetensors") != before


def test_nodes_by_their_names(nodes: Any) -> None:
    dog, cat = new_subject(vectors=0, name="dog\x85"[:3]), new_subject("zwx cat", 2, vectors=0, name="cat")
    assert nodes.BlendCoeffSubjects().blend(dog, cat, 0.25, 0.5) == (coeff_diffusion.blend([(dog, 0.25), (cat, 0.5)]),)
    told = nodes.CoeffSubjectInfo().describe(new_subject(name="dog", stages=True))
    assert told["result"] == (told["ui"]["text"][0], "sks dog")
    assert (
        "learned: 8 layers; 2 vectors for text_encoder; stage tokens for down_blocks.0, mid_block" in told["result"][0]
    )
    model, clip = nodes.ApplyCoeffSubject().apply(
        host.new_model(), host.CLIP(), dog, 1.0, "as the subject says", 1.0, 1.0, 0.0, 1.0
    )
    assert not torch.equal(
        host.step(model, noise(), host.encode(clip, WITH)),
        host.step(host.new_model(), noise(), host.encode(clip, WITH)),
    )
    assert set(nodes.NODE_CLASS_MAPPINGS) == set(nodes.NODE_DISPLAY_NAME_MAPPINGS)
    for node in nodes.NODE_CLASS_MAPPINGS.values():
        assert callable(getattr(node, node.FUNCTION))
        assert set(node.INPUT_TYPES()) <= {"required", "optional"}


def test_workflows_are_of_these_nodes(nodes: Any) -> None:
    api = json.loads((FOLDER / "workflows" / "subject_api.json").read_text())
    ours = {one["class_type"]: one["inputs"] for one in api.values() if one["class_type"] in nodes.NODE_CLASS_MAPPINGS}
    assert set(ours) == {"LoadCoeffSubject", "ApplyCoeffSubject"}
    shown = json.loads((FOLDER / "workflows" / "subject.json").read_text())
    assert {one["type"] for one in shown["nodes"]} == {one["class_type"] for one in api.values()}
    links = {number: link for number, *link in shown["links"]}
    for name, given in ours.items():
        kinds = nodes.NODE_CLASS_MAPPINGS[name].INPUT_TYPES()
        assert set(kinds["required"]) <= set(given) <= {key for some in kinds.values() for key in some}
        node = next(one for one in shown["nodes"] if one["type"] == name)
        values = [value for value in given.values() if not isinstance(value, list)]
        assert node["widgets_values"] == values
        assert [links[one["link"]][-1] for one in node["inputs"]] == [one["type"] for one in node["inputs"]]


def test_needs_neither_diffusers_nor_transformers(tmp_path: Path) -> None:
    """As ComfyUI loads it: by its path, whatever that is called."""
    code = f"""
import importlib.util, sys, types
sys.path.insert(0, {str(ROOT)!r})
folder_paths = types.ModuleType("folder_paths")
folder_paths.models_dir, folder_paths.folder_names_and_paths = "models", {{}}
folder_paths.get_filename_list = lambda name: []
sys.modules["folder_paths"] = folder_paths
spec = importlib.util.spec_from_file_location("coeff", {str(FOLDER / "__init__.py")!r})
module = importlib.util.module_from_spec(spec)
sys.modules["coeff"] = module
spec.loader.exec_module(module)
assert len(module.NODE_CLASS_MAPPINGS) == 4
print([name for name in ("diffusers", "transformers", "accelerate", "huggingface_hub") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


def test_packaging() -> None:
    ours = tomllib.loads((FOLDER / "pyproject.toml").read_text())
    assert ours["project"]["version"] == coeff_diffusion.__version__
    assert ours["tool"]["comfy"]["DisplayName"]
    house = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert house["tool"]["setuptools"]["packages"]["find"]["include"] == ["coeff_diffusion*"]
