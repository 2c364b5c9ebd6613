"""Pictures of any size -> squares: what a photo looks like to training.

Shapes: R the resolution in pixels.
"""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor


@dataclass(frozen=True)
class View:
    """A square of R pixels in a picture whose shorter side was scaled to R: where it starts, and whether mirrored."""

    left: int
    top: int
    flip: bool = False


def choose_views(
    size: tuple[int, int], resolution: int, center_crop: bool, random_flip: bool, count: int, generator: torch.Generator
) -> list[View]:
    """The views of one picture that training will see, without repetition.

    A square picture has one crop and a centred crop is one crop: then there are no more views than flips. Else up to
    `count` crops, each mirrored or not by chance where flips are on.

    Args:
        size: width and height of the scaled picture.
    """
    spare_x, spare_y = size[0] - resolution, size[1] - resolution
    flips = [False, True] if random_flip else [False]
    if center_crop or spare_x == spare_y == 0:
        return [View(spare_x // 2, spare_y // 2, flip) for flip in flips]
    draws = torch.rand(count, 3, generator=generator).tolist()
    views = [View(int(x * (spare_x + 1)), int(y * (spare_y + 1)), random_flip and f < 0.5) for x, y, f in draws]
    return list(dict.fromkeys(views))


def scale(image: Image.Image, resolution: int, resample: Image.Resampling = Image.Resampling.LANCZOS) -> Image.Image:
    """Scaled, with antialiasing, so that the shorter side is the resolution."""
    factor = resolution / min(image.size)
    width, height = (max(resolution, round(side * factor)) for side in image.size)
    return image.resize((width, height), resample)


def view_tensor(image: Image.Image, resolution: int, view: View) -> Tensor:
    """The view of a scaled picture, `[3, R, R]` in [-1, 1]."""
    square = image.crop((view.left, view.top, view.left + resolution, view.top + resolution))
    pixels = torch.from_numpy(np.array(ImageOps.mirror(square) if view.flip else square))  # [R, R, 3]
    return pixels.permute(2, 0, 1).float() / 127.5 - 1
