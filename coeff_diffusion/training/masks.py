"""Which parts of a picture count: its mask, from a file beside it or its own transparency -> weights of the loss.

White, or opaque, is learned; black, or transparent, is not; what lies between counts in part.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageChops, ImageOps
from torch import Tensor

from ..images.photo import DatasetError, Photo, read_photo
from ..images.shapes import Size
from .photos import View, cut_out

LEAST_WHITE = 128  # of 255: darker masks are label maps or mistakes
SAME_SHAPE = 0.02  # tolerance of width / height: tools round sides to multiples of 8


def mask_of(photo: Photo, path: Path, mask: Path | None) -> Image.Image | None:
    """The mask of a picture, mode L, of the picture's size; None where all of it counts.

    Args:
        photo: the picture, read from `path`.
        mask: its mask's file; without one its transparency is the mask.

    Raises:
        DatasetError: the mask cannot be read, is of another shape, or has nothing white.
    """
    if mask is None:
        if photo.alpha is not None and _brightest(photo.alpha) < LEAST_WHITE:
            raise DatasetError(f"{path} is transparent all over, so nothing of it would be learned; take it out")
        return photo.alpha
    read = read_photo(mask)
    found = read.image.convert("L")
    if read.alpha is not None:  # what is transparent in a mask is black, where a picture's is white
        found = ImageChops.subtract(found, ImageOps.invert(read.alpha))
    width, height = photo.image.size
    if abs(found.width / found.height * height / width - 1) > SAME_SHAPE:
        raise DatasetError(
            f"{mask} has {found.width} x {found.height} pixels, its picture {width} x {height}, another shape; "
            "make it anew, or take it out"
        )
    if _brightest(found) < LEAST_WHITE:
        raise DatasetError(
            f"{mask} has nothing white (its brightest value is {_brightest(found)} of 255); a mask is white where the "
            "subject is, and black where nothing is to be learned"
        )
    return found.resize((width, height), Image.Resampling.BILINEAR)


def view_weights(mask: Image.Image, target: Size, view: View) -> Tensor:
    """What counts of a view of the scaled mask, `[1, H, W]` in [0, 1]."""
    values = torch.from_numpy(np.array(cut_out(mask, target, view)))  # [H, W]
    return values.float()[None] / 255


def _brightest(image: Image.Image) -> int:
    return int(image.getextrema()[1])  # type: ignore[arg-type]
