"""What the base makes of concepts that it was trained on: pictures of a sprite made here, and the table."""

import io
import json
import sys
import zipfile
from pathlib import Path

import pytest
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import known_concepts  # noqa: E402
from known_concepts import Known, measured, overall, pictures_of  # noqa: E402


@pytest.fixture
def sprites(tmp_path: Path) -> Path:
    """An archive as `fetch.py` makes it, with a still render and two poses of an ant."""
    path, index = tmp_path / "sprites.zip", []
    with zipfile.ZipFile(path, "w") as archive:
        for pose, colour in enumerate(("red", "green", "blue")):
            picture = Image.new("RGBA", (144, 144))
            ImageDraw.Draw(picture).ellipse((20, 20, 124, 124), fill=colour)
            buffer = io.BytesIO()
            picture.save(buffer, "WEBP", lossless=True)
            archive.writestr(f"{pose}.webp", buffer.getvalue())
            entry = {"file": f"{pose}.webp", "name": "ant", "class": "bug", "frame": pose, "held_out": False}
            index.append(entry)
        archive.writestr("index.json", json.dumps(index))
    return path


def test_pictures_show_the_poses_and_not_the_still_render(sprites: Path) -> None:
    shown = [picture.getpixel((64, 64)) for picture in pictures_of("ant", sprites, 4)]
    assert [max(range(3), key=lambda channel: pixel[channel]) for pixel in shown] == [1, 1, 2, 2]


def test_a_concept_is_measured(
    sprites: Path, tiny_pipe: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_concepts, "grounds", lambda: ["on a red background"])
    found = measured(tiny_pipe, "ant", "bug", sprites)
    assert all(0 < value <= 1 for value in vars(found).values())
    assert found.drawn != found.of_class


def test_the_table() -> None:
    found = {"ant": Known(0.4, 0.7, 0.74, 0.8), "whale": Known(0.6, 0.7, 0.8, 0.8)}
    assert found["ant"].row("ant", "bug") == "| ant (bug) | 0.400 | 0.700 | 0.800 | 75% | 85% |"
    assert overall(found) == "| all | | | | 67% | 90% |"
