"""Captions at the page's button."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from coeff_diffusion.inference.request import StudioError
from coeff_diffusion.service.caption_writer import CaptionWriter
from coeff_diffusion.training.auto_captions import Captioner
from coeff_diffusion.training.picture_folder import TrainingPicture

CPU = torch.device("cpu")


def test_pictures_are_looked_at_and_nothing_is_written(tiny_blip_dir: Path, tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.png" for name in ("a", "b")]
    for path in paths:
        Image.effect_noise((40, 40), 90).convert("RGB").save(path)
    box, by_hand = [0.0, 0.0, 0.5, 1.0], Captioner(str(tiny_blip_dir), CPU)
    found = dict(CaptionWriter(str(tiny_blip_dir), CPU).captions(paths, {paths[1]: box}))
    assert found == {
        paths[0]: by_hand.caption(TrainingPicture(paths[0])),
        paths[1]: by_hand.caption(TrainingPicture(paths[1], box=box)),
    }
    assert sorted(tmp_path.iterdir()) == paths


def test_without_a_model() -> None:
    with pytest.raises(StudioError, match="no captioning model was named where the page was opened"):
        next(CaptionWriter(None, CPU).captions([], {}))
