"""What a file or a picture says about itself: for people, for programs, and never for the terminal itself."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import safetensors.torch
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image, PngImagePlugin
from single_file import write_original_checkpoint

from coeff_diffusion import Coefficients, CoefficientsError, CoefficientsInfo, describe_base, layer_heads
from coeff_diffusion.commands.config import InfoConfig
from coeff_diffusion.commands.info import collect_facts, show_info
from coeff_diffusion.images.files import save_picture
from coeff_diffusion.images.generation_info import Parameters, PictureError, format_parameters
from coeff_diffusion.sources.image_card import embed
from coeff_diffusion.sources.qr_code import make_qr
from coeff_diffusion.subject.printable import printable
from coeff_diffusion.subject.safetensors_file import FILE_NAME, MAX_FILE
from coeff_diffusion.training.checkpoint import Checkpoint
from coeff_diffusion.training.timeline import save_timeline

Subject = Callable[..., Coefficients]
LAYER = "down_blocks.{}.attentions.0.transformer_blocks.0.{}"
INFO = CoefficientsInfo(
    name="my dog",
    trigger="sks dog",
    class_word="dog",
    instance_prompt="a photo of sks dog",
    class_prompt="a photo of a dog",
    base_model="user/base",
    base_revision="v1",
    base_architecture="stable-diffusion-v1",
    resolution=512,
    train_steps=200,
    seed=0,
    license="CC0-1.0",
    created="2026-01-01",
    trained_with="coeff-diffusion 0.1.0",
    final_loss=0.125,
    effect=0.25,
)
DOG = Coefficients(
    {
        LAYER.format(1, "attn2"): torch.full((2, 2), 0.5),
        LAYER.format(0, "attn1"): torch.full((4, 4), 0.25),
        LAYER.format(0, "attn2"): torch.full((4, 4), -0.5),
        "mid_block.attentions.0.transformer_blocks.0.attn1": torch.zeros(4, 4),
    },
    {"text_encoder": torch.full((2, 8), 0.25)},
    INFO,
)
DRAWN = Parameters("a sks dog", "blurry", scheduler="DDIM", steps=20, guidance_scale=7.5, seed=7,
                   width=64, height=32, model="user/base",
                   subjects={"my dog": 0.8}, hashes={"my dog": DOG.sha256[:12]}, extra={"Hires": "2x"})  # fmt: skip


def shown(source: object) -> str:
    """What people get to see."""
    said: list[str] = []
    show_info(InfoConfig(str(source)), said.append)
    (page,) = said
    assert all(line.isprintable() for line in page.splitlines())
    return page


def read_json(source: object) -> dict[str, Any]:
    """What programs get."""
    said: list[str] = []
    show_info(InfoConfig(str(source), json=True), said.append)
    (line,) = said
    assert line.isascii()
    assert line.isprintable()
    return json.loads(line, parse_constant=pytest.fail)


def card(path: Path, parameters: Parameters | str | None, *subjects: Coefficients) -> Path:
    text = format_parameters(parameters) if isinstance(parameters, Parameters) else parameters
    save_picture(Image.new("RGB", (64, 32)), path, text)
    path.write_bytes(embed(path.read_bytes(), subjects))
    return path


@pytest.fixture
def dog(tmp_path: Path) -> Path:
    DOG.save(tmp_path / "dog.safetensors")
    return tmp_path / "dog.safetensors"


# --- subjects ---------------------------------------------------------------------------------------------------------


def test_a_page_for_people(dog: Path) -> None:
    assert (
        shown(dog)
        == f"""\
subject                my dog
trigger                sks dog
class word             dog
acts on                prompts with the trigger
base                   user/base (stable-diffusion-v1, revision v1)
instance prompt        a photo of sks dog
class prompt           a photo of a dog
trained                200 steps, 512 x 512 pixels, seed 0, loss 0.125 at the end
trained with           coeff-diffusion 0.1.0
effect                 changes the base's predictions by 25.0%
layers                 4 (2 self, 2 cross)
coefficients           52 (2 or 4 heads)
token of text_encoder  2 x 8, norm 1.0000
licence                CC0-1.0
created                2026-01-01
size                   {dog.stat().st_size:,} bytes
hash                   {DOG.sha256}

norm by block      self     cross
down_blocks.0    1.0000    2.0000
down_blocks.1         -    1.0000
mid_block        0.0000         -
all              {math.sqrt(6):.4f}"""
    )


def test_json_for_programs(dog: Path) -> None:
    facts = read_json(dog)
    assert facts.pop("info") == {**vars(INFO), "base_sample": [], "blocks": []}
    assert facts.pop("norm") == pytest.approx(math.sqrt(6))
    assert facts == {
        "kind": "subject",
        "layers": {"self": 2, "cross": 2, "text": 0, "other": 0},
        "heads": [2, 4],
        "coefficients": 52,
        "norms": {
            "down_blocks.0": {"self": 1.0, "cross": 2.0},
            "down_blocks.1": {"cross": 1.0},
            "mid_block": {"self": 0.0},
        },
        "tokens": {"text_encoder": {"vectors": 2, "width": 8, "norm": 1.0}},
        "stage_tokens": {},
        "adapter": None,
        "quantized": None,
        "size": dog.stat().st_size,
        "sha256": DOG.sha256,
    }


def test_the_documented_keys_are_those_there_are(dog: Path, tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "commands.md").read_text(encoding="utf-8")
    for facts in (read_json(dog), read_json(card(tmp_path / "card.png", DRAWN, DOG))):
        assert all(f"`{key}`" in text for key in facts)


def test_little_is_known(tmp_path: Path) -> None:
    Coefficients({"elsewhere.attn": torch.ones(1, 1)}).save(tmp_path / "a.safetensors")
    lines = shown(tmp_path / "a.safetensors").splitlines()
    assert lines[:3] == [
        "acts on       every prompt",
        "base          unknown (unknown family)",
        "layers        1 (1 other)",
    ]
    assert lines[-3:] == ["norm by block     other", "elsewhere        1.0000", "all              1.0000"]

    only_a_token = Coefficients({}, {"text_encoder": torch.ones(1, 4)}, CoefficientsInfo(trigger="sks"))
    only_a_token.save(tmp_path / "b.safetensors")
    page = shown(tmp_path / "b.safetensors")
    assert "layers                 0 (none)" in page
    assert "norm by block" not in page


def test_folders_and_repositories(dog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    dog.rename(tmp_path / "folder" / FILE_NAME)
    assert read_json(tmp_path / "folder")["info"]["name"] == "my dog"

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--user--dog"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots").mkdir()
    (tmp_path / "folder").rename(repository / "snapshots" / ("0" * 40))
    assert read_json("user/dog")["sha256"] == DOG.sha256


def test_what_rounding_did_is_shown_if_it_is_sound(tmp_path: Path) -> None:
    path = tmp_path / "dog.safetensors"
    for noted, expected in [
        ({"bits": 8, "largest_error": 0.00125}, "to 8 bits, no number is off by more than 0.0013"),
        ({"bits": 8}, None),
        ({"bits": "\x1b[2J", "largest_error": 0.5}, None),
        ([], None),
        ("8 bits", None),
    ]:
        DOG.replace(info=CoefficientsInfo(trigger="sks", extra={"quantized": noted})).save(path)
        assert read_json(path)["quantized"] == (noted if expected else None)
        assert (f"rounded                {expected}" in shown(path)) if expected else ("rounded" not in shown(path))


def test_endless_names_and_blocks_are_cut(tmp_path: Path) -> None:
    coeffs = {f"{'x' * 500}{number}.attn1": torch.ones(1, 1) for number in range(100)}
    Coefficients(coeffs, info=CoefficientsInfo(name="y" * 2_000)).save(tmp_path / "a.safetensors")
    page = shown(tmp_path / "a.safetensors")
    assert len(page) < 3_000
    assert "(84 more blocks)" in page
    assert len(read_json(tmp_path / "a.safetensors")["norms"]) == 100


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_a_drawn_picture(tmp_path: Path) -> None:
    path = card(tmp_path / "plain.png", DRAWN)
    assert (
        shown(path)
        == f"""\
prompt           a sks dog
negative prompt  blurry
subjects         my dog at 0.8 (hash {DOG.sha256[:12]})
base             user/base
seed             7
steps            20
sampler          DDIM
guidance         7.5
size             64 x 32
Hires            2x"""
    )
    facts = read_json(path)
    assert facts["kind"] == "picture"
    assert facts["parameters"]["prompt"] == "a sks dog"
    assert facts["parameters"]["extra"] == {"Hires": "2x"}
    assert facts["subjects"] == []
    assert facts["size"] == path.stat().st_size


def test_cards(dog: Path, tmp_path: Path) -> None:
    path, subject = card(tmp_path / "card.png", DRAWN, DOG), read_json(dog)
    assert read_json(path)["subjects"] == [subject]
    assert subject["size"] == len(DOG.to_bytes())
    page = shown(path)
    assert page.startswith("prompt ")
    assert page.endswith(f"This picture carries a subject:\n\n{shown(dog)}")

    cat = DOG.replace(info=CoefficientsInfo(name="cat", trigger="zwx"))
    several = card(tmp_path / "several.png", None, DOG, cat)
    assert read_json(several)["parameters"] is None
    assert shown(several).startswith("This picture carries 2 subjects:\n\nsubject  ")
    assert "subject                cat\n" in shown(several)
    # Another program's parameters, which make no sense, do not hide the subject.
    assert read_json(card(tmp_path / "odd.png", "x\nGate: many, Seed: 1, Size: 8x8", DOG))["parameters"] is None


@pytest.mark.parametrize("name", ["code.png", "code.jpg"])
def test_a_code_in_a_picture(name: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)  # Stable Diffusion 1.x
    coeffs = {path: torch.linspace(-1, 1, n * n).view(n, n) for path, n in layer_heads(unet).items()}
    subject = Coefficients(coeffs, info=CoefficientsInfo(name="dog", trigger="sks dog", **describe_base(unet)))
    make_qr(subject).convert("RGB").save(tmp_path / name)
    (found,) = read_json(tmp_path / name)["subjects"]
    assert found["info"]["trigger"] == "sks dog"
    assert found["quantized"]["bits"] == 8
    assert 0 < found["quantized"]["largest_error"] < 0.01
    assert "rounded       to 8 bits" in shown(tmp_path / name)


# --- what steers no terminal ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["\x1b[2J", "\x9b2J", "\x7f", "\u202egnp", "a\r", "\u2028", "\ue000", "\U000e0041"])
def test_nothing_reaches_the_terminal_but_text(text: str, tmp_path: Path) -> None:
    assert printable(text).isascii()
    hostile = f"dog{text}cat"
    parameters = Parameters(hostile, hostile, scheduler="DDIM", steps=1, model=hostile, subjects={hostile: 1.0},
                            extra={"Other": hostile})  # fmt: skip
    path = card(tmp_path / "card.png", parameters, DOG.replace(info=CoefficientsInfo(trigger="a", extra={"b": text})))
    facts = read_json(path)
    assert shown(path)
    assert facts["parameters"]["subjects"] == {hostile: 1.0}
    assert facts["subjects"][0]["info"]["extra"] == {"b": text}


def test_a_name_that_turns_the_line_around(tmp_path: Path) -> None:
    """Marks of direction may stand in prompts, where Arabic and Hebrew need them, and nowhere else."""
    info = CoefficientsInfo(name="dog", trigger="sks", instance_prompt="\u202egnp.exe")
    DOG.replace(info=info).save(tmp_path / "a.safetensors")
    assert r"\u202egnp.exe" in shown(tmp_path / "a.safetensors")
    for name in ("name", "trigger", "class_word", "base_model", "license", "trained_with"):
        with pytest.raises(CoefficientsError, match=rf"{name} holds control characters: 'x.u2066y'"):
            replace(info, **{name: "x\u2066y"})


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "Infinity"])
def test_numbers_that_are_none(number: str, tmp_path: Path) -> None:
    line = f'Act from: {number}, Layer strengths: "{{\\"down\\": {number}}}", Subjects: "{{\\"d\\": {number}}}"'
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", f"a dog\nSteps: 1, Seed: 1, Size: 8x8, CFG scale: {number}, {line}")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
    page = shown(tmp_path / "a.png")
    assert "down no number" in page
    assert "from no number to 1" in page
    assert "d at no number" in page
    assert json.loads(json.dumps(collect_facts(tmp_path / "a.png"), allow_nan=False))["parameters"]["begin"] is None


@pytest.mark.parametrize("text", ["Möpp 🐶", "👩‍👧", "犬　猫", "سگ‌ها", "a b"])
def test_what_people_write_stays(text: str) -> None:
    assert printable(text) == text


# --- what it is instead -----------------------------------------------------------------------------------------------


def test_other_files_are_called_by_their_name(
    tmp_path: Path, tiny_pipe: StableDiffusionPipeline, new_subject: Subject
) -> None:
    def refused(path: Path, message: str, error: type[Exception] = CoefficientsError) -> None:
        with pytest.raises(error, match=message) as caught:
            collect_facts(path)
        assert len(str(caught.value)) < 500 + len(str(path))

    def tensors(*names: str) -> Path:
        safetensors.torch.save_file({name: torch.zeros(2) for name in names}, tmp_path / "x.safetensors")
        return tmp_path / "x.safetensors"

    save_timeline(tmp_path / "timeline.safetensors", {10: new_subject()}, [0.1])
    refused(tmp_path / "timeline.safetensors", f"it is a timeline, .* is {FILE_NAME} beside it")
    Checkpoint(1, {"a": torch.zeros(1)}, {"optimizer": {"state": {}, "param_groups": []}}, [0.1]).save(
        tmp_path / "step.safetensors"
    )
    refused(tmp_path / "step.safetensors", "it is a checkpoint of a training run")
    refused(write_original_checkpoint(tiny_pipe, tmp_path / "sd.safetensors"), "it is a whole checkpoint, .* a base")
    refused(tensors("lora_unet_mid_block_attn1_to_q.lora_down.weight"), "not a subject: it is a LoRA")
    refused(tensors("unet.mid_block.attn1.to_q.lora_A.weight"), "not a subject: it is a LoRA")
    refused(tensors("down_blocks.0.resnets.0.conv1.weight", "conv_in.weight"), "it is the UNet of a base")
    refused(tensors("emb_params"), "it is a textual inversion")
    refused(tensors("weight"), "it is 1 tensors without metadata")

    refused(tmp_path / "none.png", "there is no file")
    refused(tmp_path / "none.safetensors", "there is no file")
    (tmp_path / "text.png").write_text("hello")
    refused(tmp_path / "text.png", "not a subject: it is a text")
    Image.new("RGB", (64, 64)).save(tmp_path / "plain.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "plain.jpg")
    for name in ("plain.png", "plain.jpg"):
        refused(tmp_path / name, "neither drawing parameters nor a subject and shows no QR code", PictureError)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ({"a.lora_up.weight": {}}, "it is a LoRA"),
        ({"model.diffusion_model.out.2.bias": {}}, "it is a whole checkpoint"),
        ({"other": {}}, "is it a whole model"),
    ],
)
def test_large_files_are_told_by_their_header(start: dict[str, Any], message: str, tmp_path: Path) -> None:
    text = json.dumps(start).encode()
    with (tmp_path / "large.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(10 * MAX_FILE)  # takes no room on the disk
    with pytest.raises(CoefficientsError, match=f"larger than 16 MiB, which no subject is; {message}"):
        collect_facts(tmp_path / "large.safetensors")


def test_layers_of_text_encoders_are_told_apart(tmp_path: Path) -> None:
    path = "text_encoder_2/text_model.encoder.layers.0.self_attn"
    DOG.replace(coeffs={**DOG, path: torch.full((4, 4), 0.5)}).save(tmp_path / "dog.safetensors")
    page = shown(tmp_path / "dog.safetensors")
    assert re.search(r"layers +5 \(2 self, 2 cross, 1 of the text encoder\)", page)
    assert re.search(r"norm by block +self +cross +text\n", page)
    assert re.search(r"\ntext_encoder_2 +- +- +2.0000\n", page)
    facts = collect_facts(tmp_path / "dog.safetensors")
    assert (facts["layers"]["text"], facts["norms"]["text_encoder_2"]) == (1, {"text": 2.0})
