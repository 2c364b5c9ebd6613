"""Requests of many users -> as few batches as draw them: what differs in a batch is prompts, seeds and subjects."""

import traceback
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from ..families.layout import layout_of
from ..inference.limits import check_limits
from ..inference.request import DrawRequest, Picture
from ..inference.studio import Studio
from ..inference.trigger import contains_trigger, triggers_clash
from ..service.loading import SubjectLoader
from ..service.messages import by_name
from ..sources.library import Library
from ..sources.open import open_subject
from ..subject.coefficients import Coefficients
from ..subject.errors import UserError, shown
from ..subject.user_file import version_of

CACHED = 1024  # subjects whose files are not read again while they are the same


class UnknownSubjectError(UserError):
    """A request names a subject that the library does not have."""


class DrawingFailedError(Exception):
    """A picture could not be drawn, and that is not the user's doing."""


@dataclass(frozen=True)
class Drawn:
    """What became of a request.

    Attributes:
        pictures: as many as it asked for, seeds counting up.
        notes: sentences for the user about what was probably not meant.
    """

    pictures: list[Picture]
    notes: list[str]


@dataclass(frozen=True)
class _Row:
    """One picture of a request, and its subjects by name; `user` is the request's number."""

    user: int
    request: DrawRequest
    subjects: Mapping[str, Coefficients]


@dataclass
class _Batch:
    key: Hashable
    rows: list[_Row] = field(default_factory=list)

    @property
    def subjects(self) -> dict[str, Coefficients]:
        return {name: subject for row in self.rows for name, subject in row.subjects.items()}

    def takes(self, key: Hashable, row: _Row, most: int) -> bool:
        """Whether a picture may be drawn with these, and be what it is alone."""
        return key == self.key and len(self.rows) < most and all(_apart(row, other) for other in self.rows)


def _apart(one: _Row, other: _Row) -> bool:
    """Whether no prompt of one row says what calls up a subject of the other alone."""
    return not any(
        name not in reader.subjects and subject.tokens and _says(reader, subject.info.trigger)
        for reader, owner in ((one, other), (other, one))
        for name, subject in owner.subjects.items()
    )


def _says(row: _Row, trigger: str) -> bool:
    texts = (row.request.prompt, row.request.negative_prompt, row.request.prompt_2)
    named = [subject.info.trigger for subject in row.subjects.values()]
    return any(contains_trigger(text, trigger) for text in texts) or any(triggers_clash(trigger, own) for own in named)


class SharedBatches:
    """Draws with subjects of a library, several users' pictures at once.

    Args:
        studio: of which nobody else makes use.
        pictures_at_once: the most in a batch.
    """

    def __init__(self, studio: Studio, library: Library, pictures_at_once: int = 8) -> None:
        self.studio, self.library, self.most = studio, library, pictures_at_once
        self.loader = SubjectLoader(studio, library)
        self.layout = layout_of(studio.pipe)
        self._read = lru_cache(CACHED)(self._open)

    def draw(self, requests: Sequence[DrawRequest]) -> list[Drawn | Exception]:
        """An answer for each request. What is wrong with one, or goes wrong with it, concerns no other.

        Returns:
            A `UserError` where a request cannot be drawn as asked, a `DrawingFailedError` where drawing it failed.
        """
        answers: dict[int, Drawn | Exception] = {}
        wanted: dict[int, tuple[DrawRequest, dict[str, Coefficients]]] = {}
        for number, request in enumerate(requests):
            try:
                wanted[number] = self._checked(request)
                answers[number] = Drawn([], [])
            except Exception as error:  # noqa: BLE001 - whatever it is, the others are to be drawn
                answers[number] = _failed(error)
        for batch in self._batches(wanted):
            self._draw(batch, answers)
        return [answers[number] for number in range(len(requests))]

    def _checked(self, request: DrawRequest) -> tuple[DrawRequest, dict[str, Coefficients]]:
        """A request with every open choice made, and its subjects.

        Raises:
            UserError: it cannot be drawn.
        """
        files = self.library.find() if request.subjects else {}
        if unknown := [name for name in request.subjects if name not in files]:
            raise UnknownSubjectError(f"there is no subject {shown(unknown[0])}; /subjects lists those that there are")
        check_limits(self.studio, request)
        subjects = {}
        for name in request.subjects:
            with by_name(files[name]):
                subjects[name] = self._read(files[name], version_of(files[name].stat()))
        return self.studio.resolved(request, subjects), subjects

    def _open(self, path: Path, version: tuple[int, ...]) -> Coefficients:
        """A subject that fits the base; see `SubjectLoader` for what else could be wrong."""
        subject = open_subject(path)
        self.layout.check_fits(subject)
        return subject

    def _batches(self, wanted: Mapping[int, tuple[DrawRequest, dict[str, Coefficients]]]) -> list[_Batch]:
        batches: list[_Batch] = []
        for number, (request, subjects) in wanted.items():
            assert request.seed is not None
            for i in range(request.batch_size):
                row = _Row(number, replace(request, seed=request.seed + i, batch_size=1), subjects)
                key = self.studio.batch_key(row.request)
                batch = next((one for one in batches if one.takes(key, row, self.most)), None)
                if batch is None:
                    batches.append(batch := _Batch(key))
                batch.rows.append(row)
        return batches

    def _draw(self, batch: _Batch, answers: dict[int, Drawn | Exception]) -> None:
        """Draw a batch; where that fails, each user's part of it alone."""
        rows = [row for row in batch.rows if isinstance(answers[row.user], Drawn)]
        users = list(dict.fromkeys(row.user for row in rows))
        if not rows:
            return
        try:
            with self.loader.using((), batch.subjects) as studio:
                notes = [studio.notes(row.request) for row in rows]
                pictures = studio.draw_batch([row.request for row in rows])
        except Exception as error:  # noqa: BLE001 - whatever it is, the others are to be drawn
            if len(users) > 1:
                for user in users:
                    self._draw(_Batch(batch.key, [row for row in rows if row.user == user]), answers)
            else:
                answers[users[0]] = _failed(error)
            return
        for row, picture, own in zip(rows, pictures, notes, strict=True):
            drawn = answers[row.user]
            assert isinstance(drawn, Drawn)
            drawn.pictures.append(picture)
            drawn.notes[:] = own


def _failed(error: Exception) -> Exception:
    """What a user is told of an error, which is on stderr where it is not for users."""
    if isinstance(error, UserError):
        return error
    traceback.print_exception(error)
    return DrawingFailedError(f"drawing failed: {type(error).__name__}")
