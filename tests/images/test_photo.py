"""Any picture a user may have becomes upright sRGB."""

import io
import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, TiffImagePlugin

from coeff_diffusion.images.photo import DatasetError, read_image, read_photo
from coeff_diffusion.images.photo_formats import register_readers

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
        path = Path("/dev/shm" if Path("/dev/shm").is_dir() else ".") / f"coeff-test-{os.getpid()}.png"
        path.write_bytes(content)
        try:
            assert read_image(path).mode == "RGB"
        except DatasetError as error:
            assert str(path) in str(error)  # noqa: PT017 - both outcomes are right
        finally:
            path.unlink()


# --- kinds of files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "frames"), [("gif", 2), ("webp", 2), ("png", 2), ("tif", 3)])
def test_of_several_pictures_the_first_is_used_and_that_is_said(tmp_path: Path, kind: str, frames: int) -> None:
    pictures = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")[:frames]]
    pictures[0].save(tmp_path / f"a.{kind}", save_all=True, append_images=pictures[1:])
    found = read_photo(tmp_path / f"a.{kind}")
    assert found.image.getpixel((3, 3)) == pytest.approx((255, 0, 0), abs=2)
    assert found.notes == ("it is an animation or holds several pictures; the first one is used",)
    pictures[0].save(tmp_path / f"one.{kind}")
    assert read_photo(tmp_path / f"one.{kind}").notes == ()


def test_what_phones_put_beside_a_photo_is_no_animation(tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (8, 8), colour) for colour in ("red", "grey")]
    pictures[0].save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=pictures[1:])
    assert read_photo(tmp_path / "a.jpg").notes == ()


def test_transparency_is_kept_beside_the_picture(tmp_path: Path) -> None:
    image = Image.new("RGBA", (4, 4), (200, 100, 50, 255))
    image.save(tmp_path / "opaque.png")
    assert read_photo(tmp_path / "opaque.png").alpha is None
    image.putpixel((1, 2), (0, 0, 0, 51))
    image.save(tmp_path / "veiled.png")
    alpha = read_photo(tmp_path / "veiled.png").alpha
    assert alpha is not None
    assert sorted(set(np.asarray(alpha).ravel().tolist())) == [51, 255]
    assert alpha.getpixel((1, 2)) == 51


def test_a_transparent_value_of_16_bits(tmp_path: Path) -> None:
    values = np.array([[1000, 1001], [40000, 1000]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png", transparency=1000)
    found = read_photo(tmp_path / "deep.png")
    assert found.alpha is not None
    assert np.asarray(found.alpha).tolist() == [[0, 255], [255, 0]]
    assert np.asarray(found.image)[..., 0].tolist() == [[255, 4], [156, 255]]


def test_turned_and_transparent_at_once(tmp_path: Path) -> None:
    image = Image.new("RGBA", (6, 4), (10, 20, 30, 255))
    image.putpixel((0, 0), (0, 0, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    image.save(tmp_path / "a.png", exif=exif)
    found = read_photo(tmp_path / "a.png")
    assert found.image.size == (4, 6)
    assert found.alpha is not None
    assert found.alpha.getpixel((3, 0)) == 0


BOXES = {
    "HEIC": (b"heic", b"mif1"), "AVIF": (b"avif", b"mif1"), "raw": (b"crx ", b"isom"), "video": (b"qt  ", b"mp42"),
}  # fmt: skip


def box(*brands: bytes) -> bytes:
    """The beginning of a file of the family of MP4."""
    content = b"ftyp" + brands[0] + bytes(4) + b"".join(brands)
    return (len(content) + 4).to_bytes(4, "big") + content + bytes(100)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.heic", box(*BOXES["HEIC"]), "pip install 'coeff-diffusion[heif]'"),
        ("a.jpg", box(*BOXES["HEIC"]), "pip install 'coeff-diffusion[heif]'"),
        ("a.avif", box(*BOXES["AVIF"]), "no AVIF decoder"),
        ("a.cr3", box(*BOXES["raw"]), "raw photos are not developed"),
        ("a.jpg", box(*BOXES["raw"]), "raw photos are not developed"),
        ("a.mov", box(*BOXES["video"]), "videos are not read"),
        ("a.png", box(*BOXES["video"]), "videos are not read"),
        ("a.webm", b"\x1a\x45\xdf\xa3" + bytes(50), "videos are not read"),
        ("a.jxl", b"\xff\x0a" + bytes(50), "JPEG XL is not read"),
        ("a.nef", b"II*\0" + bytes(50), "raw photos are not developed"),
    ],
)
def test_photos_that_are_not_read_here_say_what_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, reason: str
) -> None:
    (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(Image, "OPEN", {kind: one for kind, one in Image.OPEN.items() if kind != "HEIF"})
    monkeypatch.setattr("PIL.features.check", lambda feature: feature != "avif")
    with pytest.raises(DatasetError, match=rf"{name} cannot be read: .*{re.escape(reason)}"):
        read_photo(tmp_path / name)


@pytest.mark.parametrize("name", ["a.dng", "a.tif"])
def test_of_a_raw_photo_the_preview_is_not_taken(tmp_path: Path, name: str) -> None:
    """A DNG is a TIFF, which Pillow opens: as the small preview."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[50706] = b"\1\4\0\0"
    tags.tagtype[50706] = 1
    Image.new("RGB", (16, 16)).save(tmp_path / name, format="TIFF", tiffinfo=tags)
    with pytest.raises(DatasetError, match="raw photos are not developed"):
        read_photo(tmp_path / name)


def test_no_other_program_is_started(tmp_path: Path) -> None:
    """Pillow would give PostScript to Ghostscript, whatever its file is called."""
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n")
    with pytest.raises(DatasetError, match="not a readable picture"):
        read_photo(tmp_path / "a.png")


def test_heic(tmp_path: Path) -> None:
    """Photos of phones: upright, in their colours, everywhere, once the extra is installed."""
    pillow_heif = pytest.importorskip("pillow_heif")
    register_readers()
    upright = Image.new("RGB", (64, 96), (30, 90, 200))
    upright.paste((230, 40, 30), (0, 0, 64, 32))
    exif = Image.Exif()
    exif[0x0112] = 6
    pillow_heif.from_pillow(upright.transpose(Image.Transpose.ROTATE_90)).save(
        tmp_path / "IMG_1.HEIC", exif=exif.tobytes(), quality=95
    )
    found = read_photo(tmp_path / "IMG_1.HEIC")
    assert (found.image.size, found.notes) == ((64, 96), ())
    assert found.image.getpixel((32, 10)) == pytest.approx((230, 40, 30), abs=6)
    assert found.image.getpixel((32, 80)) == pytest.approx((30, 90, 200), abs=6)
