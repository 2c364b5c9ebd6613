import json

import pytest
from PIL import Image, ImageChops

from coeff_diffusion.images.generation_info import PictureError
from coeff_diffusion.images.grid import labelled_grid


def picture(color: str, size: tuple[int, int] = (40, 40)) -> Image.Image:
    return Image.new("RGB", size, color)


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


def test_the_largest_grid_of_the_largest_family_is_one_picture(recwarn: pytest.WarningsRecorder) -> None:
    cell, words = picture("red", (1024, 1024)), " ".join(["word"] * 24)  # 119 letters, as long as labels get
    grid = labelled_grid([[cell] * 8] * 8, [words] * 8, [words] * 8)
    assert grid.width > 8 * 1024
    Image._decompression_bomb_check(grid.size)  # what Pillow does when it is opened again
    assert not recwarn.list


def test_grids_that_cannot_be() -> None:
    with pytest.raises(PictureError, match="at least one picture"):
        labelled_grid([[]])
    with pytest.raises(PictureError, match="1 rows and 1 columns got 2 row"):
        labelled_grid([[picture("red")]], ["a", "b"])
    with pytest.raises(PictureError, match="too large"):
        labelled_grid([[picture("red", (10_000, 9000))]])


def _box(grid: Image.Image, color: str) -> tuple[int, int, int, int]:
    solid = Image.new("RGB", grid.size, color)
    difference = ImageChops.difference(grid, solid).convert("L").point(lambda value: 255 * (value == 0))
    box = difference.getbbox()
    assert box is not None, json.dumps(color)
    return box
