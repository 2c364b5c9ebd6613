"""Photos and pictures of any kind -> upright sRGB, as a person sees them."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..subject.errors import UserError
from ..subject.file_kind import kind_of_file
from ..subject.user_file import FileError, open_file
from .colour import to_srgb
from .photo_formats import RAW, is_raw, readable_formats, why_unread

MAX_PIXELS = 100_000_000
"""Larger pictures are refused: no camera that matters here makes them, but a small file can claim to be one."""

MAX_FILE = 512 * 2**20  # bytes; as many pixels in 32 bits each


class DatasetError(UserError, ValueError):
    """A picture or caption cannot be used. The message names the file, what is wrong and what to do."""


@dataclass(frozen=True)
class Photo:
    """A picture as a person sees it.

    Attributes:
        image: mode RGB, upright (EXIF), colours as sRGB, what is transparent on white; with nothing else of its file.
        alpha: how opaque it is, mode L, of the same size; None where it is opaque all over.
        notes: what was done that its owner may not expect, a few words each.
    """

    image: Image.Image
    alpha: Image.Image | None
    notes: tuple[str, ...] = ()


def read_image(path: str | Path) -> Image.Image:
    """The picture of `read_photo` alone."""
    return read_photo(path).image


def read_photo(path: str | Path) -> Photo:
    """A picture of any mode that Pillow reads; 16 bits a channel and float are scaled, not cut off.

    Raises:
        DatasetError: not a picture, of a kind that is not read here, truncated, or more than 100 million pixels.
    """
    path = Path(path)
    try:
        if reason := why_unread(path):
            raise DatasetError(f"{path} cannot be read: {reason}")
        # Pillow only warns near its own limit; the size is checked right here, before a pixel is read.
        quiet = warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning)
        formats = readable_formats()
        with quiet, open_file(path, MAX_FILE) as file, Image.open(file, formats=formats) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DatasetError(_bomb(path, f"{image.width} x {image.height} pixels"))
            if is_raw(image):
                raise DatasetError(f"{path} cannot be read: {RAW}")
            image.load()
            notes = [note for note in (_several(image),) if note]
            return _seen(ImageOps.exif_transpose(image), notes)
    except DatasetError:
        raise
    except Image.DecompressionBombError as error:
        raise DatasetError(_bomb(path, "far more pixels")) from error
    except Exception as error:  # damaged files make Pillow's decoders raise anything
        why = why_unreadable(path, error)
        raise DatasetError(f"{path} is not a readable picture ({why}); replace it or take it out") from error


def why_unreadable(path: str | Path, error: Exception) -> str:
    """What keeps Pillow from reading a file. Its own word for what it does not know at all says nothing of the file."""
    if isinstance(error, FileError):
        return f"it {error.problem}"
    if not isinstance(error, UnidentifiedImageError):
        return str(error)
    kind = kind_of_file(path)
    return (
        f"it is {kind.name}, damaged or of a form that Pillow does not know" if kind.picture else f"it is {kind.name}"
    )


def _bomb(path: Path, size: str) -> str:
    return f"{path} has {size}, expected at most {MAX_PIXELS // 1_000_000} million; make it smaller or take it out"


def _several(image: Image.Image) -> str | None:
    """What is left of a file of several pictures."""
    # The others of an MPO are the same photo at another exposure or depth; those of a PSD are its layers.
    if image.format in ("MPO", "PSD") or not getattr(image, "is_animated", False):
        return None
    return "it is an animation or holds several pictures; the first one is used"


def _seen(image: Image.Image, notes: list[str]) -> Photo:
    colours, alpha = _apart(image)
    seen, note = to_srgb(colours, image.info.get("icc_profile"))
    seen.info.clear()  # a profile that is used up would change the colours once more
    if alpha is not None and alpha.getextrema() != (255, 255):
        seen = Image.composite(seen, Image.new("RGB", seen.size, "white"), alpha)
    else:
        alpha = None
    return Photo(seen, alpha, (*notes, note) if note else tuple(notes))


def _apart(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Colours (mode RGB, L, CMYK or LAB) and opacity (mode L; None where the file has none) of a picture."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        values = np.asarray(image, dtype=np.float64)
        # 16-bit pictures span 0..65535; what is within 0..1 or 0..255 is taken to span just that.
        peak = float(values.max(initial=0.0))
        top = next((t for t in (1.0, 255.0) if image.mode == "F" and peak <= t), 65535.0)
        grey = Image.fromarray((values.clip(0, top) * (255 / top)).round().astype(np.uint8), mode=None)
        clear = image.info.get("transparency")  # one grey value
        return grey, None if clear is None else Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8))
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    if image.mode in ("1", "LA", "La"):
        return image.convert("L"), alpha
    if image.mode in ("L", "CMYK", "LAB"):
        return image, alpha
    return image.convert("RGBA" if image.has_transparency_data else "RGB").convert("RGB"), alpha
