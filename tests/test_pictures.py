import json
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops

from coeff_diffusion.pictures import (
    Parameters,
    PictureError,
    format_parameters,
    free_path,
    labelled_grid,
    parse_parameters,
    read_parameters,
    save_picture,
)

PARAMETERS = Parameters(
    prompt="a photo of sks dog, on the beach",
    negative_prompt="blurry, dark",
    steps=20,
    sampler="DPM++ 2M Karras",
    guidance_scale=7.5,
    seed=7,
    width=128,
    height=64,
    model="embedded",
    subjects={"my dog": 0.8, "cat": 1.0},
)


def picture(color: str, size: tuple[int, int] = (40, 40)) -> Image.Image:
    return Image.new("RGB", size, color)


def test_text_is_what_other_uis_write() -> None:
    assert format_parameters(PARAMETERS) == (
        "a photo of sks dog, on the beach\n"
        "Negative prompt: blurry, dark\n"
        "Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7.5, Seed: 7, Size: 128x64, Model: embedded, "
        r'Subjects: "{\"my dog\": 0.8, \"cat\": 1.0}"'
    )


def test_reads_what_a1111_wrote() -> None:
    found = parse_parameters(
        "a cat,\n(masterpiece:1.2)\nNegative prompt: blurry\nSteps: 28, Sampler: Euler a, CFG scale: 7, Seed: 12, "
        'Size: 512x768, Model hash: abc, Model: v1-5, Lora hashes: "a: 1, b: 2", Version: v1.10.1'
    )
    assert (found.prompt, found.negative_prompt) == ("a cat,\n(masterpiece:1.2)", "blurry")
    assert (found.steps, found.sampler, found.guidance_scale, found.seed) == (28, "Euler a", 7.0, 12)
    assert (found.width, found.height, found.model) == (512, 768, "v1-5")
    assert found.extra == {"Model hash": "abc", "Lora hashes": "a: 1, b: 2", "Version": "v1.10.1"}


@settings(max_examples=300, deadline=None)
@given(
    prompt=st.text(max_size=60),
    negative=st.one_of(st.text(max_size=40), st.just("x\nNegative prompt: y")),
    name=st.text(max_size=20),
    strength=st.floats(-4, 4),
    guidance=st.floats(0, 100),
)
def test_any_text_survives_the_round_trip(
    prompt: str, negative: str, name: str, strength: float, guidance: float
) -> None:
    written = replace(
        PARAMETERS, prompt=prompt, negative_prompt=negative, subjects={name: strength}, guidance_scale=guidance
    )
    assert parse_parameters(format_parameters(written)) == written


@pytest.mark.parametrize(
    "prompt",
    [
        "Negative prompt: no",
        "a\nSteps: 1, Seed: 2, Size: 3x4",
        " padded ",
        "",
        "two\n\nlines",
        '"quoted"',
        "日本 émoji 🐶",
    ],
)
def test_prompts_that_look_like_syntax(prompt: str, tmp_path: Path) -> None:
    written = replace(PARAMETERS, prompt=prompt)
    save_picture(picture("red"), tmp_path / "a.png", format_parameters(written))
    assert read_parameters(tmp_path / "a.png") == written


@pytest.mark.parametrize("bad", ["Size: 3", "Steps: many", 'Subjects: "[1]"', 'Subjects: "{"'])
def test_values_that_are_not_ours_are_refused(bad: str) -> None:
    with pytest.raises(PictureError, match="cannot be read"):
        parse_parameters(f"a dog\nSeed: 1, Model: x, {bad}")


def test_saved_picture_is_the_picture(tmp_path: Path) -> None:
    path = save_picture(picture("red"), tmp_path / "new" / "a.png", "text")
    with Image.open(path) as found:
        assert found.text == {"parameters": "text"}
        assert ImageChops.difference(found.convert("RGB"), picture("red")).getbbox() is None
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]  # nothing temporary left behind


def test_pictures_without_parameters_and_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match="carries no drawing parameters"):
        read_parameters(save_picture(picture("red"), tmp_path / "a.png"))
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(PictureError, match="not a readable picture"):
        read_parameters(tmp_path / "b.png")
    with pytest.raises(PictureError, match="not a readable picture"):
        read_parameters(tmp_path / "missing.png")


def test_text_bomb_is_refused(tmp_path: Path) -> None:
    data = save_picture(picture("red"), tmp_path / "a.png").read_bytes()
    chunk = b"zTXt" + b"parameters\0\0" + zlib.compress(b"a" * 100_000_000)
    bomb = len(chunk[4:]).to_bytes(4) + chunk + zlib.crc32(chunk).to_bytes(4)
    (tmp_path / "bomb.png").write_bytes(data[:33] + bomb + data[33:])
    with pytest.raises(PictureError, match="not a readable picture"):
        read_parameters(tmp_path / "bomb.png")


def test_names_count_up_and_are_never_taken_twice(tmp_path: Path) -> None:
    names = [free_path(tmp_path / "out", "7").name for _ in range(3)]
    assert names == ["00001-7.png", "00002-7.png", "00003-7.png"]
    (tmp_path / "out" / "00041-other.png").touch()
    assert free_path(tmp_path / "out", "7").name == "00042-7.png"


def test_grid_shows_every_picture_in_its_place() -> None:
    colors = [["red", "lime"], ["blue", "yellow"]]
    grid = labelled_grid([[picture(c) for c in row] for row in colors], ["first row", "second"], ["base", "subject"])
    boxes = [[_box(grid, c) for c in row] for row in colors]
    for row in boxes:
        assert all(box[2] - box[0] == 40 and box[3] - box[1] == 40 for box in row)
        assert row[0][1] == row[1][1]
        assert row[0][2] < row[1][0]
    assert boxes[0][0][3] < boxes[1][0][1]
    labels = grid.crop((0, 0, boxes[0][0][0], grid.height)).convert("L")
    assert labels.getextrema()[0] < 80  # row labels stand left of the pictures
    assert grid.crop((0, 0, grid.width, boxes[0][0][1])).convert("L").getextrema()[0] < 80


def test_grid_of_uneven_rows_and_long_labels() -> None:
    words = "a very long prompt that has to be wrapped and a wordwithoutanyblankatallthatdoesnotfit"
    grid = labelled_grid([[picture("red"), picture("lime")], [picture("blue")]], [words, words])
    assert _box(grid, "blue")[0] == _box(grid, "red")[0]


def test_grids_that_cannot_be() -> None:
    with pytest.raises(PictureError, match="at least one picture"):
        labelled_grid([[]])
    with pytest.raises(PictureError, match="1 rows and 1 columns got 2 row"):
        labelled_grid([[picture("red")]], ["a", "b"])
    with pytest.raises(PictureError, match="too large"):
        labelled_grid([[picture("red", (9000, 9000))]])


def _box(grid: Image.Image, color: str) -> tuple[int, int, int, int]:
    solid = Image.new("RGB", grid.size, color)
    difference = ImageChops.difference(grid, solid).convert("L").point(lambda value: 255 * (value == 0))
    box = difference.getbbox()
    assert box is not None, json.dumps(color)
    return box
