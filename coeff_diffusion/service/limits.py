"""How far the controls of the page reach: a wider reach than anyone needs only invites to slip."""

import math
from typing import NamedTuple

from ..inference.request import DrawRequest, StudioError
from ..inference.studio import Studio

MAX_SUBJECTS = 4
MAX_PICTURES = 4
REACH: dict[str, tuple[float, float]] = {"strength": (0, 2), "steps": (1, 100), "guidance": (1, 20)}
MAX_SIDE = 2048


class Sides(NamedTuple):
    """Which sizes of a picture can be chosen, in pixels."""

    least: int
    most: int
    multiple: int


def reach_of_sides(studio: Studio) -> Sides:
    """From 64 pixels, or what a smaller base was trained at, to four times the side that the base was trained at."""
    multiple = studio.multiple
    least, most = min(64, *studio.size), max(*studio.size, min(4 * max(studio.size), MAX_SIDE))
    return Sides(math.ceil(least / multiple) * multiple, most - most % multiple, multiple)


def check_reach(studio: Studio, request: DrawRequest) -> DrawRequest:
    """The request, if a machine that others share can be asked to draw it: scripts have no sliders that end somewhere.

    Raises:
        StudioError: it asks for too much; what no base could draw is said by `Studio.draw`.
    """
    wrong = []
    most = reach_of_sides(studio).most
    limits = {"steps": REACH["steps"][1], "batch_size": MAX_PICTURES, "width": most, "height": most}
    for name, limit in limits.items():
        if (getattr(request, name) or 0) > limit:
            wrong.append(f"{name} is {getattr(request, name)}, expected at most {limit:g}")
    if len(request.subjects) > MAX_SUBJECTS:
        wrong.append(f"there are {len(request.subjects)} subjects, expected at most {MAX_SUBJECTS}")
    if wrong:
        raise StudioError("; ".join(wrong))
    return request
