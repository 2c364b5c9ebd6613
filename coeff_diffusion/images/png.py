"""PNG files chunk by chunk: read without decoding a pixel, written without touching one.

What is read comes from strangers: its size is checked before it is read, and any damage is a `PngError`. Pillow cannot
do that: damaged texts are empty for it, and any library may switch its checks off (`ImageFile.LOAD_TRUNCATED_IMAGES`).
"""

import io
import re
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import BinaryIO

from ..subject.errors import UserError
from ..subject.file_kind import HEAD, kind_of
from ..subject.user_file import FileError, open_file

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_WALKED = 100_000  # chunks: 800 MB of pixels in the smallest that encoders write, 0.2 s to walk
# What text chunks look like: the keyword, something where the text is compressed, the text.
_TEXTS = {
    b"tEXt": re.compile(rb"([^\0]{1,79})\0()(.*)", re.DOTALL),
    b"zTXt": re.compile(rb"([^\0]{1,79})\0(\0)(.*)", re.DOTALL),
    b"iTXt": re.compile(rb"([^\0]{1,79})\0(?:\0.|(\x01\0))[^\0]*\0[^\0]*\0(.*)", re.DOTALL),
}
TEXT_KINDS = tuple(_TEXTS)
Chunk = tuple[bytes, bytes]  # kind, of four letters, and content
END: Chunk = (b"IEND", b"")


class PngError(UserError, ValueError):
    """Not a PNG, damaged, or larger than it may be. The message does not name the file."""


def read_chunks(source: Path | bytes, wanted: Collection[bytes], max_bytes: int, max_chunks: int) -> list[Chunk]:
    """The chunks of the wanted kinds, in their order, of a file or its content. The rest is skipped unread.

    There may be at most `max_chunks` wanted ones, with contents of `max_bytes` together.

    Raises:
        PngError: no regular file, not a PNG, truncated, the checksum of a wanted chunk does not agree, or there is more
            than may be.
    """
    if isinstance(source, bytes):
        return _read(io.BytesIO(source), wanted, max_bytes, max_chunks)
    try:
        with open_file(source) as file:
            return _read(file, wanted, max_bytes, max_chunks)
    except FileError as error:
        raise PngError(f"it {error.problem}") from error
    except OSError as error:
        raise PngError(f"it cannot be read: {error.strerror or error}") from error


def _read(file: BinaryIO, wanted: Collection[bytes], max_bytes: int, max_chunks: int) -> list[Chunk]:
    """The wanted chunks. The file is left right behind its end: what programs append there is no part of it."""
    found: list[Chunk] = []
    size, total = file.seek(0, io.SEEK_END), 0
    file.seek(0)
    head = file.read(HEAD)
    if not head.startswith(SIGNATURE):
        raise PngError(f"not a PNG: it is {kind_of(head).name}")
    file.seek(len(SIGNATURE))
    for number in range(MAX_WALKED):
        head, left = file.read(8), size - file.tell() - 4  # 4 bytes of length, 4 of kind; at the end 4 of checksum
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        name = kind.decode() if kind.isalpha() else repr(kind)
        if len(head) < 8:
            raise PngError(f"truncated: it ends after {number} chunks, without the chunk IEND")
        if not kind.isalpha() or (kind == b"IHDR") != (number == 0):
            raise PngError(f"damaged: its chunk {number + 1} is of the kind {name}")
        if length > left:
            raise PngError(f"truncated: its chunk {name} claims {length} bytes, {max(left, 0)} are left")
        if kind == b"IEND":
            if length:
                raise PngError(f"damaged: its chunk IEND has {length} bytes")
            file.seek(4, io.SEEK_CUR)
            return found
        if kind not in wanted:
            file.seek(length + 4, io.SEEK_CUR)
            continue
        total += length
        if total > max_bytes:
            raise PngError(f"its {name} chunks have {total} bytes, expected at most {max_bytes}")
        if len(found) == max_chunks:
            raise PngError(f"it has more than {max_chunks} {name} chunks")
        content, checksum = file.read(length), file.read(4)
        if _checksum(kind, content) != checksum:
            raise PngError(f"damaged: the checksum of its {name} chunk does not agree")
        found.append((kind, content))
    raise PngError(f"it has more than {MAX_WALKED} chunks")


def pixels_alone(source: Path | bytes, max_bytes: int) -> bytes:
    """A PNG of the same pixels, at most `max_bytes` packed, and nothing else: no text to inflate for who reads it.

    Raises:
        PngError: as `read_chunks`.
    """
    chunks = read_chunks(source, (b"IHDR", b"PLTE", b"tRNS", b"IDAT"), max_bytes, MAX_WALKED)
    return SIGNATURE + _encoded([*chunks, END])


def with_chunks(png: bytes, chunks: Sequence[Chunk]) -> bytes:
    """A PNG with further chunks before its end. All else stays as it is, bit by bit.

    Raises:
        PngError: `png` is not a PNG, or damaged.
    """
    file = io.BytesIO(png)
    _read(file, (), 0, 0)
    end = file.tell() - len(_encoded([END]))
    return png[:end] + _encoded(chunks) + png[end:]


def _encoded(chunks: Sequence[Chunk]) -> bytes:
    return b"".join(len(data).to_bytes(4, "big") + kind + data + _checksum(kind, data) for kind, data in chunks)


def _checksum(kind: bytes, content: bytes) -> bytes:
    return zlib.crc32(content, zlib.crc32(kind)).to_bytes(4, "big")


def _decoded(text: bytes) -> str:
    """The text of a chunk that should be Latin-1; some write UTF-8 there, as which hardly any Latin-1 reads."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return text.decode("latin-1")


def text_of(kind: bytes, content: bytes, most: int) -> tuple[str, str]:
    """Keyword and text of a tEXt, zTXt or iTXt chunk. No more than `most` bytes of text are ever inflated.

    Raises:
        PngError: the chunk is not what its kind promises, or the text is longer.
    """
    if not (parts := _TEXTS[kind].fullmatch(content)):
        raise PngError(f"damaged: its {kind.decode()} chunk has no keyword and text as PNG wants them")
    (keyword, packed, text), stream = parts.groups(), zlib.decompressobj()
    name = keyword.decode("latin-1")
    try:
        text = stream.decompress(text, most + 1) if packed else text
        if len(text) > most:
            raise PngError(f"its text {name!r} has more than {most} bytes")
        if packed and not stream.eof:
            raise PngError(f"damaged: its text {name!r} is truncated")
        return name, _decoded(text) if kind != b"iTXt" else text.decode()
    except (zlib.error, UnicodeDecodeError) as error:
        raise PngError(f"damaged: its text {name!r} cannot be read ({error})") from error
