import io
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageChops
from PIL.PngImagePlugin import PngInfo

from coeff_diffusion.images.png import (
    MAX_WALKED,
    SIGNATURE,
    TEXT_KINDS,
    PngError,
    pixels_alone,
    read_chunks,
    text_of,
    with_chunks,
)


def encoded(kind: bytes, content: bytes, length: int | None = None) -> bytes:
    """A chunk, as any program writes it, perhaps with a lie about its length."""
    size = len(content) if length is None else length
    return size.to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


def picture(info: PngInfo | None = None) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((20, 10)).convert("RGB").save(file, format="PNG", pnginfo=info)
    return file.getvalue()


PNG = picture()
HEAD, TAIL = PNG[:33], PNG[33:]  # signature and IHDR; pixels and IEND
ONE = (b"coEf", b"some bytes")


def read(data: bytes, wanted: tuple[bytes, ...] = (b"coEf",), most: int = 1_000, count: int = 4) -> list[bytes]:
    return [content for _, content in read_chunks(data, wanted, most, count)]


def test_wanted_chunks_come_in_their_order_wherever_they_stand(tmp_path: Path) -> None:
    data = HEAD + encoded(b"coEf", b"1") + encoded(b"tEXt", b"a\0b") + TAIL[:-12] + encoded(b"coEf", b"2") + PNG[-12:]
    expected = [(b"coEf", b"1"), (b"tEXt", b"a\0b"), (b"coEf", b"2")]
    assert read_chunks(data, (b"coEf", b"tEXt"), 100, 3) == expected
    (tmp_path / "a.png").write_bytes(data)
    assert read_chunks(tmp_path / "a.png", (b"coEf", b"tEXt"), 100, 3) == expected
    assert read(data) == [b"1", b"2"]
    assert read(PNG) == []


def test_only_wanted_chunks_are_read() -> None:
    """What is not wanted may be damaged, or larger than all that may be read."""
    assert read(HEAD + encoded(b"juNk", bytes(5_000))[:-1] + b"!" + encoded(*ONE) + TAIL) == [ONE[1]]


def test_chunks_are_added_and_nothing_else_changes() -> None:
    found = with_chunks(PNG, [ONE, (b"coEf", b"")])
    assert found == PNG[:-12] + encoded(*ONE) + encoded(b"coEf", b"") + PNG[-12:]
    assert read(found) == [ONE[1], b""]
    with Image.open(io.BytesIO(found)) as changed, Image.open(io.BytesIO(PNG)) as before:
        assert ImageChops.difference(changed, before).getbbox() is None
    assert with_chunks(PNG, []) == PNG


def test_pixels_alone() -> None:
    info = PngInfo()
    info.add_text("key", "text", zip=True)
    for image in (Image.radial_gradient("L").convert("P"), Image.radial_gradient("L").convert("RGBA")):
        file = io.BytesIO()
        image.save(file, format="PNG", pnginfo=info, transparency=3 if image.mode == "P" else None)
        bare = pixels_alone(with_chunks(file.getvalue(), [ONE]), 100_000)
        assert {kind for kind, _ in read_chunks(bare, (*TEXT_KINDS, b"coEf", b"tRNS"), 10_000, 9)} <= {b"tRNS"}
        with Image.open(io.BytesIO(bare)) as found, Image.open(file) as before:
            assert found.convert("RGBA").tobytes() == before.convert("RGBA").tobytes()
    with pytest.raises(PngError, match="expected at most 20"):
        pixels_alone(PNG, 20)


def test_a_png_cut_anywhere_is_an_error() -> None:
    data = with_chunks(PNG, [ONE])
    for length in range(len(data)):
        with pytest.raises(PngError):
            read(data[:length])
        with pytest.raises(PngError):
            with_chunks(data[:length], [])


BAD: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "not a PNG"),
    "another format": (b"\xff\xd8\xff\xe0 a JPEG", "not a PNG"),
    "signature alone": (SIGNATURE, "truncated: it ends after 0 chunks"),
    "checksum": (HEAD + encoded(*ONE)[:-1] + b"!" + TAIL, "checksum of its coEf chunk does not agree"),
    "content": (HEAD + encoded(*ONE).replace(b"some", b"sour") + TAIL, "checksum of its coEf chunk does not agree"),
    "huge length": (HEAD + encoded(*ONE, length=2**31 - 1) + TAIL, "coEf claims 2147483647 bytes"),
    "impossible length": (HEAD + encoded(*ONE, length=2**32 - 1) + TAIL, "coEf claims 4294967295 bytes"),
    "no letters": (HEAD + encoded(b"co\x1bf", b"") + TAIL, r"chunk 2 is of the kind b'co\\x1bf'"),
    "a second beginning": (HEAD + HEAD[8:] + TAIL, "chunk 2 is of the kind IHDR"),
    "no beginning": (SIGNATURE + TAIL, "chunk 1 is of the kind IDAT"),
    "in the end": (PNG[:-12] + encoded(b"IEND", b"more"), "its chunk IEND has 4 bytes"),
    "too much": (with_chunks(PNG, [(b"coEf", bytes(600))] * 2), "have 1200 bytes, expected at most 1000"),
    "too many": (with_chunks(PNG, [ONE] * 5), "more than 4 coEf chunks"),
    "endless": (HEAD + encoded(b"juNk", b"") * MAX_WALKED + TAIL, f"more than {MAX_WALKED} chunks"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files(kind: str, tmp_path: Path) -> None:
    data, message = BAD[kind]
    with pytest.raises(PngError, match=message):
        read(data)
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(PngError, match=message):
        read_chunks(tmp_path / "a.png", (b"coEf",), 1_000, 4)


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(PngError, match="it does not exist"):
        read_chunks(tmp_path / "none.png", (b"coEf",), 1, 1)
    with pytest.raises(PngError, match="not a regular file"):
        read_chunks(tmp_path, (b"coEf",), 1, 1)
    os.mkfifo(tmp_path / "pipe.png")  # whoever opens it waits for a writer
    with pytest.raises(PngError, match="not a regular file"):
        read_chunks(tmp_path / "pipe.png", (b"coEf",), 1, 1)


# --- texts ------------------------------------------------------------------------------------------------------------


def texts(add: Callable[[PngInfo], None], most: int = 100) -> list[tuple[str, str]]:
    info = PngInfo()
    add(info)
    return [text_of(kind, content, most) for kind, content in read_chunks(picture(info), TEXT_KINDS, 10_000, 9)]


def test_reads_the_texts_that_pillow_writes() -> None:
    assert texts(lambda info: info.add_text("key", "naïve")) == [("key", "naïve")]
    assert texts(lambda info: info.add_text("key", "naïve", zip=True)) == [("key", "naïve")]
    assert texts(lambda info: info.add_itxt("key", "狗 🐶", "de", "Schlüssel")) == [("key", "狗 🐶")]
    assert texts(lambda info: info.add_itxt("key", "狗 🐶", zip=True)) == [("key", "狗 🐶")]
    assert texts(lambda info: info.add_text("key", "")) == [("key", "")]


def test_texts_may_be_as_long_as_that_and_no_longer() -> None:
    for packed in (False, True):
        assert texts(lambda info: info.add_text("key", "a" * 100, zip=packed)) == [("key", "a" * 100)]  # noqa: B023
        with pytest.raises(PngError, match="'key' has more than 100 bytes"):
            texts(lambda info: info.add_text("key", "a" * 101, zip=packed))  # noqa: B023
        with pytest.raises(PngError, match="'key' has more than 100 bytes"):
            texts(lambda info: info.add_itxt("key", "a" * 101, zip=packed))  # noqa: B023


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        (b"tEXt", b"no keyword", "as PNG wants them"),
        (b"tEXt", b"\0text", "as PNG wants them"),
        (b"tEXt", b"a" * 80 + b"\0text", "as PNG wants them"),
        (b"zTXt", b"key\0", "as PNG wants them"),
        (b"zTXt", b"key\0\1" + zlib.compress(b"text"), "as PNG wants them"),
        (b"zTXt", b"key\0\0no zlib", "cannot be read"),
        (b"zTXt", b"key\0\0" + zlib.compress(b"text")[:-1], "truncated"),
        (b"iTXt", b"key\0", "as PNG wants them"),
        (b"iTXt", b"key\0\2\0\0\0text", "as PNG wants them"),
        (b"iTXt", b"key\0\0\0language only", "as PNG wants them"),
        (b"iTXt", b"key\0\1\1\0\0text", "as PNG wants them"),
        (b"iTXt", b"key\0\0\0\0\0\xff", "cannot be read"),
        (b"iTXt", b"key\0\0\0\0\0\xed\xa0\x80", "cannot be read"),  # half of a surrogate pair
    ],
)
def test_bad_texts(kind: bytes, content: bytes, message: str) -> None:
    with pytest.raises(PngError, match=message):
        text_of(kind, content, 100)
