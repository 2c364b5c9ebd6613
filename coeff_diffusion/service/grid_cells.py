"""What stands in each cell of a grid: which subject, how strongly, from which prompt."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from ..inference.prompt_syntax import syntax_notes
from ..inference.request import DrawRequest, StudioError
from ..inference.trigger import contains_trigger, replace_trigger
from ..subject.coefficients import Coefficients
from ..subject.errors import cut

Kind = Literal["subjects", "steps", "prompts"]
MAX_LABEL = 120  # characters of a prompt beside its row
MAX_ROWS = MAX_COLUMNS = 8  # the base's column is one of them


@dataclass(frozen=True)
class GridRequest:
    """What to lay out against what.

    Attributes:
        kind: "subjects" against strengths, training "steps" of one subject against strengths, or "prompts" against
            subjects (the first of each pair goes down, the second across).
        subjects: names of subjects of the library; one for "steps".
        strengths: one for "prompts".
        prompts: one, but for "prompts".
        steps: the saved training steps, for "steps".
        with_base: whether the first column is the base's alone.
        settings: what all cells share: the seed, sampler and so on. Its prompt, subjects and batch size do not count.
    """

    kind: Kind
    subjects: Sequence[str]
    strengths: Sequence[float]
    prompts: Sequence[str]
    steps: Sequence[int] = ()
    with_base: bool = True
    settings: DrawRequest = field(default_factory=lambda: DrawRequest(""))

    @property
    def axes(self) -> tuple[tuple[str, list[str]], tuple[str, list[str]]]:
        """Down and across: what changes, and what it is in each row or column (the base's not among them)."""
        subjects = ("subject", list(self.subjects))
        if self.kind == "prompts":
            return ("prompt", list(self.prompts)), subjects
        down = subjects if self.kind == "subjects" else ("training step", [str(step) for step in self.steps])
        return down, ("strength", [f"{strength:g}" for strength in self.strengths])

    def check(self) -> None:
        """Whether there is something in every row and column, and not too much.

        Raises:
            StudioError: naming everything that is wrong.
        """
        (down, rows), (across, columns) = self.axes
        given = {"subject": self.subjects, "strength": self.strengths, "prompt": self.prompts}
        wrong = []
        for what, values in {**given, **({down: rows} if self.kind == "steps" else {})}.items():
            if not values:
                wrong.append(f"there is no {what}; give at least one")
            elif what not in (down, across) and len(values) > 1:
                wrong.append(f"a grid of {down}s and {across}s takes one {what}, got {len(values)}")
        if len(rows) > MAX_ROWS:
            wrong.append(f"a grid has at most {MAX_ROWS} rows; give fewer {down}s than {len(rows)}")
        if len(columns) + self.with_base > MAX_COLUMNS:
            base = " beside the base" if self.with_base else ""
            wrong.append(f"a grid has at most {MAX_COLUMNS} columns; give fewer {across}s than {len(columns)}{base}")
        wrong += [f"a strength is {s}, expected a finite number" for s in self.strengths if not math.isfinite(s)]
        if wrong:
            raise StudioError("; ".join(wrong))


@dataclass(frozen=True)
class Actor:
    """A subject, or a training step of one, that takes part in a grid.

    Two of one trigger cannot be loaded at once where it is a learned word, so each has a word of its own in the studio.

    Attributes:
        name: what the library lists the subject under.
        number: tells the actors of a grid apart.
        step: the training step, where it is not the subject's file.
    """

    name: str
    subject: Coefficients
    number: int
    step: int | None = None

    @property
    def label(self) -> str:
        """What its row or column is called."""
        return self.name if self.step is None else f"step {self.step}"

    @property
    def trigger(self) -> str:
        """The words that call it up; empty where it acts on every prompt."""
        return self.subject.info.trigger

    @property
    def key(self) -> str:
        """What it is called in the studio: a word that no prompt holds."""
        return f"exploredsubject{self.number}"

    @cached_property
    def loaded(self) -> Coefficients:
        """The subject as it is loaded. Without a learned word its trigger is read as text and stays what it is."""
        if not self.subject.tokens:
            return self.subject
        return self.subject.replace(info=replace(self.subject.info, trigger=self.key))

    def reads(self, text: str) -> str:
        """A prompt of the user as the loaded subject reads it."""
        return replace_trigger(text, self.trigger, self.key) if self.subject.tokens else text


@dataclass(frozen=True)
class Cell:
    """One picture of a grid.

    Attributes:
        request: what to draw, in the user's words and names: drawn alone, it gives the same picture.
        actor: who takes part; None is the base alone.
    """

    label: str
    request: DrawRequest
    actor: Actor | None = None

    @property
    def inner(self) -> DrawRequest:
        """What to draw in the words and names of the studio."""
        if self.actor is None:
            return self.request
        return replace(
            self.request,
            prompt=self.actor.reads(self.request.prompt),
            negative_prompt=self.actor.reads(self.request.negative_prompt),
            subjects={self.actor.key: self.request.subjects[self.actor.name]},
        )

    def in_words(self, note: str) -> str:
        """A note on `inner` in the user's words."""
        if self.actor is None:
            return note
        own = note.replace(f"of {self.actor.key!r}", f"of {self.actor.name!r}")
        return own.replace(self.actor.key, self.actor.trigger)


def lay_out(request: GridRequest, actors: Sequence[Actor]) -> list[list[Cell]]:
    """The cells, row by row."""
    if request.kind == "prompts":
        return [list(_row(request, prompt, actors, actors)) for prompt in request.prompts]
    return [list(_row(request, own_prompt(request.prompts[0], one, actors), [one], actors)) for one in actors]


def labels(request: GridRequest, actors: Sequence[Actor]) -> tuple[list[str], list[str]]:
    """What is written beside each row and above each column."""
    down = across = [actor.label for actor in actors]
    if request.kind == "prompts":
        down = [cut(prompt, MAX_LABEL) for prompt in request.prompts]
    else:
        across = [f"strength {strength:g}" for strength in request.strengths]
    return down, ["base"] * request.with_base + across


def notes(request: GridRequest, actors: Sequence[Actor]) -> list[str]:
    """What is probably not meant: one sentence each, for the user."""
    found = []
    for actor in actors:
        info, gate = actor.subject.info, request.settings.gate or actor.subject.info.gate
        own = [own_prompt(prompt, actor, actors) for prompt in request.prompts]
        idle = sum(not contains_trigger(prompt, info.trigger) for prompt in own) if info.trigger else 0
        if idle and gate == "trigger":
            where = "" if len(own) == 1 else f" in {idle} of {len(own)} prompts"
            found.append(f"{actor.name!r} does not act{where}: its words are {info.trigger!r}, which are not there")
        if request.with_base and info.trigger and idle < len(own) and not info.class_word:
            found.append(
                f"{actor.name!r} does not say what kind of thing it is: the base reads {info.trigger!r} as text"
            )
    return [*dict.fromkeys(found), *syntax_notes(*request.prompts, request.settings.negative_prompt)]


def read_strengths(text: str) -> list[float]:
    """Strengths as someone types them: "0, 0.5, 1".

    Raises:
        StudioError: something in it is no number.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    try:
        return [float(part) for part in parts]
    except ValueError as error:
        raise StudioError(f"the strengths are {cut(text)!r}, expected numbers and commas, such as 0, 0.5, 1") from error


def spread(steps: Sequence[int], count: int = 4) -> list[int]:
    """A few of the steps, evenly spread, the last among them and, if there is more than one, the first."""
    if len(steps) <= count:
        return list(steps)
    return [steps[round(i * (len(steps) - 1) / (count - 1))] for i in range(count)]


def own_prompt(prompt: str, actor: Actor, actors: Sequence[Actor]) -> str:
    """The prompt with the actor's trigger: where it holds only that of another, its own takes the place.

    So one prompt serves subjects of different triggers.
    """
    if not actor.trigger or contains_trigger(prompt, actor.trigger):
        return prompt
    others = (other.trigger for other in actors if other.trigger and contains_trigger(prompt, other.trigger))
    found = next(others, None)
    return prompt if found is None else replace_trigger(prompt, found, actor.trigger)


def _row(request: GridRequest, prompt: str, shown: Sequence[Actor], actors: Sequence[Actor]) -> Iterator[Cell]:
    settings = replace(request.settings, batch_size=1)
    if request.with_base:
        plain = _plain(prompt, actors)
        yield Cell(f"base: {cut(plain)}", replace(settings, prompt=plain, subjects={}))
    for actor in shown:
        own = own_prompt(prompt, actor, actors)
        for strength in request.strengths:
            what = f": {cut(own)}" if request.kind == "prompts" else f" at {strength:g}"
            asked = replace(settings, prompt=own, subjects={actor.name: float(strength)})
            yield Cell(f"{actor.label}{what}", asked, actor)


def _plain(prompt: str, actors: Sequence[Actor]) -> str:
    """The prompt in words the base knows: every trigger becomes the kind of thing it calls up, where that is known."""
    for actor in actors:
        if actor.trigger and actor.subject.info.class_word:
            prompt = replace_trigger(prompt, actor.trigger, actor.subject.info.class_word)
    return prompt
