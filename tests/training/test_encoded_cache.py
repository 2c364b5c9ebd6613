"""Encoded pictures and prompts are kept for later runs, and used only where they are what would be made now."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image, ImageOps
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from coeff_diffusion.subject.errors import UserError
from coeff_diffusion.training import encoded_cache
from coeff_diffusion.training.config import TrainConfig
from coeff_diffusion.training.trainer import Trainer, train

SETTINGS = {"layers": "all", "max_train_steps": 2, "validation_steps": 0, "cached_views": 2, "timeline_steps": 0}


@pytest.fixture
def config(subject_images: Path, tmp_path: Path) -> TrainConfig:
    """Constant prompts and live ones, pictures of two sizes, one of them in part transparent."""
    Image.new("RGBA", (40, 20), (9, 200, 90, 0)).save(subject_images / "5.png")
    with Image.open(subject_images / "5.png") as image:
        image.paste((200, 30, 30, 255), (0, 0, 20, 20))
        image.save(subject_images / "5.png")
    (subject_images / "classes").mkdir()
    return TrainConfig(
        instance_data_dir=str(subject_images), class_word="dog", cache_latents_dir=str(tmp_path / "kept"),
        enable_bucket=True, random_flip=True, **SETTINGS,
    )  # fmt: skip


@pytest.fixture
def prepared(config: TrainConfig, tiny_xl_pipe: StableDiffusionXLPipeline, tmp_path: Path) -> Callable[..., Any]:
    """Reads and encodes; gives what training would be on, what was said, and how many files there are."""

    def prepare(**changes: Any) -> tuple[Trainer, str, int]:
        said: list[str] = []
        asked = replace(config, **{"output_dir": str(tmp_path / "out"), **changes})
        trainer = Trainer(asked, tiny_xl_pipe, say=said.append)
        trainer.setup()
        return trainer, "\n".join(said), len(list((tmp_path / "kept").glob("*")))

    return prepare


def files(folder: Path) -> list[Path]:
    return sorted((folder / "kept").iterdir())


def is_of_pixels(path: Path) -> bool:
    with safe_open(path, "pt") as file:
        return "mean" in file.keys()  # noqa: SIM118 # it is no mapping


def test_a_second_run_encodes_nothing_and_learns_the_same(
    config: TrainConfig, tiny_xl_pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, train="coefficients", validation_split=2)  # every prompt is constant
    said: list[str] = []

    def run(name: str, **changes: Any) -> tuple[list[float], bytes]:
        found = train(replace(config, output_dir=str(tmp_path / name), **changes), tiny_xl_pipe, say=said.append)
        return found.losses, (tmp_path / name / "coefficients.safetensors").read_bytes()

    without = run("without", cache_latents_dir=None)
    assert not any("encoded parts" in line for line in said)
    first = run("first")
    pictures = sum(map(is_of_pixels, files(tmp_path)))
    assert pictures >= 6
    assert f"{tmp_path / 'kept'}: 0 encoded parts were read, {pictures + 1} were encoded and kept" in said

    def refuse(*args: Any) -> Any:
        raise AssertionError("asked to encode")

    monkeypatch.setattr(encoded_cache, "posterior", refuse)
    monkeypatch.setattr(encoded_cache.Learner, "condition", refuse)
    assert run("second") == first == without
    assert f"{tmp_path / 'kept'}: {pictures + 1} encoded parts were read, 0 were encoded and kept" in said


@pytest.mark.parametrize("what", ["picture", "seed", "crop", "mask", "autoencoder", "resolution", "nothing"])
def test_what_changed_is_encoded_anew(
    what: str, prepared: Any, subject_images: Path, tiny_xl_pipe: StableDiffusionXLPipeline
) -> None:
    _, _, before = prepared()
    changes: dict[str, Any] = {
        "seed": {"seed": 1},
        "crop": {"crop_boxes": {"3.jpeg": [0, 0, 0.5, 1]}},
        "resolution": {"resolution": 32},
        "mask": {"use_masks": False},
    }.get(what, {})
    if what == "picture":
        with Image.open(subject_images / "1.jpg") as image:
            mirrored = ImageOps.invert(image)
        mirrored.save(subject_images / "1.jpg")
    if what == "autoencoder":
        with torch.no_grad():
            next(tiny_xl_pipe.vae.parameters()).flatten()[7] += 1e-3
    cached, _, after = prepared(**changes)
    plain, _, _ = prepared(cache_latents_dir=None, **changes)
    # A mask weighs places and leaves pixels: what is encoded stays, and what is learned of it changes all the same.
    assert (after > before) == (what not in ("mask", "nothing"))
    for one, other in zip(cached.data.instance.groups, plain.data.instance.groups, strict=True):
        assert torch.equal(one.mean, other.mean)
        assert one.std is not None
        assert torch.equal(one.std, other.std)
        assert (one.weights is None) == (other.weights is None)
        assert one.weights is None or torch.equal(one.weights, other.weights)
        assert (one.starts, one.framings) == (other.starts, other.framings)


def test_only_constant_prompts_are_kept(prepared: Any, tmp_path: Path, subject_images: Path) -> None:
    options = {"with_prior_preservation": True, "class_data_dir": str(tmp_path / "dogs"), "num_class_images": 1}
    (tmp_path / "dogs").mkdir()
    Image.new("RGB", (16, 16), (90, 90, 90)).save(tmp_path / "dogs" / "a.png")
    trainer, _, _ = prepared(**options)
    (text,) = [path for path in files(tmp_path) if not is_of_pixels(path)]  # "a dog"; "a sks dog" is learned
    assert load_file(text)["prompt_embeds"].shape == (1, 77, 80)
    again, _, _ = prepared(**options)
    assert {name: one.tolist() for name, one in trainer.data.prompts.cached[1].items()} == {
        name: one.tolist() for name, one in again.data.prompts.cached[1].items()
    }
    prepared(**options, class_prompt="a big dog")
    assert sum(not is_of_pixels(path) for path in files(tmp_path)) == 2


def rewrite(path: Path, **changes: Any) -> None:
    """A file as this cache writes it, with other tensors, so that only what they are can tell."""
    tensors = {**load_file(path), **changes}
    tensors = {name: one for name, one in tensors.items() if one is not None}
    digest = encoded_cache._digest(tensors)
    save_file(tensors, path, {"format": encoded_cache.FORMAT, "key": path.stem, "digest": digest})


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


SPOILT: dict[str, tuple[Callable[[Path, Path], Any], str]] = {
    "cut off": (lambda one, _: one.write_bytes(one.read_bytes()[:-9]), ""),
    "a flipped bit": (lambda one, _: flipped(one), "its values are not those that were kept"),
    "another's": (lambda one, other: one.write_bytes(other.read_bytes()), "it was kept for another input"),
    "no number": (lambda one, _: rewrite(one, mean=load_file(one)["mean"] * torch.nan), "values that are no numbers"),
    "another shape": (lambda one, _: rewrite(one, mean=torch.zeros(1, 4, 2, 2)), r"mean is \[1, 4, 2, 2\] of"),
    "another type": (lambda one, _: rewrite(one, std=load_file(one)["std"].half()), "of torch.float16, expected"),
    "other names": (lambda one, _: rewrite(one, mean=None), "it holds std, expected mean and std"),
    "a subject": (lambda one, _: save_file({"a": torch.zeros(1)}, one, {"format": "x"}), "its format is 'x'"),
    "a folder": (lambda one, _: (one.unlink(), one.mkdir()), "it is no regular file"),
}


def test_files_that_are_damaged_or_foreign_are_not_used(prepared: Any, tmp_path: Path) -> None:
    """One of each kind, at once."""
    trainer, _, count = prepared(cached_views=8)
    pictures = [path for path in files(tmp_path) if is_of_pixels(path)]
    assert len(pictures) >= 6
    for start in range(0, len(SPOILT) - 1, 5):  # a folder cannot be replaced by a file, see below
        kinds = list(SPOILT.values())[:-1][start : start + 5]
        for path, (spoil, _) in zip(pictures, kinds, strict=False):
            spoil(path, pictures[-1])
        again, said, _ = prepared(cached_views=8)
        for path, (_, why) in zip(pictures, kinds, strict=False):
            (line,) = [line for line in said.splitlines() if line.startswith(f"{path} is not used and made anew: ")]
            assert why in line.replace("[", r"\[").replace("]", r"\]") or why in line
        for one, other in zip(trainer.data.instance.groups, again.data.instance.groups, strict=True):
            assert torch.equal(one.mean, other.mean)
        assert f"{count - len(kinds)} encoded parts were read, {len(kinds)} were encoded" in said
    SPOILT["a folder"][0](pictures[0], pictures[1])
    with pytest.raises(OSError, match=pictures[0].name):
        prepared(cached_views=8)


def test_a_file_in_the_folders_place_is_said(config: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("")
    with pytest.raises(UserError, match="--cache_latents_dir .* is a file, expected a folder"):
        config.resolve()
