"""The part of a picture that is used."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from coeff_diffusion.cli import main
from coeff_diffusion.images.photo import DatasetError
from coeff_diffusion.training.config import ConfigError, TrainConfig
from coeff_diffusion.training.crop_boxes import with_boxes
from coeff_diffusion.training.picture_folder import TrainingPicture, find_pictures
from coeff_diffusion.training.trainer import train
from coeff_diffusion.training.views import PictureViews

BOX = [0.5, 0.25, 1, 0.75]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A picture of 64 x 32 pixels and its mask, each of four parts."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, mode, values in (("1.png", "RGB", (0, 80, 160, 240)), ("1-masklabel.png", "L", (0, 0, 255, 0))):
        image = Image.new(mode, (64, 32))
        for part, value in enumerate(values):
            image.paste((value,) * len(mode) if mode == "RGB" else value, (16 * part, 0, 16 * part + 16, 32))
        image.save(folder / name)
    return folder


def test_what_is_seen_is_what_the_picture_cut_by_hand_gives(folder: Path, tmp_path: Path) -> None:
    with Image.open(folder / "1.png") as image, Image.open(folder / "1-masklabel.png") as mask:
        image.crop((32, 8, 64, 24)).save(tmp_path / "cut.png")
        mask.crop((32, 8, 64, 24)).save(tmp_path / "mask.png")
    by_hand = [TrainingPicture(tmp_path / "cut.png", mask=tmp_path / "mask.png")]
    boxed = with_boxes(find_pictures(folder), {"1.png": BOX}).pictures
    for sizes in ([], [(16, 16), (16, 8)]):  # a square, or buckets: of the part, not of the picture
        seen, expected = (PictureViews(some, 16, False, False, 4, 0, sizes=sizes)[0] for some in (boxed, by_hand))
        assert torch.equal(seen.pixels, expected.pixels)
        assert seen.weights is not None
        assert expected.weights is not None
        assert torch.equal(seen.weights, expected.weights)
        assert seen.framings == expected.framings
    assert seen.pixels.shape[-2:] == (8, 16)


def test_a_box_is_of_a_picture_that_is_there(folder: Path) -> None:
    with pytest.raises(DatasetError, match=r"--crop_boxes: the picture '2.png' is meant, but there is 1.png"):
        with_boxes(find_pictures(folder), {"2.png": BOX})


def test_boxes_that_hold_nothing() -> None:
    boxes = {"a": [0, 0, 1], "b": [0.5, 0, 0.5, 1], "c": [0, 0, 1, 2], "d": [float("nan"), 0, 1, 1]}
    with pytest.raises(ConfigError) as refused:
        TrainConfig(instance_data_dir="x", class_word="dog", crop_boxes=boxes).resolve()
    assert [problem.partition(",")[0] for problem in refused.value.problems] == [
        "--crop_boxes: that of 'a' has 3 numbers",
        "--crop_boxes: that of 'b' is [0.5",
        "--crop_boxes: that of 'c' is [0",
        "--crop_boxes: that of 'd' is [nan",
    ]


def test_a_run_keeps_its_boxes(folder: Path, tiny_base_dir: Path, tmp_path: Path) -> None:
    flags = ["--base", str(tiny_base_dir), "--instance_data_dir", str(folder), "--class_word", "dog"]
    flags += ["--max_train_steps", "1", "--train_batch_size", "1", "--validation_steps", "0", "--output_dir"]
    box = ["--crop_boxes", '{"1.png": [0.5, 0.25, 1, 0.75]}']
    assert main(["train", *flags, str(tmp_path / "out"), *box, "--checkpointing_steps", "1"]) == 0
    kept = TrainConfig.from_yaml(tmp_path / "out" / "config.yaml")
    assert kept.crop_boxes == {"1.png": BOX}
    again = replace(kept, max_train_steps=2, resume_from_checkpoint="latest")
    assert len(train(again).losses) == 2
    with pytest.raises(Exception, match="crop_boxes"):
        train(replace(again, crop_boxes=None, max_train_steps=3))
    assert np.isfinite(train(replace(again, max_train_steps=3)).losses).all()
