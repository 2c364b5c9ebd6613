"""The comparison on real weights, on tiny random ones of the real layouts: so that it works where they are."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from fidelity_settings import BenchmarkError
from PIL import Image
from real_weights import run
from real_weights_measure import Features
from real_weights_protocol import Protocol, read_pictures
from real_weights_row import table
from real_weights_trial import WAYS, Settings
from safetensors.torch import load_file
from tiny_tokenizer import tiny_tokenizer
from transformers import (
    BitImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
)

from coeff_diffusion import Coefficients

SIZE = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
TINY: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A DINOv2 and a CLIP of random weights."""
    torch.manual_seed(0)
    folder, tokenizer = tmp_path_factory.mktemp("models"), tiny_tokenizer()
    vision = {**TINY, "image_size": 28, "patch_size": 14}
    Dinov2Model(Dinov2Config(**vision, mlp_ratio=2)).save_pretrained(folder / "dino")
    BitImageProcessorPil(**SIZE).save_pretrained(folder / "dino")
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = {**TINY, "intermediate_size": 64, "vocab_size": len(tokenizer), **ends}
    config = CLIPConfig(text_config=text, vision_config={**vision, "intermediate_size": 64}, projection_dim=16)
    CLIPModel(config).save_pretrained(folder / "clip")
    CLIPImageProcessorPil(**SIZE).save_pretrained(folder / "clip")
    tokenizer.save_pretrained(folder / "clip")
    return {"dino_model": str(folder / "dino"), "clip_model": str(folder / "clip")}


@pytest.fixture
def settings(tiny_base_dir: Path, subject_images: Path, models: dict[str, str], tmp_path: Path) -> Settings:
    protocol = {
        "model_id": "", "dataset_id": "", "dataset_split": "train", "image_column": "image", "dtype": "float32",
        "resolution": 16, "batch_size": 2, "max_steps": 2, "eval_steps": 1, "use_gc": True, "seed": 0,
        "grad_norm_clip": 1.0, "optimizer_kwargs": {"lr": 1e-2, "weight_decay": 1e-4}, "valid_size": 1, "test_size": 2,
        "num_inference_steps": 1, "guidance_scale": 3.5, "dino_model_id": "", "compile": False,
        "instance_prompts": [f"a sks cat {place}" for place in ("here", "there", "inside", "outside", "on grass")],
        "drift_image_prompts": ["a dog", "a house"], "sample_image_prompts": ["a sks cat on snow"],
    }  # fmt: skip
    file = tmp_path / "protocol.json"
    file.write_text(json.dumps(protocol))
    return Settings(
        protocol=str(file),
        base=str(tiny_base_dir),
        dataset=str(subject_images),
        lora_rank=2,
        device="cpu",
        output_dir=str(tmp_path / "out"),
        **models,
    )


def pixels(drawn: list[Image.Image], by_base: list[Image.Image]) -> float:
    pairs = zip(drawn, by_base, strict=True)
    return float(np.mean([np.abs(np.subtract(one, other, dtype=np.float32)).mean() for one, other in pairs]))


def test_features_tell_how_alike_pictures_are(settings: Settings) -> None:
    features = Features(str(settings.dino_model), settings.clip_model, torch.device("cpu"))
    red, blue = (Image.new("RGB", (40, 30), colour) for colour in ("red", "blue"))
    assert features.drift([red, blue], [red, blue]) == pytest.approx(0, abs=1e-6)
    assert 0 < features.drift([red, blue], [blue, red]) <= 1
    alike = features.likeness([red], [red], ["a cat"])
    assert (alike["dino_similarity"], alike["clip_similarity"]) == pytest.approx((1, 1))
    other = features.likeness([red], [blue], ["a dog"])
    assert other["clip_similarity"] < 1
    assert other["clip_text_similarity"] != alike["clip_text_similarity"]


def test_each_way_becomes_a_row_of_the_protocols_format_once(
    settings: Settings, tiny_pipe: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Features of random weights hardly see what two steps do, and at the usual rates pixels do not, either.
    monkeypatch.setattr(Features, "drift", lambda self, drawn, by_base: pixels(drawn, by_base))
    for way in ("coefficients+token", "coefficients"):
        monkeypatch.setitem(WAYS, way, {**WAYS[way], "learning_rate": 0.5})
    monkeypatch.setattr("real_weights_trial.TEST_REPEATS", 1)
    rows = run(settings)
    assert [row["run_info"]["experiment_name"].split("-", 1)[1] for row in rows] == [
        "coefficients+token", "coefficients", "lora"
    ]  # fmt: skip
    folder = settings.folder
    for row in rows:
        train, metrics = row["train_info"], row["train_info"]["metrics"]
        assert row["run_info"]["train_config"]["compile"] is False  # the whole file, also what means nothing here
        assert [one["step"] for one in metrics] == [1, 2, 2]
        assert {"valid dino_similarity", "train loss", "train samples"} <= metrics[0].keys()
        assert -1 <= metrics[-1]["test dino_similarity"] <= 1
        assert -1 <= metrics[-1]["test clip_text_similarity"] <= 1
        assert (metrics[-1]["train samples"], train["status"]) == (4, "success")
        assert train["num_total_params"] == train["num_trainable_params"] + tiny_pipe.unet.num_parameters()
        assert train["train_time"] > 0
        assert row["meta_info"]["package_info"]["torch-version"] == torch.__version__
    ours, alone, lora = (row["train_info"] for row in rows)
    for row in (ours, alone):
        assert row["metrics"][-1]["drift as shipped"] == 0 < row["metrics"][-1]["drift"]
    assert lora["metrics"][-1]["drift"] == lora["metrics"][-1]["drift as shipped"] > 0
    assert len({one["metrics"][-1]["test dino_similarity"] for one in (ours, alone, lora)}) == 3
    assert alone["num_trainable_params"] < ours["num_trainable_params"]
    assert rows[2]["run_info"]["peft_config"]["r"] == 2
    subject = Coefficients.load(folder / "files" / "coefficients+token" / "coefficients.safetensors")
    assert (subject.info.trigger, subject.info.train_steps, len(subject.tokens)) == ("sks cat", 2, 1)
    assert ours["file_size"] == len(subject.to_bytes())
    tiny_pipe.load_lora_weights(folder / "files" / "lora")  # by stock diffusers
    assert len(list((folder / "samples").glob("*.png"))) == 3

    # What is there is not made again; a result of other settings is not taken for one of these.
    files = {file: file.stat().st_mtime_ns for file in (folder / "results").glob("*.json")}
    assert table(run(settings)) == table(json.loads(json.dumps(rows)))
    assert {file: file.stat().st_mtime_ns for file in files} == files
    with pytest.raises(BenchmarkError, match="is a result of other settings: max_steps is 2 there and 3 now"):
        run(replace(settings, max_train_steps=3))


def test_a_base_of_the_xl_layout_is_compared_in_half_precision(
    settings: Settings, tiny_xl_pipe: StableDiffusionXLPipeline, tmp_path: Path
) -> None:
    tiny_xl_pipe.save_pretrained(tmp_path / "xl")
    file = Path(settings.protocol)
    file.write_text(json.dumps({**json.loads(file.read_text()), "dtype": "bfloat16"}))
    asked = replace(settings, base=str(tmp_path / "xl"), max_train_steps=1, way=["coefficients+token", "lora"])
    ours, lora = run(asked)
    subject = Coefficients.load(asked.folder / "files" / "coefficients+token" / "coefficients.safetensors")
    assert subject.tokens.keys() == {"text_encoder", "text_encoder_2"}
    tiny_xl_pipe.load_lora_weights(asked.folder / "files" / "lora")
    learned = load_file(asked.folder / "files" / "lora" / "pytorch_lora_weights.safetensors")
    assert {weight.dtype for weight in learned.values()} == {torch.float32}  # the base is rounded, what learns is not
    assert ours["train_info"]["num_trainable_params"] != lora["train_info"]["num_trainable_params"]


def test_the_pictures_are_divided_as_the_protocol_does_it(settings: Settings, tmp_path: Path) -> None:
    protocol = Protocol.read(settings.protocol, {"dataset_id": settings.dataset})
    split = read_pictures(protocol)
    places = [
        [one.prompt.removeprefix("a sks cat ") for one in part] for part in (split.train, split.valid, split.test)
    ]
    assert places == [["inside", "here"], ["there"], ["outside", "on grass"]]  # numpy's shuffle of seed 0: 2 0 1 3 4
    split.write_training(tmp_path / "training", 16)
    first = tmp_path / "training" / "00.png"
    with Image.open(first) as picture:
        assert picture.size == (16, 16)  # squeezed, not cropped
    assert first.with_suffix(".txt").read_text() == "a sks cat inside"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"protocol": ""}, "--protocol is default_training_params.json of method_comparison/image-gen"),
        ({"protocol": "nowhere.json"}, "nowhere.json"),
        ({"way": ["dora"]}, "there is no way 'dora'; there is coefficients"),
        (
            {"dataset": "nobody/no-set"},
            "nobody/no-set is no folder here, and reading it from the Hub needs: pip install",
        ),
        ({"dino_model": "/nowhere/at/all"}, "--dino_model /nowhere/at/all cannot be loaded"),
        ({"clip_model": "{dino_model}"}, "is a Dinov2Model, expected a CLIPModel"),
    ],
)
def test_what_is_missing_is_said_in_one_line(settings: Settings, change: dict[str, Any], said: str) -> None:
    change = {name: str(settings.dino_model) if value == "{dino_model}" else value for name, value in change.items()}
    with pytest.raises(BenchmarkError, match=said) as raised:
        run(replace(settings, **change))
    assert "\n" not in str(raised.value)


def test_a_protocol_that_does_not_fit_is_said(settings: Settings, tmp_path: Path) -> None:
    file = Path(settings.protocol)
    good = json.loads(file.read_text())
    for change, said in (
        ({"max_steps": "many"}, "max_steps is 'many', expected int"),
        ({"instance_prompts": ["one"] * 3}, "none is left to train on"),
        ({"instance_prompts": ["one"] * 4}, "holds 5 pictures, and the protocol has captions of 4"),
        ({"dtype": "float8"}, "dtype is 'float8'"),
    ):
        file.write_text(json.dumps({**good, **change}))
        with pytest.raises(BenchmarkError, match=said):
            run(settings)
    file.write_text(json.dumps({name: value for name, value in good.items() if name != "seed"}))
    with pytest.raises(BenchmarkError, match="seed is missing"):
        run(settings)
