"""Pictures of any size -> squares, or shapes near their own: what a photo looks like to training.

Shapes: W, H the size of what training sees, in pixels.
"""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..images.shapes import Size


@dataclass(frozen=True)
class View:
    """W x H pixels in a picture that was scaled to just cover them: where they start, and whether mirrored."""

    left: int
    top: int
    flip: bool = False


def choose_views(
    size: Size, target: Size, center_crop: bool, random_flip: bool, count: int, generator: torch.Generator
) -> list[View]:
    """The views of one picture that training will see, without repetition.

    A picture of the target's shape has one crop and a centred crop is one crop: then there are no more views than
    flips. Else up to `count` crops, each mirrored or not by chance where flips are on.

    Args:
        size: of the scaled picture; target: of what is seen of it.
    """
    spare_x, spare_y = size[0] - target[0], size[1] - target[1]
    flips = [False, True] if random_flip else [False]
    if center_crop or spare_x == spare_y == 0:
        return [View(spare_x // 2, spare_y // 2, flip) for flip in flips]
    draws = torch.rand(count, 3, generator=generator).tolist()
    views = [View(int(x * (spare_x + 1)), int(y * (spare_y + 1)), random_flip and f < 0.5) for x, y, f in draws]
    return list(dict.fromkeys(views))


def scale(image: Image.Image, target: Size, resample: Image.Resampling = Image.Resampling.LANCZOS) -> Image.Image:
    """Scaled, with antialiasing, so that it just covers the target."""
    factor = max(wanted / side for wanted, side in zip(target, image.size, strict=True))
    width, height = (max(wanted, round(side * factor)) for wanted, side in zip(target, image.size, strict=True))
    return image.resize((width, height), resample)


def cut_out(image: Image.Image, target: Size, view: View) -> Image.Image:
    """The view of a scaled picture."""
    seen = image.crop((view.left, view.top, view.left + target[0], view.top + target[1]))
    return ImageOps.mirror(seen) if view.flip else seen


def view_tensor(image: Image.Image, target: Size, view: View) -> Tensor:
    """The view of a scaled picture, `[3, H, W]` in [-1, 1]."""
    pixels = torch.from_numpy(np.array(cut_out(image, target, view)))  # [H, W, 3]
    return pixels.permute(2, 0, 1).float() / 127.5 - 1
