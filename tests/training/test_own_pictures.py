"""What a base without figures knows, measured on what it draws."""

from pathlib import Path

import pytest
import torch

from coeff_diffusion.inference.request import DrawCancelled
from coeff_diffusion.inference.studio import Studio
from coeff_diffusion.subject.safetensors_file import FILE_NAME
from coeff_diffusion.training import own_pictures
from coeff_diffusion.training.config import TrainConfig
from coeff_diffusion.training.known_pictures import KnownPictures, unknown_pictures
from coeff_diffusion.training.own_pictures import LEVELS, figures, measure_own
from coeff_diffusion.training.trainer import train


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Settings of the user's own; and few drawings of few steps."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(own_pictures, "THINGS", ("dog", "cat"))
    monkeypatch.setattr(own_pictures, "STEPS", 2)
    return tmp_path / "home"


def test_a_base_is_measured_once_and_known_by_its_weights(tiny_pipe, home: Path) -> None:
    said: list[str] = []
    assert figures(tiny_pipe) is None
    known = measure_own(Studio(tiny_pipe), said.append)
    assert known is not None
    assert (known.kind, known.levels, min(known.losses) > 0) == ("", LEVELS, True)
    assert said == [
        "drawing 2 pictures with the base, to see later whether it knows such as yours; once for each base "
        "(--measure_base never leaves it)"
    ]
    assert figures(tiny_pipe) == known
    assert len(list(home.rglob("*.json"))) == 1
    with torch.no_grad():
        tiny_pipe.unet.conv_in.weight.mul_(1.1)  # a fine-tune
    assert figures(tiny_pipe) is None


def test_damaged_figures_are_measured_anew(tiny_pipe, home: Path) -> None:
    known = measure_own(Studio(tiny_pipe), lambda line: None)
    (path,) = home.rglob("*.json")
    path.write_text('{"kind": ')
    assert figures(tiny_pipe) is None
    assert measure_own(Studio(tiny_pipe), lambda line: None) == figures(tiny_pipe) == known


def test_training_goes_on_where_nothing_can_be_kept(tiny_pipe, home: Path, subject_images, tmp_path: Path) -> None:
    home.write_text("a file where the folder of settings would be")
    said: list[str] = []
    config = TrainConfig(
        instance_data_dir=str(subject_images), class_word="dog", output_dir=str(tmp_path / "out"), max_train_steps=1,
        train_batch_size=1, validation_steps=0, measure_base="always",
    )  # fmt: skip
    assert (train(config, tiny_pipe, say=said.append).path / FILE_NAME).is_file()
    assert [line for line in said if line.startswith("what the base knows was not measured")]


def test_nothing_is_kept_of_a_measurement_that_was_ended(tiny_pipe, home: Path) -> None:
    with pytest.raises(DrawCancelled):
        measure_own(Studio(tiny_pipe), print, lambda: True)
    assert not home.exists()


def test_what_a_base_draws_is_no_photo_or_drawing_by_name(tiny_pipe) -> None:
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    near, far = (KnownPictures("", LEVELS, (losses,) * 3) for losses in (10.0, 0.01))
    assert unknown_pictures(tiny_pipe, near, latents, "dog") is None
    note = unknown_pictures(tiny_pipe, far, latents, "dog")
    assert note is not None
    assert note.startswith("these are pictures of another kind than the base")
    assert "photos" not in note


def test_training_measures_where_it_is_to_and_learns_the_same(tiny_pipe, subject_images, tmp_path: Path) -> None:
    def learned(to: str, measure_base: str) -> tuple[bytes, list[str]]:
        said: list[str] = []
        config = TrainConfig(
            instance_data_dir=str(subject_images), class_word="dog", output_dir=str(tmp_path / to), max_train_steps=1,
            train_batch_size=1, validation_steps=0, measure_base=measure_base,  # type: ignore[arg-type]
        )  # fmt: skip
        result = train(config, tiny_pipe, say=said.append)
        return (result.path / FILE_NAME).read_bytes(), [line for line in said if line.startswith("drawing ")]

    skipped, measured, again = learned("a", "auto"), learned("b", "always"), learned("c", "always")
    assert [len(said) for _, said in (skipped, measured, again)] == [0, 1, 0]
    assert skipped[0] == measured[0] == again[0]
