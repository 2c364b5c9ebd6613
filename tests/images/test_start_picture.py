"""The picture to start from: how it is cut, carried in a picture, and read from strangers."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from coeff_diffusion.images.errors import PictureError
from coeff_diffusion.images.files import save_picture
from coeff_diffusion.images.photo import DatasetError
from coeff_diffusion.images.png import with_chunks
from coeff_diffusion.images.start_picture import MAX_PIXELS, StartPicture, read_start


def picture(width: int, height: int) -> Image.Image:
    """Another colour in each pixel."""
    y, x = np.indices((height, width))
    return Image.fromarray(np.stack([x * 3 % 256, y * 5 % 256, (x + y) % 256], axis=2).astype(np.uint8))


def mask(width: int, height: int) -> Image.Image:
    """Black on the left, white on the right, soft between."""
    return Image.fromarray(np.tile(np.linspace(0, 255, width).round().astype(np.uint8), (height, 1)))


def saved(start: StartPicture, path: Path) -> Path:
    return save_picture(Image.new("RGB", (8, 8)), path, "a cat\nSteps: 1, Seed: 1, Size: 8x8", start.chunks())


@pytest.mark.parametrize("masked", [False, True])
def test_it_comes_back_out_of_a_picture_bit_by_bit(masked: bool, tmp_path: Path) -> None:
    start = StartPicture(picture(40, 24), mask(40, 24) if masked else None)
    again = StartPicture.read(saved(start, tmp_path / "a.png"))
    assert again == start
    assert again is not None
    assert again.digits == start.digits


def test_what_nobody_would_read_is_not_carried(monkeypatch: pytest.MonkeyPatch) -> None:
    assert StartPicture(picture(8, 8)).chunks()
    monkeypatch.setattr("coeff_diffusion.images.start_picture.MAX_PIXELS", 63)
    assert not StartPicture(picture(8, 8)).chunks()


def test_a_picture_may_carry_none(tmp_path: Path) -> None:
    assert StartPicture.read(save_picture(Image.new("RGB", (8, 8)), tmp_path / "a.png")) is None


def test_the_digits_tell_pixels_sizes_and_masks_apart() -> None:
    plain = Image.new("RGB", (8, 4))
    other = plain.copy()
    other.putpixel((0, 0), (0, 0, 1))
    starts = [
        StartPicture(plain),
        StartPicture(Image.new("RGB", (4, 8))),
        StartPicture(other),
        StartPicture(plain, mask(8, 4)),
        StartPicture(plain, Image.new("L", (8, 4), 255)),
    ]
    assert len({start.digits for start in starts}) == len(starts)


def test_its_middle_is_cut_to_the_size() -> None:
    start = StartPicture(picture(80, 40), mask(80, 40))
    found = start.fitted((20, 20))
    assert found.mask is not None
    assert found.image.size == found.mask.size == (20, 20)
    # From the middle half of the width: red runs from 20 * 3 to 60 * 3.
    red = np.asarray(found.image)[:, :, 0]
    assert 55 < red.min() < 75
    assert 165 < red.max() < 185
    assert start.fitted((80, 40)) is start  # bit by bit where nothing has to be done


def test_a_mask_that_would_be_cut_off_is_refused() -> None:
    edge = Image.new("L", (80, 40))
    edge.paste(255, (0, 0, 8, 40))
    with pytest.raises(PictureError, match="lies beside the middle that 20 x 20 pixels keep of the picture"):
        StartPicture(picture(80, 40), edge).fitted((20, 20))


def test_masks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(PictureError, match="the mask has 4 x 8 pixels, expected 8 x 4 as the picture has"):
        StartPicture(picture(8, 4), Image.new("L", (4, 8), 255))
    with pytest.raises(PictureError, match="black all over, so nothing would be drawn anew"):
        StartPicture(picture(8, 4), Image.new("L", (8, 4)))


def test_files_of_all_kinds_are_read(tmp_path: Path) -> None:
    photo = picture(8, 6)
    exif = Image.Exif()
    exif[274] = 6  # turned by a quarter
    photo.save(tmp_path / "photo.png", exif=exif)
    mask(6, 8).convert("1").save(tmp_path / "mask.png")
    start, notes = read_start(tmp_path / "photo.png", tmp_path / "mask.png")
    assert (start.image.mode, start.image.size, notes) == ("RGB", (6, 8), [])
    assert start.mask is not None
    assert set(np.unique(np.asarray(start.mask))) == {0, 255}
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(DatasetError, match=r"text\.png is not a readable picture"):
        read_start(tmp_path / "text.png")


def png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, format="PNG")
    return data.getvalue()


def huge() -> bytes:
    """A few bytes that claim to be more pixels than any drawing has."""
    content = bytearray(png(Image.new("RGB", (8, 8))))
    side = int(MAX_PIXELS**0.5) + 8
    header = side.to_bytes(4, "big") * 2 + content[24:29]
    from zlib import crc32

    return bytes(content[:16]) + header + crc32(b"IHDR" + header).to_bytes(4, "big") + bytes(content[33:])


STRANGE = {
    "text": (b"no picture", "not a PNG"),
    "jpeg": (b"\xff\xd8\xff\xe0" + bytes(100), "not a PNG"),
    "grey": (png(Image.new("L", (8, 8))), "8 x 8 pixels of the mode L"),
    "huge": (huge(), "4104 x 4104 pixels"),
    "truncated": (png(picture(64, 64))[:-60], "truncated"),
    "all of it stays": (png(Image.new("RGBA", (8, 8))), "black all over"),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_strangers_pictures_are_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    content, reason = STRANGE[kind]
    path = tmp_path / "a.png"
    path.write_bytes(with_chunks(png(Image.new("RGB", (8, 8))), [(StartPicture.chunk, content)]))
    with pytest.raises(PictureError, match=reason) as caught:
        StartPicture.read(path)
    assert str(caught.value).startswith(f"{path} carries a picture to start from that cannot be read: ")
    assert "\n" not in str(caught.value)


def test_a_picture_carries_one_at_most(tmp_path: Path) -> None:
    start = StartPicture(picture(8, 8))
    path = save_picture(Image.new("RGB", (8, 8)), tmp_path / "a.png", None, start.chunks() * 2)
    with pytest.raises(PictureError, match="it has more than 1 coEi chunks"):
        StartPicture.read(path)
