"""What teaching many subjects leaves, and how far it is, in words."""

import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..subject.coefficients import Coefficients
from ..subject.errors import UserError
from .probe import Effect
from .reports import clock_time
from .run_folder import RunFolder


@dataclass(frozen=True)
class ManyReport:
    """A step of some subjects is done.

    Attributes:
        done, total: steps of all subjects together; those of a subject that failed count as done.
        losses: of this step, by subject.
        seconds_left: an estimate.
    """

    done: int
    total: int
    losses: Mapping[str, float]
    seconds_left: float


@dataclass(frozen=True)
class Learned:
    """A subject that was learned.

    Attributes:
        losses: of every step.
        file: where it is now; an address, if that is no folder of this machine.
    """

    coefficients: Coefficients
    losses: list[float]
    effect: Effect
    file: Path | str


@dataclass
class ManyResult:
    """What is left in the end.

    Attributes:
        path: the folder with the subjects, `<name>.safetensors` each, or its address.
        learned: the results of this run, by name.
        skipped: the files of subjects that were there before.
        failed: why a subject was not learned.
        stopped: whether someone asked to end it; the same call goes on.
    """

    path: Path | str
    learned: dict[str, Learned] = field(default_factory=dict)
    skipped: dict[str, Path | str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    stopped: bool = False

    @property
    def files(self) -> dict[str, Path | str]:
        """All subjects that are there now, by name."""
        found = {**self.skipped, **{name: result.file for name, result in self.learned.items()}}
        return dict(sorted(found.items()))

    def fail(self, name: str, error: BaseException) -> str:
        """Note that a subject is not learned; returns the line that says so."""
        self.failed[name] = sentence(error)
        return f"{name}: FAILED: {self.failed[name]}"

    def table(self) -> list[str]:
        """A line for each subject that was asked for."""
        width = max(map(len, ("subject", *self.learned, *self.skipped, *self.failed)))
        lines = {name: f"is there already: {Path(path).name}" for name, path in self.skipped.items()}
        for name, result in self.learned.items():
            effect, steps = result.effect, result.coefficients.info.train_steps
            gain = f"{effect.loss_before:.4f} -> {effect.loss_after:.4f} ({effect.improvement:+.1%} better)"
            lines[name] = f"{result.coefficients.info.trigger!r}, {steps} steps, loss {gain}"
        lines |= {name: f"FAILED: {why}" for name, why in self.failed.items()}
        return [f"{name:<{width}}  {line}" for name, line in sorted(lines.items())]


@dataclass(frozen=True)
class SubjectRun(RunFolder):
    """The folder of one of many trainings, whose subject lies among the others: where it is, it is finished."""

    subject: Path

    @property
    def coefficients(self) -> Path:
        """The subject."""
        return self.subject

    @property
    def checkpoint_steps(self) -> list[int]:
        """The steps that it could go on from."""
        names = [path.stem.removeprefix("step_") for path in self.checkpoints.glob("step_*.safetensors")]
        return sorted(int(name) for name in names if name.isdecimal())


class Progress:
    """Steps that are left of all subjects, and how long they take."""

    def __init__(self) -> None:
        self.bar: Any = None
        self.left: dict[str, int] = {}  # steps by subject
        self.total = 0
        self.seconds: deque[float] = deque(maxlen=20)  # of a step of one subject

    def show(self, bar: Any, left: Mapping[str, int]) -> None:
        """From now on the bar of tqdm tells of these subjects."""
        self.bar, self.left, self.total = bar, dict(left), sum(left.values())

    def done(self, name: str, steps: int) -> None:
        """Steps of a subject were done before."""
        self.left[name] -= steps
        self._update()

    def ended(self, name: str) -> None:
        """No step of a subject is left."""
        if name in self.left:
            self.done(name, self.left[name])

    def stepped(self, left: Mapping[str, int], losses: Mapping[str, float], seconds: float) -> ManyReport:
        """A step is done.

        Args:
            left: steps that are left, of the subjects that took part.
        """
        self.seconds.append(seconds / max(1, len(left)))
        self.left |= left
        ahead = sum(self.left.values())
        report = ManyReport(self.total - ahead, self.total, losses, statistics.median(self.seconds) * ahead)
        if losses:
            mean = statistics.fmean(losses.values())
            time_left = clock_time(report.seconds_left)
            self.bar.set_postfix_str(f"{len(left)} at once, loss {mean:.4f}, {time_left} left", refresh=False)
        self._update()
        return report

    def _update(self) -> None:
        self.bar.n = self.total - sum(self.left.values())
        self.bar.refresh()


def starting_points(found: Mapping[str, list[int]], every: int) -> dict[str, int]:
    """Which step each subject of a batch goes on from; 0 is its beginning.

    A kill while checkpoints were being written leaves some of this step and some of the one before: all go on from
    the latter, for only together they compute the very same numbers again. Who is further ahead stays there.

    Args:
        found: the steps of each one's checkpoints.
        every: how many steps lie between two of them.
    """
    newest = {name: max(steps, default=0) for name, steps in found.items()}
    common = min(newest.values(), default=0)
    return {
        name: common if step - common <= every and common in (0, *found[name]) else step
        for name, step in newest.items()
    }


def sentence(error: BaseException) -> str:
    """What went wrong, on one line."""
    problems = getattr(error, "problems", None)
    text = " ".join("; ".join(problems).split() if problems else str(error).split()) or "no message"
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return text if isinstance(error, UserError | OSError) else f"{type(error).__name__}: {text}"
