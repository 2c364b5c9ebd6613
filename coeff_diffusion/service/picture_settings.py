"""Settings out of a picture: how it was drawn, in terms of what the page can set and of the library's subjects."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..families.layout import layout_of
from ..images.drawing_settings import SETTINGS
from ..images.files import find_drawing
from ..images.generation_info import Parameters
from ..inference.fitting import fitted, near
from ..inference.limits import MAX_SUBJECTS, limits_of
from ..inference.replay import Base, Replay
from ..inference.request import DrawRequest
from ..inference.samplers import ZERO_SNR_GUIDANCE_RESCALE, has_zero_terminal_snr
from ..inference.studio import Studio
from ..sources.image_card import called
from ..sources.library import Library
from ..sources.open import extract_any, open_subject, picture_kind
from ..subject.coefficients import Coefficients
from ..subject.errors import CoefficientsError, shown
from ..subject.layer_strengths import STRENGTH_REACH
from .loading import SubjectLoader
from .messages import by_name


@dataclass(frozen=True)
class Settings:
    """What a picture gives back.

    Attributes:
        request: how it was drawn, within what can be set on the page; None where the picture does not say.
        subjects: strength of its subjects, by the names they are listed under in the library.
        notes: sentences for the user: what joined the library, and what could not be restored.
    """

    request: DrawRequest | None
    subjects: dict[str, float]
    notes: list[str]


def restored(loader: SubjectLoader, file: str | Path) -> Settings:
    """Read a picture; the subjects that it carries and that fit the base join the library.

    Raises:
        PictureError, CoefficientsError: it is damaged, or carries neither settings nor a subject.
        StudioError: its place in its batch cannot be.
    """
    path = Path(file)
    with by_name(path):
        kind = picture_kind(path)
        drawn = find_drawing(path) if kind and kind.picture == "PNG" else None
        carried = extract_any(path)
        if drawn is None and not carried:
            carried = [open_subject(path)]  # in a QR code, or the error that says what the picture lacks
        replay = Replay.of(path, drawn, carried, Path(path.name)) if drawn else None
        request = None if replay is None else _alone(replay)
    joined, left_out, notes = _join(loader, carried)
    if replay is None or request is None:
        return Settings(None, dict.fromkeys(joined[:MAX_SUBJECTS], 1.0), [*notes, "it does not say how it was drawn"])
    subjects, more = _subjects(replay.parameters, loader.library, left_out)
    notes += more
    other_base = replay.other_base(Base.of(loader.studio.pipe))
    if other_base:
        notes.append(f"{other_base}; it will not be the same picture")
    else:
        notes += _not_settable(request, loader.studio)
    notes += [*replay.notes, *replay.other_upscaler(loader.studio.upscaler)]
    if replay.lacks_start:
        notes.append("it was drawn from a picture that it does not carry; put that one in to draw it again")
        request = request.without("start")
    if replay.lacks_control:
        notes.append(f"it was held to a picture that it does not carry, by {replay.controlnet}")
        request = request.without("control")
    elif replay.control is not None:
        notes.append(f"name {replay.controlnet} beside its control picture to draw it again")
    if replay.refiner is not None and loader.studio.family.refiner:
        notes.append(f"name {replay.refiner} to draw it again")
    elif replay.refiner is not None:
        notes.append(f"it was finished by {replay.refiner}; this base has none")
        request = request.without("refiner")
    request, more = _within_reach(replace(request, subjects=subjects), loader.studio)
    return Settings(request, dict(request.subjects), notes + more)


def _alone(replay: Replay) -> DrawRequest:
    """The request for this one picture, also where it was drawn as one of a batch."""
    request, place = replay.request()
    return request if place is None else replace(request, seed=replay.parameters.seed, batch_size=1)


# --- subjects ---------------------------------------------------------------------------------------------------------


def _join(loader: SubjectLoader, carried: Sequence[Coefficients]) -> tuple[list[str], list[Coefficients], list[str]]:
    """The library's names of subjects, which join it where they are new; those that do not fit the base; and notes."""
    names, left_out, notes = [], [], []
    for subject in carried:
        try:
            layout_of(loader.studio.pipe).check_fits(subject)
        except CoefficientsError as error:
            left_out.append(subject)
            notes.append(f"the subject {called(subject)} in it is left out: {error}")
            continue
        name = loader.library.name_of(subject)
        if name is None:
            name = loader.library.put(subject, subject.info.name or subject.info.trigger)
            notes.append(f"its subject joined the library as {name!r}")
        names.append(name)
    return names, left_out, notes


def _subjects(
    drawn: Parameters, library: Library, left_out: Sequence[Coefficients]
) -> tuple[dict[str, float], list[str]]:
    """The strengths of the subjects of a picture by the library's names, and notes on those that are missing."""
    there, missing, notes = library.subjects(), [], []
    strengths: dict[str, float] = {}
    for name, strength in drawn.subjects.items():
        digits = drawn.hashes.get(name)
        if digits and any(subject.sha256.startswith(digits) for subject in left_out):
            continue  # said already
        listed = _listed(there, name, digits)
        if listed is None:
            missing.append(f"{shown(name)} ({digits or 'its hash is not recorded'})")
        else:
            strengths[listed] = strengths.get(listed, 0.0) + strength  # of one file twice: subjects add up
        if listed is not None and digits is None:
            notes.append(f"it does not record the hash of {shown(name)}; it is taken to be the library's {listed!r}")
    if missing:
        notes.append(
            f"it was drawn with {', '.join(missing)}, which it does not carry and the library does not have; add the "
            "file and drop the picture again"
        )
    return strengths, notes


def _listed(there: Mapping[str, Coefficients], name: str, digits: str | None) -> str | None:
    """The library's name of a subject: told by its hash, or by its name where a picture does not record the hash."""
    fitting = [
        listed
        for listed, subject in there.items()
        if (subject.sha256.startswith(digits) if digits else name in (listed, subject.info.name))
    ]
    return min(fitting, key=lambda listed: (listed != name, there[listed].info.name != name), default=None)


# --- settings ---------------------------------------------------------------------------------------------------------


def _not_settable(request: DrawRequest, studio: Studio) -> list[str]:
    """What was asked for in a way that the page does not offer."""
    notes = []
    if request.gate is not None:
        notes.append(f"its subjects were told to act by the gate {request.gate!r}; here each acts as it was saved")
    scale = studio.usual["guidance_scale"] if request.guidance_scale is None else request.guidance_scale
    guided = scale > 1 and has_zero_terminal_snr(studio.pipe.scheduler)
    rescale = ZERO_SNR_GUIDANCE_RESCALE if guided else 0.0
    if request.guidance_rescale != rescale:
        notes.append(f"its guidance was rescaled by {request.guidance_rescale:g}; here it is {rescale:g}")
    return notes


def _within_reach(request: DrawRequest, studio: Studio) -> tuple[DrawRequest, list[str]]:
    """The request as the controls of the page can show it, and a note on each value that had to change."""
    found, notes = fitted(studio, request, lambda one: limits_of(studio, one), STRENGTH_REACH)
    changes: dict[str, Any] = {"scheduler": found.scheduler or studio.schedulers[0]}
    for one in SETTINGS.values():
        if not one.label:  # it has no control
            if one.name != "layers":
                changes[one.name] = one.default
            if getattr(found, one.name) != one.default and one.name not in ("gate", "guidance_rescale", "layers"):
                notes.append(f"its {one.called} was {getattr(found, one.name)}; here it is {one.default}")
    kept = list(request.subjects.items())[:MAX_SUBJECTS]
    if len(kept) < len(request.subjects):
        notes.append(f"it was drawn with {len(request.subjects)} subjects; here there is room for {MAX_SUBJECTS}")
    subjects = {name: near(f"strength of {name!r}", strength, STRENGTH_REACH, 1, notes) for name, strength in kept}
    return replace(found, **changes, subjects=subjects), notes
