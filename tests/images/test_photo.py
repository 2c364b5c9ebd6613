"""Any picture a user may have becomes upright sRGB."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from coeff_diffusion.images.photo import DatasetError, read_image

COLOUR = (200, 100, 50)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "CMYK", "YCbCr", "HSV", "1", "I", "I;16", "F"])
def test_every_mode(tmp_path: Path, mode: str) -> None:
    if mode in ("I", "I;16"):
        image = Image.fromarray(np.full((6, 8), 100 * 257, dtype=np.int32 if mode == "I" else np.uint16))
        assert image.mode == mode
    elif mode == "F":
        image = Image.fromarray(np.full((6, 8), 100 / 255, dtype=np.float32))
    else:
        image = Image.new("RGB", (8, 6), (100, 100, 100)).convert(mode)
    suffix = "tif" if mode in ("F", "I", "CMYK") else "png"
    if mode in ("HSV", "YCbCr"):  # nothing that Pillow writes opens as these
        image, suffix = image.convert("RGB"), "bmp"
    path = tmp_path / f"picture.{suffix}"
    image.save(path)
    found = read_image(path)
    assert (found.mode, found.size) == ("RGB", (8, 6))
    expected = {"1": {0, 255}}.get(mode, set(range(97, 104)))  # dithered; rounded by the way there
    assert set(np.asarray(found).ravel().tolist()) <= expected


def test_sixteen_bit_is_scaled_not_cut_off(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 257 * 40], [257 * 128, 65535]], dtype=np.uint16)).save(tmp_path / "deep.png")
    assert np.asarray(read_image(tmp_path / "deep.png"))[..., 0].tolist() == [[0, 40], [128, 255]]


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P", "P-key", "RGB-key", "L-key"])
def test_transparency_becomes_white(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "clear.png"
    if kind == "RGB-key":
        Image.new("RGB", (4, 4), COLOUR).save(path, transparency=COLOUR)
    elif kind == "L-key":
        Image.new("L", (4, 4), 90).save(path, transparency=90)
    elif kind == "P-key":
        Image.new("RGB", (4, 4), COLOUR).quantize(4).save(path, transparency=0)
    else:
        Image.new("RGBA", (4, 4), (*COLOUR, 0)).convert(kind).save(path)
    assert set(np.asarray(read_image(path)).ravel().tolist()) == {255}


def test_half_transparency_is_mixed_with_white(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (0, 0, 0, 51)).save(tmp_path / "veil.png")
    assert read_image(tmp_path / "veil.png").getpixel((0, 0)) == (204, 204, 204)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(tmp_path: Path, orientation: int) -> None:
    """Whatever way the camera was held, the picture is upright."""
    upright = Image.new("RGB", (12, 8), "white")
    upright.paste("black", (0, 0, 6, 4))
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    stored = upright.transpose(turn[orientation]) if orientation in turn else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "photo.png", exif=exif)
    assert np.array_equal(np.asarray(read_image(tmp_path / "photo.png")), np.asarray(upright))


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "move.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "move.gif").getpixel((0, 0)) == (255, 0, 0)


def test_unreadable(tmp_path: Path, subject_images: Path) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "empty.jpg").touch()
    for whole, cut in (("1.jpg", "cut.jpg"), ("2.png", "cut.png")):
        data = (subject_images / whole).read_bytes()
        (tmp_path / cut).write_bytes(data[: len(data) * 2 // 3])
    for name in ("text.png", "empty.jpg", "cut.jpg", "cut.png", "gone.png"):
        with pytest.raises(DatasetError, match=rf"{name} is not a readable picture .*; replace it or take it out"):
            read_image(tmp_path / name)


@pytest.mark.parametrize("side", [10_001, 15_000, 60_000])
def test_decompression_bomb(tmp_path: Path, side: int) -> None:
    """A file of a few bytes that claims to be huge is refused before a pixel is unpacked."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(bomb)
    with pytest.raises(DatasetError, match=r"bomb\.png has .* pixels, expected at most 100 million"):
        read_image(tmp_path / "bomb.png")


@given(st.binary(max_size=300))
def test_any_bytes_are_a_picture_or_an_error_that_says_so(data: bytes) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), COLOUR).save(buffer, format="PNG")
    for content in (data, buffer.getvalue()[: len(data) % 70] + data):
        path = Path("/dev/shm" if Path("/dev/shm").is_dir() else ".") / "coeff-test-any.png"
        path.write_bytes(content)
        try:
            assert read_image(path).mode == "RGB"
        except DatasetError as error:
            assert str(path) in str(error)  # noqa: PT017 - both outcomes are right
        finally:
            path.unlink()
