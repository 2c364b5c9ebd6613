"""The extension for Forge on a stand-in for it; `forge_contract.py` says what that promises."""

import importlib
import importlib.util
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import comfyui_contract as comfy
import forge_contract as host
import pytest
import torch
from PIL import Image
from test_comfyui import MIDDLE, PATHS, new_subject, noise

from coeff_diffusion.images.generation_info import parse_parameters
from coeff_diffusion.sources.image_card import embed
from coeff_diffusion.subject.errors import CoefficientsError

gradio = pytest.importorskip("gradio")

FOLDER = Path(__file__).parents[2] / "integrations" / "forge"
WITH, WITHOUT = "a photo of sks dog on the beach", "a photo of the dog"
EMPTY = ("None", 1.0) * 3


@pytest.fixture
def extension(tmp_path: Path) -> Iterator[Any]:
    """The script as Forge loads it: by its path; with two subjects, dog and cat."""
    folder = tmp_path / "coeff_subjects"
    folder.mkdir()
    new_subject(stages=True, name="dog").save(folder / "dog.safetensors")
    new_subject("zwx cat", 2, vectors=0, name="cat").save(folder / "cat.safetensors")
    host.Processing.cached_c, host.Processing.cached_uc = [None] * 3, [None] * 3
    with host.modules(tmp_path, FOLDER):
        path = FOLDER / "scripts" / "coeff_subjects.py"
        spec = importlib.util.spec_from_file_location(path.name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture
def script(extension: Any) -> Any:
    return extension.CoeffSubjects()


@pytest.fixture
def model() -> host.Model:
    return host.Model()


def chosen(**strengths: float) -> tuple[Any, ...]:
    rows = [value for row in strengths.items() for value in row]
    return (*rows, *EMPTY[len(rows) :])


def draw(script: Any, model: host.Model, prompts: Any, values: Any = EMPTY, negative: str = "") -> Any:
    p = host.Processing(model, [prompts] if isinstance(prompts, str) else prompts, negative)
    return host.draw(script, p, values, noise(len(p.prompts))), p


def test_what_comfyui_draws(script: Any, model: host.Model) -> None:
    """The same UNet, text encoder and subject in both hosts."""
    subject, prompt = new_subject(stages=True, name="dog"), "a photo of SKS dog"
    with comfy.modules():
        apply = importlib.import_module("integrations.comfyui.apply").apply_subject
        clip = comfy.CLIP()
        clip.cond_stage_model.table.load_state_dict(model.text_processing_engine.table.state_dict())
        theirs, reader = apply(model.original, clip, subject, 0.5)
        expected = comfy.step(theirs, noise(1), comfy.encode(reader, prompt), comfy.encode(reader, "sks dog, ugly"))
    found, _ = draw(script, model, prompt, chosen(dog=0.5), "sks dog, ugly")
    torch.testing.assert_close(found, expected)
    base, _ = draw(script, model, prompt, negative="sks dog, ugly")
    assert (found - base).abs().amax((1, 2)).min() > 0.01  # in both branches of the guidance


def test_each_picture_of_a_batch_has_its_own_prompt(script: Any, model: host.Model) -> None:
    long = "a photo of sks dog " + "on the beach " * 7  # another chunk
    prompts = [WITHOUT, WITH, long, "(sks dog:1.2)"]
    together, _ = draw(script, model, prompts, chosen(dog=1))
    base, _ = draw(script, model, prompts)
    alike = (together - base).abs().amax((1, 2)).view(2, 4).amax(0)
    assert alike[0] == 0  # bitwise the base, in the guidance's other branch, too
    assert alike[1:].min() > 0.01

    # Texts that are as long as they are alone: what is drawn is what is drawn alone.
    for place, prompt in enumerate(prompts[:2]):
        p = host.Processing(model, [prompt])
        p_noise = noise(2)[place : place + 1]
        alone = host.draw(script, p, chosen(dog=1), p_noise)
        pair, _ = draw(script, model, prompts[:2], chosen(dog=1))
        torch.testing.assert_close(pair[place::2], alone)


def test_stage_tokens_stand_where_the_trigger_stands(script: Any, model: host.Model, tmp_path: Path) -> None:
    """Without matrices a subject is the base with another text in two stages."""
    subject = new_subject(stages=True, name="dog").replace(coeffs={path: torch.zeros(4, 4) for path in PATHS})
    subject.save(tmp_path / "coeff_subjects" / "dog.safetensors")
    found, p = draw(script, model, [WITH, WITHOUT], chosen(dog=0.5))
    unet = model.original.clone()

    def add(n: Any, context: Any, value: Any, options: Any) -> Any:
        stage = {"input": "down_blocks.0", "middle": "mid_block"}.get(options["block"][0])
        if stage:
            context = context.clone()
            context[2, 4:6] += 0.5 * subject.stage_tokens[stage]  # of the first picture; start, a, photo, of
        return n, context, context

    unet.set_model_attn2_patch(add)
    torch.testing.assert_close(found, host.step(unet, noise(2), p.cached_c[1], p.cached_uc[1]))


def test_the_text_of_the_picture_names_the_subjects(script: Any, model: host.Model, extension: Any) -> None:
    _, p = draw(script, model, "sks dog and zwx cat", chosen(dog=0.5, cat=-1))
    told = p.extra_generation_params
    line = ", ".join(f"{key}: {json.dumps(value)}" for key, value in told.items())
    read = parse_parameters(f"sks dog and zwx cat\nSteps: 20, Sampler: Euler, Seed: 1, {line}")
    assert read.subjects == {"dog": 0.5, "cat": -1.0}
    dog = new_subject(stages=True, name="dog")
    assert read.hashes["dog"] == dog.sha256[:12]

    with gradio.Blocks():
        controls = script.ui(False)
    assert [len(control.choices) for control in controls[::2]] == [3, 3, 3]
    assert [name for name, _ in controls[0].choices] == ["None", "cat", "dog"]
    pasted = [read(told) for _, read in script.infotext_fields]
    assert pasted == ["dog", 0.5, "cat", -1.0, "None", 1.0]
    for nonsense in ({}, {"Subjects": "7"}, {"Subjects": "{"}, {"Subjects": '{"dog": []}'}):
        assert script.infotext_fields[0][1](nonsense) == "None"
    _, p = draw(script, model, WITH)
    assert p.extra_generation_params == {}


def test_words_are_forgotten_again(script: Any, model: host.Model) -> None:
    database = model.text_processing_engine.embeddings
    own = type("Word", (), {"vec": {"clip_l": torch.zeros(1, host.comfy.TEXT)}, "vectors": 1, "name": "sks dog"})()
    database.register_embedding_by_name(own, "sks dog")  # the user's own textual inversion of this name
    before, p = draw(script, model, WITH)
    assert p.cached_c[0] == (WITH,)
    drawn, _ = draw(script, model, WITH, chosen(dog=1))
    assert database.word_embeddings["sks dog"].vectors == 2
    assert not torch.allclose(before, drawn)
    again, _ = draw(script, model, WITH)  # the cache of encoded prompts has another text under this name
    assert torch.equal(again, before)
    assert database.word_embeddings == {"sks dog": own}


def test_subjects_act_together_and_strength_0_is_the_base(script: Any, model: host.Model) -> None:
    both = draw(script, model, "sks dog and zwx cat", chosen(dog=1, cat=1))[0]
    dog = draw(script, model, "sks dog and zwx cat", chosen(dog=1))[0]
    assert not torch.allclose(both, dog)
    cat = draw(script, model, "zwx cat", chosen(cat=0))[0]
    assert torch.equal(cat, draw(script, model, "zwx cat")[0])


@pytest.mark.parametrize(
    ("prompt", "values", "message"),
    [
        (WITH, chosen(tiger=1), "no subject 'tiger'"),
        (WITH, ("dog", 1.0, "dog", 1.0, "None", 1.0), "'dog' is chosen twice"),
        (f"{WITH} AND a house", chosen(dog=1), "write it without AND"),
        ("[sks dog:cat:0.5]", chosen(cat=1), "write it without AND and without [from:to:when]"),
        (WITH, chosen(dog=float("nan")), "the strength of 'dog' is nan"),
        (WITH, chosen(narrow=1), "5 channels, but text_encoder of this model has 12"),
        (WITH, chosen(second=1), "a token for text_encoder_2, which this model does not have"),
        (WITH, chosen(other=1), "2 heads, in this model 4"),
        (WITH, chosen(dog=1, same=1), "'sks dog' and 'sks dog' clash"),
    ],
)
def test_what_is_wrong_is_said_and_ends_the_drawing(
    script: Any, model: host.Model, tmp_path: Path, prompt: str, values: Any, message: str
) -> None:
    folder, subject = tmp_path / "coeff_subjects", new_subject()
    subject.replace(tokens={"text_encoder": torch.ones(2, 5)}).save(folder / "narrow.safetensors")
    subject.replace(tokens={"text_encoder_2": torch.ones(2, 12)}).save(folder / "second.safetensors")
    subject.replace(coeffs={MIDDLE: torch.ones(2, 2)}).save(folder / "other.safetensors")
    new_subject(seed=3).save(folder / "same.safetensors")
    drawn, p = draw(script, model, prompt, values)
    assert drawn is None
    assert message in next(iter(p.comments))
    assert p.extra_generation_params == {}
    assert draw(script, model, prompt.replace(" AND a house", "")) is not None


def test_always_takes_any_prompt(script: Any, model: host.Model, tmp_path: Path) -> None:
    new_subject(vectors=0, gate="always", name="mood").save(tmp_path / "coeff_subjects" / "mood.safetensors")
    drawn = draw(script, model, f"{WITHOUT} AND a house", chosen(mood=1))[0]
    assert not torch.allclose(drawn, draw(script, model, f"{WITHOUT} AND a house")[0])


def test_others_in_the_way_and_other_models(script: Any, model: host.Model) -> None:
    def their_patch(q: Any, k: Any, v: Any, options: Any) -> Any:
        return v

    plain = model.original
    model.original = plain.clone()
    model.original.set_model_attn1_replace(their_patch, "middle", 0, 0)
    drawn, p = draw(script, model, WITH, chosen(dog=1))
    assert drawn is None
    assert f"their_patch) replaces the attention of layers that the subject acts in: {MIDDLE}" in next(iter(p.comments))
    model.original = plain
    del model.text_processing_engine.embeddings
    drawn, p = host.draw, host.Processing(model, [WITH])
    script.known.clear()
    script.process_batch(p, *chosen(dog=1))
    assert "this model is a Model; expected Forge's Stable Diffusion 1.x, 2.x or XL" in next(iter(p.comments))


def test_other_weights_are_worth_a_comment(script: Any, model: host.Model, tmp_path: Path) -> None:
    layers = importlib.import_module("coeff_diffusion.method.hosts.layers")
    unet = model.original.model.diffusion_model
    sample = tuple(1.1 * value for value in layers.weight_sample(unet, layers.find_places(unet)))
    new_subject(base_sample=sample, name="dog").save(tmp_path / "coeff_subjects" / "dog.safetensors")
    drawn, p = draw(script, model, WITH, chosen(dog=1))
    assert drawn is not None
    assert "has other weights" in next(iter(p.comments))


def test_xl_reads_with_two_encoders(script: Any, model: host.Model, tmp_path: Path) -> None:
    """Each engine is taught the vectors of its own; where they stand, the first one says."""
    small, large = model.text_processing_engine, host.TextEngine("clip_g")
    del model.text_processing_engine
    model.text_processing_engine_l, model.text_processing_engine_g = small, large  # type: ignore[attr-defined]
    tokens = {"text_encoder": torch.ones(2, comfy.TEXT), "text_encoder_2": torch.full((3, comfy.TEXT), 2.0)}
    subject = new_subject().replace(tokens=tokens)
    words = importlib.import_module("lib_coeff_diffusion.words")
    known = words.teach(model, [subject])
    for engine, (owner, place) in zip((small, large), zip(tokens, (2, 3), strict=True), strict=True):
        read = engine("a sks dog in snow")
        assert torch.equal(read[2 : 2 + place], tokens[owner])
    is_called, places = words.called(model, subject, "a sks dog in snow")
    assert is_called
    assert places[:6].tolist() == [-1, -1, 0, 1, -1, -1]
    assert words.called(model, subject, "a dog in snow")[0] is False
    words.forget(known)
    assert small.embeddings.word_embeddings == large.embeddings.word_embeddings == {}


def test_the_second_pass_reads_its_own_prompts(script: Any, model: host.Model) -> None:
    p = host.Processing(model, [WITHOUT])
    p.hr_prompts, p.is_hr_pass = [WITH], True  # type: ignore[attr-defined]
    values = chosen(dog=1)
    script.process_batch(p, *values)
    c, uc = host.conditioning(model, [WITH]), host.conditioning(model, [""])
    script.process_before_every_sampling(p, *values, c=c, uc=uc)
    drawn = host.step(model.forge_objects.unet, noise(1), c, uc)
    assert not torch.allclose(drawn, host.step(model.original, noise(1), c, uc))


def test_files_cards_and_trainings(script: Any, tmp_path: Path) -> None:
    files, folder, subject = importlib.import_module("lib_coeff_diffusion.files"), tmp_path / "some", new_subject()
    of_run = ("coefficients", "timeline", "checkpoints/step_5")
    for name in ("plain", "pets/rex", ".trash/old", *(f"run/{one}" for one in of_run)):
        file = folder / f"{name}.safetensors"
        file.parent.mkdir(parents=True, exist_ok=True)
        subject.save(file)
    (folder / "notes.txt").touch()
    picture = io.BytesIO()
    Image.new("RGB", (4, 4)).save(picture, "PNG")
    (folder / "card.PNG").write_bytes(embed(picture.getvalue(), [subject]))
    for preview in ("plain.png", "plain.preview.png"):  # as other programs put them beside a model, of whatever kind
        Image.new("RGB", (4, 4)).save(folder / preview, "PNG" if preview == "plain.png" else "JPEG")
    (folder / "folder.png").mkdir()
    (folder / "damaged.png").write_bytes((folder / "card.PNG").read_bytes()[:-20])
    with pytest.raises(CoefficientsError, match="truncated"):
        files.read_subject(folder, "damaged")
    (folder / "damaged.png").unlink()
    assert sorted(files.find_subjects(folder)) == ["card", "pets/rex", "plain", "run"]
    for name in files.find_subjects(folder):
        assert files.read_subject(folder, name) == subject
    with pytest.raises(CoefficientsError, match="no subject '../plain'"):
        files.read_subject(folder / "pets", "../plain")


def test_needs_neither_diffusers_nor_the_hub(tmp_path: Path) -> None:
    """Forge has versions of its own of these."""
    code = f"""
import sys, types, importlib.util
sys.path[:0] = [{str(FOLDER)!r}, {str(FOLDER.parents[1])!r}]
modules = types.ModuleType("modules")
modules.scripts, modules.paths, modules.shared = (types.SimpleNamespace() for _ in range(3))
modules.scripts.Script, modules.paths.models_path = object, "models"
sys.modules |= {{"modules": modules, "gradio": types.ModuleType("gradio")}}
spec = importlib.util.spec_from_file_location("script", {str(FOLDER / "scripts" / "coeff_subjects.py")!r})
spec.loader.exec_module(importlib.util.module_from_spec(spec))
print([name for name in ("diffusers", "transformers", "accelerate", "huggingface_hub") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
