"""PNG files chunk by chunk: read without decoding a pixel, written without touching one.

What is read comes from strangers: its size is checked before it is read, and any damage is a `PngError`.
"""

import io
import os
import re
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

SIGNATURE = b"\x89PNG\r\n\x1a\n"
TEXT_KINDS = (b"tEXt", b"zTXt", b"iTXt")
MAX_WALKED = 100_000
"""Chunks of a whole file: 800 MB of pixels in the smallest chunks that encoders write, half a second to walk."""
_EXACT_LENGTHS = {b"IHDR": 13, b"IEND": 0}


class PngError(ValueError):
    """Not a PNG, damaged, or larger than it may be. The message does not name the file."""


def read_chunks(
    source: Path | bytes, wanted: Collection[bytes], max_bytes: int, max_chunks: int
) -> list[tuple[bytes, bytes]]:
    """The chunks of the wanted kinds, in their order: kind and content. The rest is skipped unread.

    Args:
        source: a file or its content.
        wanted: kinds of chunks, four letters each.
        max_bytes: of the contents of all wanted chunks together.
        max_chunks: how many wanted ones there may be.

    Raises:
        PngError: no regular file, not a PNG, truncated, something stands behind its end, the checksum of a wanted chunk
            does not agree, or there is more than may be.
    """
    found: list[tuple[bytes, bytes]] = []
    total = 0
    with _opened(source) as (file, size):
        for kind, start, length in _walk(file, size):
            if kind not in wanted:
                continue
            total += length
            if total > max_bytes:
                raise PngError(f"its {_name(kind)} chunks have {total} bytes, expected at most {max_bytes}")
            if len(found) == max_chunks:
                raise PngError(f"it has more than {max_chunks} {_name(kind)} chunks")
            file.seek(start)
            content, checksum = file.read(length), file.read(4)
            if zlib.crc32(content, zlib.crc32(kind)) != int.from_bytes(checksum, "big"):
                raise PngError(f"damaged: the checksum of its {_name(kind)} chunk does not agree")
            found.append((kind, content))
    return found


def pixels_alone(source: Path | bytes, max_bytes: int) -> bytes:
    """A PNG of the same pixels and nothing else: what other programs then read has no texts to inflate.

    Raises:
        PngError: as `read_chunks`; `max_bytes` is for the packed pixels.
    """
    chunks = read_chunks(source, (b"IHDR", b"PLTE", b"tRNS", b"IDAT"), max_bytes, MAX_WALKED)
    return b"".join([SIGNATURE, *(_encoded(kind, content) for kind, content in chunks), _encoded(b"IEND", b"")])


def with_chunks(png: bytes, chunks: Sequence[tuple[bytes, bytes]]) -> bytes:
    """A PNG with further chunks at its end. All else stays as it is, bit by bit.

    Raises:
        PngError: `png` is not a PNG, or damaged.
    """
    *_, (_, start, _) = _walk(io.BytesIO(png), len(png))
    end = start - 8
    return b"".join([png[:end], *(_encoded(kind, content) for kind, content in chunks), png[end:]])


def text_of(kind: bytes, content: bytes, most: int) -> tuple[str, str]:
    """Keyword and text of a tEXt, zTXt or iTXt chunk.

    Args:
        most: bytes that the text may have once it is inflated. No more than that is ever inflated.

    Raises:
        PngError: the chunk is not what its kind promises, or the text is longer.
    """
    keyword, end, rest = content.partition(b"\0")
    if not end or not 1 <= len(keyword) <= 79:
        raise PngError(f"damaged: its {_name(kind)} chunk has no keyword")
    compressed, method, encoding = False, b"\0", "latin-1"
    if kind == b"zTXt":
        compressed, method, rest = True, rest[:1], rest[1:]
    elif kind == b"iTXt":
        flag, method = rest[:1], rest[1:2]
        _language, _, rest = rest[2:].partition(b"\0")
        _translated, separator, rest = rest.partition(b"\0")
        if flag not in (b"\0", b"\1") or not separator:
            raise PngError("damaged: its iTXt chunk has no text")
        compressed, encoding = flag == b"\1", "utf-8"
    if compressed and method != b"\0":
        raise PngError(f"its {_name(kind)} chunk is compressed in a way that PNG does not know")
    text = _inflated(rest, most) if compressed else rest
    if len(text) > most:
        raise PngError(f"its text {keyword.decode('latin-1')!r} has more than {most} bytes")
    try:
        return keyword.decode("latin-1"), text.decode(encoding)
    except UnicodeDecodeError as error:
        raise PngError(f"damaged: its text {keyword.decode('latin-1')!r} is not {encoding}") from error


@contextmanager
def _opened(source: Path | bytes) -> Iterator[tuple[BinaryIO, int]]:
    """A file to read from, and its size."""
    if isinstance(source, bytes):
        yield io.BytesIO(source), len(source)
        return
    if not source.is_file():  # opening a named pipe would wait for someone to write into it
        raise PngError("not a regular file" if source.exists() else "there is no such file")
    try:
        with source.open("rb") as file:
            yield file, os.fstat(file.fileno()).st_size
    except OSError as error:
        raise PngError(f"it cannot be read: {error.strerror or error}") from error


def _walk(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, place of the content and its length, of every chunk from IHDR to an IEND that ends the file."""
    if file.read(len(SIGNATURE)) != SIGNATURE:
        raise PngError("not a PNG")
    place = len(SIGNATURE)
    for number in range(MAX_WALKED):
        head = file.read(8)
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if len(head) < 8:
            raise PngError(f"truncated: it ends after {number} chunks, without the chunk IEND")
        if not re.fullmatch(rb"[A-Za-z]{4}", kind) or (kind == b"IHDR") != (number == 0):
            raise PngError(f"damaged: its chunk {number + 1} is of the kind {_name(kind)}")
        if length > size - place - 12:  # 4 bytes of length, 4 of kind, 4 of checksum
            raise PngError(f"truncated: its chunk {_name(kind)} claims {length} bytes, {size - place - 8} are left")
        if length != _EXACT_LENGTHS.get(kind, length):
            raise PngError(f"damaged: its chunk {_name(kind)} has {length} bytes")
        yield kind, place + 8, length
        place += length + 12
        if kind == b"IEND":
            if place != size:
                raise PngError(f"{size - place} bytes stand behind its end; save the picture anew without them")
            return
        file.seek(place)
    raise PngError(f"it has more than {MAX_WALKED} chunks")


def _encoded(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(content, zlib.crc32(kind))
    return len(content).to_bytes(4, "big") + kind + content + checksum.to_bytes(4, "big")


def _inflated(data: bytes, most: int) -> bytes:
    """At most `most` + 1 bytes of what zlib has packed."""
    stream = zlib.decompressobj()
    try:
        found = stream.decompress(data, most + 1)
    except zlib.error as error:
        raise PngError(f"damaged: its compressed text cannot be inflated ({error})") from error
    if len(found) <= most and not stream.eof:
        raise PngError("damaged: its compressed text is truncated")
    return found


def _name(kind: bytes) -> str:
    """A kind of unknown origin, fit for an error."""
    return kind.decode() if kind.isalpha() and kind.isascii() else repr(kind)
