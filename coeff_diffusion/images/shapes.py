"""The shapes that pictures may have at about as many pixels as a square: what a base was trained on, or can be."""

import math
from collections.abc import Sequence

Size = tuple[int, int]  # width and height in pixels
MOST_STRETCHED = 2  # sides go from half that of the square to twice: shapes up to 4 : 1
RATIOS = ("1:1", "4:3", "3:4", "3:2", "2:3", "16:9", "9:16")
"""The shapes that people ask for by name."""


def bucket_sizes(resolution: int, multiple: int) -> list[Size]:
    """The shapes that pictures may keep: about as many pixels as the square has, never more, the square first.

    At 1,024 pixels these are the sizes that Stable Diffusion XL was trained on, and a few more.

    Args:
        multiple: what the base's sides are a multiple of; the steps between shapes are a sixteenth of the side or more.
    """
    step = max(multiple, resolution // 16 // multiple * multiple)
    least = -(-resolution // MOST_STRETCHED // step) * step
    found = {(resolution, resolution)}
    for width in range(least, MOST_STRETCHED * resolution + 1, step):
        height = min(resolution**2 // width // step * step, MOST_STRETCHED * resolution)
        if height >= least:
            found |= {(width, height), (height, width)}
    return sorted(found, key=lambda size: abs(math.log(size[0] / size[1])))


def nearest_size(size: Size, sizes: Sequence[Size]) -> Size:
    """That of the sizes whose shape is nearest to a picture's; of two alike the larger one."""

    def difference(one: Size) -> tuple[float, int]:
        return abs(math.log(one[0] / one[1] * size[1] / size[0])), -one[0] * one[1]

    return min(sizes, key=difference)


def size_of(ratio: str, native: Size, multiple: int) -> Size:
    """Width and height for a shape such as "16:9".

    Args:
        native: what the base was trained at.

    Raises:
        ValueError: it is no shape, or flatter or taller than 4 : 1.
    """
    sides = ratio.split(":")
    if len(sides) != 2 or not all(side.strip().isascii() and side.strip().isdigit() for side in sides):
        raise ValueError(f"the shape is {ratio!r}, expected two numbers such as 16:9")
    width, height = (int(side) for side in sides)
    if not 0 < width <= 2 * MOST_STRETCHED * height or height > 2 * MOST_STRETCHED * width:
        raise ValueError(f"the shape is {ratio!r}, expected 1:4 to 4:1")
    return nearest_size((width, height), bucket_sizes(min(native), multiple))
