"""Which files hold photos, and which of those can be read here: told from what is in them, not from their names."""

import functools
import importlib
from contextlib import suppress
from pathlib import Path

from PIL import Image, features

from ..subject.user_file import open_file

# Pillow hands these to other programs, or only knows that they exist.
NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
# Formats that begin with bytes of their own: what opens as one of them is one, whatever it is called.
UNMISTAKABLE = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "MPO", "PNG", "TIFF", "WEBP")
RAW_SUFFIXES = (
    *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".iiq", ".kdc", ".mef", ".mos", ".mrw"),
    *(".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f"),
)
RAW = "raw photos are not developed; export them as JPEG, PNG or TIFF"
HEIC = "HEIC photos are read with the extra heif: pip install 'coeff-diffusion[heif]'"
AVIF = "this Pillow has no AVIF decoder; pip install --upgrade pillow, or save them as PNG"
VIDEO = "videos are not read; save single pictures of them"
JPEG_XL = "JPEG XL is not read; save them as PNG or JPEG"

_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_VIDEO_SUFFIXES = (".3gp", ".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".webm", ".wmv")
_JPEG_XL_STARTS = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")
_DNG_VERSION = 50706  # a TIFF tag


@functools.cache
def register_readers() -> None:
    """Teach Pillow HEIC where the extra `heif` is installed: the one place, as Pillow has one table of readers."""
    Image.init()
    with suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()


def readable_formats() -> list[str]:
    """What Pillow calls the formats that are decoded here."""
    register_readers()
    return sorted(Image.OPEN.keys() - NOT_DECODED)


def picture_suffixes() -> frozenset[str]:
    """Endings of names, in lower case, that promise a picture that is decoded here."""
    readable = set(readable_formats())
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in readable)


def why_unread(path: Path) -> str | None:
    """What reads a photo or video that is not read here, in a few words; None for all other files.

    Raw photos are among them, though Pillow opens many of them: what it finds is the small preview inside.
    """
    register_readers()
    if path.suffix.lower() in RAW_SUFFIXES:
        return RAW
    with open_file(path) as file:
        head = file.read(64)
    if head[4:8] == b"ftyp":
        brands = {head[8:12], *(head[i : i + 4] for i in range(16, min(64, int.from_bytes(head[:4], "big")), 4))}
        if b"crx " in brands:
            return RAW
        if brands & {b"avif", b"avis"}:
            return None if features.check("avif") else AVIF
        if brands & _HEIC_BRANDS:
            return None if "HEIF" in Image.OPEN else HEIC
        return VIDEO
    if head.startswith(_JPEG_XL_STARTS):
        return JPEG_XL
    return VIDEO if path.suffix.lower() in _VIDEO_SUFFIXES else None


def is_raw(image: Image.Image) -> bool:
    """Whether an opened TIFF is a raw photo, of which Pillow would show the preview."""
    return image.format == "TIFF" and _DNG_VERSION in getattr(image, "tag_v2", ())


def is_picture(path: Path) -> bool:
    """Whether a file promises to be a picture that is decoded here: by its ending, else by how it begins."""
    if path.suffix.lower() in picture_suffixes():
        return True
    known = [kind for kind in UNMISTAKABLE if kind in readable_formats()]
    try:
        with open_file(path) as file, Image.open(file, formats=known):
            return True
    except Exception:  # noqa: BLE001 - damaged files make Pillow's readers raise anything
        return False
