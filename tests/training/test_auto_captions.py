"""Captions that a model writes."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from coeff_diffusion.images.photo import DatasetError
from coeff_diffusion.training.auto_captions import Captioner, write_captions
from coeff_diffusion.training.config import TrainConfig
from coeff_diffusion.training.picture_folder import TrainingPicture, find_pictures
from coeff_diffusion.training.trainer import train

CPU = torch.device("cpu")


def test_only_pictures_without_words_get_some(tiny_blip_dir: Path, subject_images: Path) -> None:
    (subject_images / "0.txt").write_text("a dog that somebody saw")
    (subject_images / "1.jpg").rename(subject_images / "2.jpg")  # beside 2.png
    said: list[str] = []
    assert write_captions(find_pictures(subject_images).pictures, str(tiny_blip_dir), CPU, said.append) == 4
    assert (subject_images / "0.txt").read_text() == "a dog that somebody saw"
    captioner = Captioner(str(tiny_blip_dir), CPU)
    found = find_pictures(subject_images).pictures
    assert sorted(path.name for path in subject_images.glob("*.txt")) == [
        "0.txt", "2.jpg.txt", "2.png.txt", "3.jpeg.txt", "4.png.txt",
    ]  # fmt: skip
    for picture in found[1:]:
        words = picture.words()
        assert words is not None
        assert words.text == captioner.caption(picture) != ""
        assert f"wrote {picture.path.name}.txt: {words.text}" in said
    assert write_captions(found, "/no/such/model", CPU, said.append) == 0  # nothing is left to do


def test_the_part_that_is_used_is_looked_at(tiny_blip_dir: Path, tmp_path: Path) -> None:
    captioner, image = Captioner(str(tiny_blip_dir), CPU), Image.effect_noise((64, 64), 90).convert("RGB")
    image.paste((0, 0, 0), (0, 0, 32, 64))
    image.save(tmp_path / "a.png")
    image.crop((32, 0, 64, 64)).save(tmp_path / "b.png")
    asked: list[Image.Image] = []
    process = captioner.processor.image_processor.preprocess
    captioner.processor.image_processor.preprocess = lambda images, **k: asked.append(images) or process(images, **k)
    for picture in (TrainingPicture(tmp_path / "a.png", box=[0.5, 0, 1, 1]), TrainingPicture(tmp_path / "b.png")):
        captioner.caption(picture)
    assert asked[0].tobytes() == asked[1].tobytes()


def test_what_is_no_captioning_model(tiny_blip_dir: Path, tiny_base_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="--caption_model: there is no folder '/no/such'; expected that of"):
        Captioner("/no/such", CPU)
    with pytest.raises(DatasetError, match="is a model of the kind 'clip_text_model'; expected blip or florence2"):
        Captioner(str(tiny_base_dir / "text_encoder"), CPU)
    shutil.copytree(tiny_blip_dir, tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(DatasetError, match="cannot be loaded: Error while deserializing"):
        Captioner(str(tmp_path / "broken"), CPU)


def test_training_learns_with_what_was_written(
    tiny_blip_dir: Path, tiny_pipe, subject_images: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    settings = {"max_train_steps": 1, "train_batch_size": 1, "validation_steps": 0, "cached_views": 1}
    config = TrainConfig(
        instance_data_dir=str(subject_images), class_word="dog", output_dir=str(tmp_path / "out"),
        caption_model=str(tiny_blip_dir), **settings,
    )  # fmt: skip
    train(config, tiny_pipe, say=said.append)
    assert len(list(subject_images.glob("*.txt"))) == 5
    assert "found 5 pictures, 5 captions" in said
