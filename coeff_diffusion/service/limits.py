"""How far the controls of the page reach: a wider reach than anyone needs only invites to slip."""

import math

from ..images.drawing_settings import SETTINGS
from ..inference.request import DrawRequest, StudioError
from ..inference.studio import Studio
from ..subject.setting import Setting

MAX_SUBJECTS = 4
MAX_SIDE = 2048


def limits_of(studio: Studio, setting: Setting) -> tuple[float, float] | None:
    """From where to where the control of a setting goes; None where it is no slider.

    Sides of a picture go from 64 pixels, or what a smaller base was trained at, to four times the side that the base
    was trained at.
    """
    if setting.name not in ("width", "height"):
        return setting.reach
    multiple = studio.multiple
    least, most = min(64, *studio.size), max(*studio.size, min(4 * max(studio.size), MAX_SIDE))
    return math.ceil(least / multiple) * multiple, most - most % multiple


def check_limits(studio: Studio, request: DrawRequest) -> DrawRequest:
    """The request, if a machine that others share can be asked to draw it: scripts have no sliders that end somewhere.

    Raises:
        StudioError: it asks for too much; what no base could draw is said by `Studio.draw`.
    """
    wrong = []
    for one in SETTINGS.values():
        value, reach = getattr(request, one.name), limits_of(studio, one)
        if one.kind is int and reach and (value or 0) > reach[1]:  # of the rest no value takes longer than another
            wrong.append(f"{one.name} is {value}, expected at most {reach[1]:g}")
    if len(request.subjects) > MAX_SUBJECTS:
        wrong.append(f"there are {len(request.subjects)} subjects, expected at most {MAX_SUBJECTS}")
    if wrong:
        raise StudioError("; ".join(wrong))
    return request
