"""What a file is, told by its first bytes: a name says what someone took it for, bytes say what it is."""

import re
from pathlib import Path
from typing import NamedTuple

from .user_file import FileError, open_file

HEAD = 4_096  # bytes that tell; pickled checkpoints name their pickle in the first entry of their zip


class Kind(NamedTuple):
    """A kind of file.

    Attributes:
        name: as a sentence calls it: "a JPEG picture".
        advice: what to do about it where another kind was expected; may be empty.
        picture: the format as Pillow calls it, of pictures alone.
    """

    name: str
    advice: str = ""
    picture: str = ""


SAFETENSORS = Kind("a safetensors file")
PICKLE = "a pickle, which can run any code when it is opened and is never read"
UNPACK = "unpack it and give the file inside"
EXPORT = "save it as PNG or JPEG"
LFS = "fetch the file itself with `git lfs pull`"
# By the first bytes; the first that fits names the kind.
KINDS = (
    (rb"\x89PNG\r\n\x1a\n", Kind("a PNG picture", picture="PNG")),
    (rb"\xff\xd8\xff", Kind("a JPEG picture", picture="JPEG")),
    (rb"RIFF.{4}WEBP", Kind("a WebP picture", picture="WEBP")),
    (rb"GIF8[79]a", Kind("a GIF picture", picture="GIF")),
    (rb"BM.{4}\0{4}", Kind("a BMP picture", picture="BMP")),
    (rb"II\*\0|MM\0\*", Kind("a TIFF picture", EXPORT, picture="TIFF")),
    (rb".{4}ftypavi[fs]", Kind("an AVIF picture", EXPORT, picture="AVIF")),
    (rb".{4}ftyp(he[iv][cmsx]|mif1|msf1)", Kind("a HEIC picture", EXPORT, picture="HEIF")),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", Kind("a JPEG XL picture", EXPORT)),
    (rb".{4}ftyp", Kind("a video")),
    (rb"PK\x03\x04.{26}[^\0]{0,200}?data\.pkl", Kind(f"a checkpoint of PyTorch that holds {PICKLE}")),
    (rb"PK(\x03\x04|\x05\x06)", Kind("a zip archive", UNPACK)),
    (rb"\x80[\x02-\x05]", Kind(PICKLE)),
    (rb"\x1f\x8b|7z\xbc\xaf\x27\x1c|Rar!|.{257}ustar", Kind("a packed archive", UNPACK)),
    (rb"GGUF", Kind("a GGUF model")),
    (rb"%PDF", Kind("a PDF document")),
    (
        rb"version https://git-lfs\.github\.com/spec/",
        Kind("a pointer of Git LFS to the file", LFS),
    ),
    (
        rb"(?i)(\xef\xbb\xbf)?\s*(<!--.{0,2000}?-->\s*)?<(!doctype html|html|head|body)",
        Kind("a web page, which a browser saved in the file's place", "download the file itself"),
    ),
    (rb"\0+\Z", Kind("zeros where it begins, as a download that broke off leaves it", "fetch it again")),
)
COMPILED = [(re.compile(pattern, re.DOTALL), kind) for pattern, kind in KINDS]
EMPTY = Kind("an empty file", "fetch it again")


def kind_of(head: bytes) -> Kind:
    """The kind of a file by its first `HEAD` bytes."""
    head = head[:HEAD]
    if not head:
        return EMPTY
    is_header = head[8:9] == b"{"
    if is_header and head[4:8] == bytes(4):  # before all others: the length of its header is any bytes
        return SAFETENSORS
    found = next((kind for pattern, kind in COMPILED if pattern.match(head)), None)
    if found is not None:
        return found
    if is_header:
        return SAFETENSORS
    return Kind("a text") if _is_text(head) else Kind(f"of no known kind (its first bytes are {head[:8].hex(' ')})")


def kind_of_file(path: str | Path, error: type[Exception] = FileError) -> Kind:
    """The kind of a file on disk.

    Raises:
        FileError, or `error` made of its message: it is missing, or no regular file (see `open_file`).
    """
    with open_file(path, None, error) as file:
        return kind_of(file.read(HEAD))


def _is_text(head: bytes) -> bool:
    try:
        text = head[: len(head) - 3].decode() if len(head) == HEAD else head.decode()  # a letter may be cut in two
    except UnicodeDecodeError:
        return False
    return all(letter.isprintable() or letter.isspace() for letter in text)
