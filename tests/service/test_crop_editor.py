"""The part of a picture that is used, as people choose it."""

from pathlib import Path

import pytest
from PIL import Image

from coeff_diffusion.inference.request import StudioError
from coeff_diffusion.service.crop_editor import box_between, corner_at, picture_with_box, read_box, write_box


def test_a_click_is_a_place_in_the_picture_however_large_that_is(tmp_path: Path) -> None:
    for size in ((2048, 1024), (64, 32)):
        Image.new("RGB", size, "white").save(tmp_path / "a.png")
        shown = picture_with_box(tmp_path / "a.png", None)
        assert corner_at(tmp_path / "a.png", (shown.width / 4, shown.height)) == pytest.approx((0.25, 1))
        assert corner_at(tmp_path / "a.png", (-3, 10_000)) == (0, 1)


def test_corners_in_any_order() -> None:
    assert box_between((0.9, 0.1), (0.2, 0.8)) == [0.2, 0.1, 0.9, 0.8]
    with pytest.raises(StudioError, match="which holds nothing"):
        box_between((0.5, 0.1), (0.5, 0.8))


def test_what_is_not_used_is_dark(tmp_path: Path) -> None:
    Image.new("RGB", (100, 100), "white").save(tmp_path / "a.png")
    shown = picture_with_box(tmp_path / "a.png", [0.5, 0, 1, 1], (0.75, 0.5))
    assert shown.getpixel((300, 256)) == (255, 255, 255)
    assert max(shown.getpixel((100, 256))) < 128
    assert shown.getpixel((384, 256)) == (0, 0, 0)  # the mark of a corner


@pytest.mark.parametrize("text", ["10, 0, 90, 100", "33.3, 0, 50, 12.5", ""])
def test_numbers_are_written_as_they_are_read(text: str) -> None:
    assert write_box(read_box(text)) == text


@pytest.mark.parametrize("text", ["10, 20", "0, 0, 150, 100", "90, 0, 10, 100", "all of it"])
def test_what_is_no_box(text: str) -> None:
    with pytest.raises(StudioError, match="the part that is used .*; give left, top, right and bottom in percent"):
        read_box(text)
