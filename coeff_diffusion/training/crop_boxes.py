"""The part of a picture that is used: a box that someone drew around the subject."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from PIL import Image

from ..images.photo import DatasetError
from ..subject.errors import shown
from .picture_folder import PictureFolder, named

Box = Sequence[float]
"""Left, top, right and bottom as shares of a picture's width and height, from 0 to 1, as it is looked at: turned as its
camera says."""
LEAST = 0.01  # of a side


def cropped(image: Image.Image, box: Box | None) -> Image.Image:
    """The part of a picture, or of its mask, in a box; all of it without one."""
    if box is None:
        return image
    left, top, right, bottom = (round(share * side) for share, side in zip(box, image.size * 2, strict=True))
    return image.crop((left, top, max(right, left + 1), max(bottom, top + 1)))


def box_problem(box: Box) -> str:
    """What is wrong with a box, as the end of a sentence; empty where nothing is."""
    if len(box) != 4:
        return f"has {len(box)} numbers, expected four: left, top, right, bottom"
    left, top, right, bottom = box
    if not all(0 <= share <= 1 for share in box):  # false for what is no number, too
        return f"is {list(box)}, expected shares of the picture from 0 to 1"
    if right - left < LEAST or bottom - top < LEAST:
        return f"is {list(box)}, which holds nothing: right has to be beyond left, and bottom beyond top"
    return ""


def with_boxes(found: PictureFolder, boxes: Mapping[str, Box]) -> PictureFolder:
    """The pictures of a folder with their boxes, which stand by the names of their files.

    Raises:
        DatasetError: there is no picture of that name, or several have it.
    """
    names = [path.name for path in found.paths]
    for name in boxes:
        if names.count(name) != 1:
            there = "there are several" if name in names else f"there is {named(found.paths)}"
            raise DatasetError(f"--crop_boxes: the picture {shown(name)} is meant, but {there}")
    pictures = [replace(picture, box=boxes.get(picture.path.name)) for picture in found.pictures]
    return PictureFolder(pictures, found.left_out)
