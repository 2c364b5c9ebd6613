"""Class pictures are drawn once, completed when some are missing, and never half written."""

import shutil
from pathlib import Path

import pytest
from diffusers import StableDiffusionPipeline
from PIL import Image

from coeff_diffusion.images.files import read_parameters
from coeff_diffusion.images.photo import DatasetError, read_image
from coeff_diffusion.inference.request import DrawCancelled
from coeff_diffusion.inference.studio import Studio
from coeff_diffusion.training.class_images import class_images


@pytest.fixture
def studio(tiny_pipe: StableDiffusionPipeline) -> Studio:
    return Studio(tiny_pipe)


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


def test_missing_pictures_are_drawn_and_reused(
    studio: Studio, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "deep" / "class"
    found = class_images(studio, folder, "a dog", 3, resolution=16, batch_size=2, seed=4)
    assert names(found) == ["class_00000.png", "class_00001.png", "class_00002.png"]
    assert "class pictures: 100%" in capsys.readouterr().err
    assert all(read_image(path).size == (16, 16) for path in found)
    assert [read_parameters(path).seed for path in found] == [4, 5, 6]
    monkeypatch.setattr(studio, "draw", None)  # nothing is left to draw
    assert class_images(studio, folder, "a dog", 3, resolution=16) == found
    assert names(class_images(studio, folder, "a dog", 2, resolution=16)) == names(found[:2])
    assert capsys.readouterr().err == ""


def test_an_incomplete_set_becomes_the_same_set(studio: Studio, tmp_path: Path) -> None:
    whole = class_images(studio, tmp_path / "whole", "a dog", 4, resolution=16, batch_size=1, show_progress=False)
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    for number in (1, 3):
        (tmp_path / "part" / whole[number].name).unlink()
    (tmp_path / "part" / ".class_00001.png.ab12.tmp").write_bytes(b"half a picture")  # what a kill leaves
    again = class_images(studio, tmp_path / "part", "a dog", 4, resolution=16, batch_size=1, show_progress=False)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in whole]


def test_pictures_that_were_drawn_of_another_class_are_named(studio: Studio, tmp_path: Path) -> None:
    """A folder that is used again for another class would teach that a dog looks like a cat."""
    said: list[str] = []
    class_images(studio, tmp_path, "a cat", 2, resolution=16, show_progress=False, say=said.append)
    Image.new("RGB", (30, 20)).save(tmp_path / "class_00002.png", "JPEG")  # of others, who also call theirs so
    class_images(studio, tmp_path, "a cat", 3, resolution=16, show_progress=False, say=said.append)
    assert said == []
    class_images(studio, tmp_path, "a dog", 3, resolution=16, show_progress=False, say=said.append)
    assert said == [
        f"warning: class pictures in {tmp_path}: 2 files (class_00000.png, class_00001.png) drawn from 'a cat', and "
        "taken for 'a dog' now; of another class, they belong into another --class_data_dir"
    ]


def test_pictures_of_others_count(studio: Studio, tmp_path: Path) -> None:
    for number in range(2):
        Image.new("RGB", (30, 20)).save(tmp_path / f"photo{number}.jpg")
    found = class_images(studio, tmp_path, "a dog", 3, resolution=16, show_progress=False)
    assert names(found) == ["class_00000.png", "photo0.jpg", "photo1.jpg"]


@pytest.mark.parametrize("kind", ["system", "temporary", "texts", "folders", "unread"])
def test_a_folder_without_pictures_is_as_good_as_empty(studio: Studio, tmp_path: Path, kind: str) -> None:
    """What systems, killed runs and people leave in a folder are no pictures, and no reason to give up."""
    left: dict[str, bytes] = {
        "system": {".DS_Store": b"\0\0\0\1Bud1", "Thumbs.db": b"x", "desktop.ini": b"x", "._class_00000.png": b"x"},
        "temporary": {".class_00001.png.ab12.tmp": b"half a picture"},
        "texts": {"notes.txt": b"mine", "metadata.jsonl": b'{"file_name": "1.png", "text": "a dog"}'},
        "folders": {"masks/1.png": b"x", "old/1.png": b"x"},
        "unread": {"a.CR2": b"x", "b.mov": b"x"},
    }[kind]
    for name, content in left.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    lines: list[str] = []
    found = class_images(studio, tmp_path, "a dog", 2, resolution=16, show_progress=False, say=lines.append)
    assert names(found) == ["class_00000.png", "class_00001.png"]
    assert all(name.split("/")[-1].split(".png.")[0] in " ".join(lines) or "old/" in " ".join(lines) for name in left)
    assert all(line.startswith(f"class pictures in {tmp_path}: left out") for line in lines)


def test_captions_and_masks_of_class_pictures_are_not_used_and_that_is_said(studio: Studio, tmp_path: Path) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "photo.jpg")
    Image.new("L", (30, 20)).save(tmp_path / "photo-masklabel.png")
    lines: list[str] = []
    found = class_images(studio, tmp_path, "a dog", 1, resolution=16, show_progress=False, say=lines.append)
    assert names(found) == ["photo.jpg"]
    assert "captions and masks are not used" in lines[0]


def test_stopping_keeps_what_is_drawn(studio: Studio, tmp_path: Path) -> None:
    def enough() -> bool:
        return (tmp_path / "class_00001.png").exists()

    with pytest.raises(DrawCancelled):
        class_images(studio, tmp_path, "a dog", 5, resolution=16, batch_size=2, show_progress=False, should_stop=enough)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["class_00000.png", "class_00001.png"]


def test_unusable_folders(studio: Studio, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match="class pictures cannot be kept in"):
        class_images(studio, tmp_path / "file" / "class", "a dog", 1, resolution=16)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DatasetError, match="class pictures cannot be kept in"):
        class_images(studio, tmp_path / "notes.txt", "a dog", 1, resolution=16)
