"""Photos and pictures of any kind -> upright RGB, as a person sees them."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..subject.errors import UserError
from ..subject.file_kind import kind_of_file
from ..subject.user_file import FileError, open_file

MAX_PIXELS = 100_000_000
"""Larger pictures are refused: no camera that matters here makes them, but a small file can claim to be one."""

MAX_FILE = 512 * 2**20  # bytes; as many pixels in 32 bits each


class DatasetError(UserError, ValueError):
    """A picture or caption cannot be used. The message names the file, what is wrong and what to do."""


def read_image(path: str | Path) -> Image.Image:
    """The picture as a person sees it: upright (EXIF), transparency on white, 8 bits of red, green and blue.

    Every mode Pillow reads: palette, bilevel, CMYK, alpha, 16 bits per channel and float (scaled, not cut off).

    Raises:
        DatasetError: not a picture, truncated, or more than 100 million pixels.
    """
    try:
        # Pillow only warns near its own limit; the size is checked right here, before a pixel is read.
        quiet = warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning)
        with quiet, open_file(path, MAX_FILE) as file, Image.open(file) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DatasetError(_bomb(path, f"{image.width} x {image.height} pixels"))
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
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


def _bomb(path: str | Path, size: str) -> str:
    return f"{path} has {size}, expected at most {MAX_PIXELS // 1_000_000} million; make it smaller or take it out"


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        values = np.asarray(image, dtype=np.float64)
        # 16-bit pictures span 0..65535; what is within 0..1 or 0..255 is taken to span just that.
        peak = float(values.max(initial=0.0))
        top = next((t for t in (1.0, 255.0) if image.mode == "F" and peak <= t), 65535.0)
        image = Image.fromarray((values.clip(0, top) * (255 / top)).round().astype(np.uint8), mode=None)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")
