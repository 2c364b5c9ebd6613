"""The part of a picture that is used, as people choose it: two corners that they click, or four numbers in percent."""

import re
from pathlib import Path

from PIL import Image, ImageDraw

from ..images.photo import read_photo
from ..inference.request import StudioError
from ..training.crop_boxes import Box, box_problem

SIDE = 512  # pixels of the longer side of the picture that is clicked: small ones are shown larger
SHADE = 0.35  # of what is not used
MARK = 6  # pixels from the middle of a corner's mark to its ends
NUMBER = re.compile(r"\d+(?:\.\d+)?")
Corner = tuple[float, float]
"""A place in a picture, as shares of its width and height."""


def picture_with_box(path: Path, box: Box | None, corner: Corner | None = None) -> Image.Image:
    """A picture as it is looked at, with what is not used darkened, and the first of two corners marked.

    Raises:
        DatasetError: it cannot be read.
    """
    image = read_photo(path).image.convert("RGB")
    width, height = (max(1, round(side * SIDE / max(image.size))) for side in image.size)
    image = image.resize((width, height))
    if box is not None:
        edges = [round(share * side) for share, side in zip(box, (width, height) * 2, strict=True)]
        part = image.crop((edges[0], edges[1], edges[2], edges[3]))
        image = Image.blend(Image.new("RGB", image.size), image, SHADE)
        image.paste(part, (edges[0], edges[1]))
    if corner is not None:
        x, y = corner[0] * width, corner[1] * height
        draw = ImageDraw.Draw(image)
        for colour, wide in (("white", 4), ("black", 2)):
            draw.line((x - MARK, y, x + MARK, y), colour, wide)
            draw.line((x, y - MARK, x, y + MARK), colour, wide)
    return image


def corner_at(path: Path, pixel: tuple[float, float]) -> Corner:
    """The place of a pixel of what `picture_with_box` shows. Raises as that."""
    image = read_photo(path).image
    factor = SIDE / max(image.size)
    x, y = (place / (side * factor) for place, side in zip(pixel, image.size, strict=True))
    return min(max(x, 0.0), 1.0), min(max(y, 0.0), 1.0)


def box_between(first: Corner, second: Corner) -> Box:
    """The box that has these opposite corners.

    Raises:
        StudioError: it holds nothing.
    """
    (left, right), (top, bottom) = (sorted(pair) for pair in zip(first, second, strict=True))
    return _checked([round(share, 3) for share in (left, top, right, bottom)])


def read_box(text: str) -> Box | None:
    """A box in percent, such as `10, 0, 90, 100`; None for an empty text.

    Raises:
        StudioError: it is none.
    """
    if not text.strip():
        return None
    return _checked([float(number) / 100 for number in NUMBER.findall(text)])


def write_box(box: Box | None) -> str:
    """What `read_box` reads."""
    return "" if box is None else ", ".join(f"{100 * share:.4g}" for share in box)


def _checked(box: list[float]) -> Box:
    if problem := box_problem(box):
        raise StudioError(
            f"the part that is used {problem}; give left, top, right and bottom in percent, such as 10, 0, 90, 100, or "
            "nothing for the whole picture"
        )
    return box
