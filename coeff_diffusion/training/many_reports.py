"""What teaching many subjects leaves, and how far it is, in words."""

import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..subject.coefficients import Coefficients
from ..subject.errors import CoefficientsError, UserError
from .many_subjects import Wanted
from .reports import TrainResult, clock_time
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


@dataclass
class ManyResult:
    """What is left in the end.

    Attributes:
        path: the folder with the subjects, `<name>.safetensors` each.
        learned: the results of this run, by name.
        skipped: the files of subjects that were there before.
        failed: why a subject was not learned.
        stopped: whether someone asked to end it; the same call goes on.
    """

    path: Path
    learned: dict[str, TrainResult] = field(default_factory=dict)
    skipped: dict[str, Path] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    stopped: bool = False

    @property
    def files(self) -> dict[str, Path]:
        """All subjects that are there now, by name."""
        found = {**self.skipped, **{name: result.file for name, result in self.learned.items()}}
        return dict(sorted(found.items()))

    def table(self) -> list[str]:
        """A line for each subject that was asked for."""
        width = max(map(len, ("subject", *self.learned, *self.skipped, *self.failed)))
        lines = {name: f"is there already: {path.name}" for name, path in self.skipped.items()}
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


def differences(wanted: Wanted, file: Path) -> str:
    """What is other in a subject that is there than was asked for now; empty where nothing is."""
    config = wanted.config
    try:
        info = Coefficients.read(file).info
    except CoefficientsError as error:
        return f"it cannot be read ({error})"
    if config is None:
        return ""
    pairs = {
        "trigger": (info.trigger, config.trigger),
        "class_word": (info.class_word, config.class_word),
        "seed": (info.seed, config.seed),
        "instance_prompt": (info.instance_prompt, config.instance_prompt),
    }
    if not config.keep_best and not config.early_stopping_patience:
        pairs["max_train_steps"] = (info.train_steps, config.max_train_steps)
    return ", ".join(f"{name} was {was!r} and is {now!r}" for name, (was, now) in pairs.items() if was != now)


def sentence(error: BaseException) -> str:
    """What went wrong, on one line."""
    problems = getattr(error, "problems", None)
    text = " ".join("; ".join(problems).split() if problems else str(error).split()) or "no message"
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return text if isinstance(error, UserError | OSError) else f"{type(error).__name__}: {text}"
