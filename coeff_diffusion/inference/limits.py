"""How far the controls of the page reach, and what others may ask for: a wider reach than needed invites to slip."""

import math
from collections.abc import Collection
from dataclasses import replace

from ..images.drawing_settings import SETTINGS
from ..subject.setting import Setting
from .request import DrawRequest, StudioError
from .studio import Studio

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
        # Of the rest no value takes longer than another, but for the scale of a second pass.
        if one.kind is int and reach and (value or 0) > reach[1]:
            wrong.append(f"{one.name} is {value}, expected at most {reach[1]:g}")
    if request.hires_scale > (most := _most_scale(studio, request)):
        wrong.append(f"hires_scale is {request.hires_scale:g}, expected at most {most:g} at this size")
    if len(request.subjects) > MAX_SUBJECTS:
        wrong.append(f"there are {len(request.subjects)} subjects, expected at most {MAX_SUBJECTS}")
    if wrong:
        raise StudioError("; ".join(wrong))
    return request


def within_limits(
    studio: Studio, request: DrawRequest, place: int | None, chosen: Collection[str]
) -> tuple[DrawRequest, int | None, list[str]]:
    """What a picture asks for, held to what the page could ask for, and a note on each value that is another now.

    Pictures come from strangers, and may ask for all memory and for days.

    Args:
        place: of the picture in its batch, if it was drawn in one (see `Replay.request`). Batches of more pixels than
            the page's largest are not drawn again.
        chosen: fields that the user has set, which stay as they are.
    """
    notes, sides = [], {"width": studio.size[0], "height": studio.size[1]}
    for name in (*sides, "steps", "hires_steps"):
        one, value, most = SETTINGS[name], getattr(request, name), _most(studio, name)
        if name not in chosen and value is not None and value > most:
            request = replace(request, **{name: most})  # type: ignore[arg-type] # of no other field than these
            notes.append(f"its {one.called} was {value}; here it is {most}, unless you give --{one.flag} {value}")
    if "hires_scale" not in chosen and request.hires_scale > (scale := _most_scale(studio, request)):
        notes.append(
            f"its second pass was {request.hires_scale:g} times larger; here it is {scale:g}, unless you give "
            f"--hires_scale {request.hires_scale:g}"
        )
        request = replace(request, hires_scale=scale)
        request = request if request.has("hires_scale") else request.without("hires_scale")
    scale = request.hires_scale if 1 < request.hires_scale < math.inf else 1.0
    width, height = (int((getattr(request, name) or usual) * scale) for name, usual in sides.items())
    most = math.prod(_most(studio, name) for name in (*sides, "batch_size"))
    if place is not None and width * height * request.batch_size > most:
        notes.append(
            f"it was drawn with {request.batch_size - 1} others, too many at once for {width} x {height} pixels; here "
            "it is drawn alone, so its last bits may differ"
        )
        assert request.seed is not None
        request, place = replace(request, seed=request.seed + place, batch_size=1), None
    return request, place, notes


def _most_scale(studio: Studio, request: DrawRequest) -> float:
    """How many times larger a second pass may be: no side longer than a drawing in one pass may have."""
    sides = {"width": studio.size[0], "height": studio.size[1]}
    longest = min(_most(studio, name) / (getattr(request, name) or usual) for name, usual in sides.items())
    return min(SETTINGS["hires_scale"].high or 1, max(1.0, math.floor(100 * longest) / 100))


def _most(studio: Studio, name: str) -> int:
    return int((limits_of(studio, SETTINGS[name]) or (0, MAX_SIDE))[1])
