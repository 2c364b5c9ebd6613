"""Colours become what they were meant to be: sRGB, whatever space their file is in."""

from pathlib import Path

import numpy as np
import pytest
from icc_profiles import ADOBE_RGB, DISPLAY_P3, cmyk_profile, grey_profile, rgb_profile
from PIL import Image, ImageCms

from coeff_diffusion.images.photo import read_photo

SRGB_XYZ = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
SPACES = {"Display P3": (DISPLAY_P3, 2.2), "Adobe RGB": (ADOBE_RGB, 2.19921875)}
COLOURS = [(230, 40, 30), (128, 128, 128), (30, 90, 200), (250, 240, 10), (255, 255, 255), (0, 0, 0)]


def encoded(srgb: tuple[int, int, int], space: str) -> tuple[int, int, int]:
    """A colour of sRGB in the numbers of another space, by the arithmetic of the definition."""
    primaries, gamma = SPACES[space]
    share = np.array(srgb) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    there = np.linalg.solve(np.array(primaries).T, SRGB_XYZ @ linear)
    red, green, blue = (255 * np.clip(there, 0, 1) ** (1 / gamma)).round().astype(int).tolist()
    return red, green, blue


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
@pytest.mark.parametrize("space", list(SPACES))
def test_a_profile_is_applied(tmp_path: Path, space: str, mode: str) -> None:
    for number, colour in enumerate(COLOURS):
        image = Image.new("RGB", (8, 8), encoded(colour, space))
        image = image.quantize(4) if mode == "P" else image.convert(mode)
        image.save(tmp_path / f"{number}.png", icc_profile=rgb_profile(*SPACES[space]))
        found = read_photo(tmp_path / f"{number}.png")
        assert found.image.getpixel((3, 3)) == pytest.approx(colour, abs=3)
        assert (found.alpha, found.notes, found.image.info) == (None, (), {})


def test_without_the_profile_the_same_numbers_are_another_colour(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), encoded((230, 40, 30), "Display P3")).save(tmp_path / "a.png")
    assert read_photo(tmp_path / "a.png").image.getpixel((0, 0)) == pytest.approx((213, 60, 47), abs=8)


def test_srgb_stays_as_it_is(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(pixels).save(tmp_path / "a.png", icc_profile=profile)
    assert np.array_equal(np.asarray(read_photo(tmp_path / "a.png").image), pixels)


@pytest.mark.parametrize("mode", ["L", "LA", "1", "I;16"])
def test_grey(tmp_path: Path, mode: str) -> None:
    """At gamma 1 the middle of the numbers is half the light, which is 188 in sRGB."""
    if mode == "I;16":
        image = Image.fromarray(np.full((8, 8), 128 * 257, dtype=np.uint16))
    else:
        image = Image.new("L", (8, 8), 255 if mode == "1" else 128).convert(mode)
    image.save(tmp_path / "a.png", icc_profile=grey_profile(1.0))
    expected = 255 if mode == "1" else 188
    assert read_photo(tmp_path / "a.png").image.getpixel((3, 3)) == pytest.approx((expected,) * 3, abs=1)


def test_grey_with_a_profile_of_colours(tmp_path: Path) -> None:
    Image.new("L", (8, 8), 128).save(tmp_path / "a.jpg", icc_profile=rgb_profile(ADOBE_RGB, 1.0))
    found = read_photo(tmp_path / "a.jpg")
    assert found.image.getpixel((3, 3)) == pytest.approx((188, 188, 188), abs=2)
    assert found.notes == ()


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk(tmp_path: Path, suffix: str) -> None:
    for inks, expected in (((0, 0, 0, 0), 255), ((255, 0, 0, 0), 0), ((0, 0, 0, 255), 0)):
        Image.new("CMYK", (16, 16), inks).save(tmp_path / f"a.{suffix}", icc_profile=cmyk_profile())
        found = read_photo(tmp_path / f"a.{suffix}")
        red, green, blue = found.image.getpixel((8, 8))  # type: ignore[misc]
        assert found.notes == ()
        assert max(abs(red - green), abs(red - blue)) <= 4  # its inks are grey
        assert red == pytest.approx(expected, abs=60)


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk_without_a_profile(tmp_path: Path, suffix: str) -> None:
    for inks, expected in (
        ((0, 255, 255, 0), (255, 0, 0)),
        ((0, 0, 0, 128), (127,) * 3),
        ((255, 0, 0, 0), (0, 255, 255)),
    ):
        Image.new("CMYK", (16, 16), inks).save(tmp_path / f"a.{suffix}")
        assert read_photo(tmp_path / f"a.{suffix}").image.getpixel((8, 8)) == pytest.approx(expected, abs=3)


def test_lab(tmp_path: Path) -> None:
    Image.new("LAB", (8, 8), (137, 128, 128)).save(tmp_path / "a.tif")  # L* = 54 is the middle grey of sRGB
    assert read_photo(tmp_path / "a.tif").image.getpixel((3, 3)) == pytest.approx((128, 128, 128), abs=2)


@pytest.mark.parametrize("kind", ["garbage", "cut", "empty", "of other colours", "a text"])
def test_a_profile_that_cannot_be_used_is_ignored_and_said(tmp_path: Path, kind: str) -> None:
    whole = rgb_profile(DISPLAY_P3, 2.2)
    profile = {
        "garbage": b"\x80garbage" * 40, "cut": whole[: len(whole) // 2], "empty": b"\0",
        "of other colours": cmyk_profile(), "a text": b"sRGB IEC61966-2.1",
    }[kind]  # fmt: skip
    Image.new("RGB", (8, 8), (230, 40, 30)).save(tmp_path / "a.png", icc_profile=profile)
    found = read_photo(tmp_path / "a.png")
    assert found.image.getpixel((3, 3)) == (230, 40, 30)
    assert len(found.notes) == 1
    assert found.notes[0].startswith("its colour profile cannot be used (")


def test_a_damaged_profile_breaks_no_picture(tmp_path: Path) -> None:
    """Whatever byte of it is another, there is a picture."""
    random = np.random.default_rng(0)
    for whole in (rgb_profile(DISPLAY_P3, 2.2), cmyk_profile()):
        for _ in range(60):
            broken = bytearray(whole)
            for place in random.integers(0, min(len(whole), 400), 4):
                broken[place] = random.integers(0, 256)
            mode, colour = ("CMYK", (0, 0, 0, 0)) if whole[16:20] == b"CMYK" else ("RGB", (9, 9, 9))
            Image.new(mode, (4, 4), colour).save(tmp_path / "a.tif", icc_profile=bytes(broken))
            assert read_photo(tmp_path / "a.tif").image.mode == "RGB"
