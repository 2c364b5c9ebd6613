"""How a run talks to the outside: reports, an honest estimate of the time left, and how to ask it to stop."""

import os
import statistics
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..families.usual import USUAL
from ..inference.request import Picture
from ..subject.adapter import Adapter
from ..subject.coefficients import Coefficients
from ..subject.errors import UserError
from .config import TrainConfig
from .model import Learner
from .probe import Effect
from .run_folder import RunFolder
from .signals import requests_to_end
from .validation import PASSES, probe_size


class TrainingError(UserError, RuntimeError):
    """Training cannot go on. The message says what happened, at which step, and what is saved."""


class TrainingCancelled(UserError):  # noqa: N818 - not an error: the caller asked for it
    """Stopped before the first step; there is nothing to save."""


@dataclass(frozen=True)
class StepReport:
    """One step is done.

    Attributes:
        loss: of this step's pictures; noisy from step to step.
        learning_rate: of the coefficients (of the token where it alone is trained).
        seconds_left: an estimate for the rest of the run, measurements and previews included.
        validation_losses: on fixed noise, by step, as far as they were measured; that of the base is at 0.
    """

    step: int
    total: int
    loss: float
    learning_rate: float
    seconds_left: float
    validation_losses: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class PreviewReport:
    """A preview is drawn and saved: the same seeds at every step."""

    step: int
    pictures: list[Picture]
    paths: list[Path]


@dataclass(frozen=True)
class TrainResult:
    """What a run leaves.

    Attributes:
        path: the output folder.
        losses: of every step.
        stopped: whether it ended before its last step because someone asked for it.
        validation_losses: on fixed noise, by step, as far as they were measured; that of the base is at 0.
        saved: the subject's file, where it is not in the output folder.
    """

    path: Path
    coefficients: Coefficients
    losses: list[float]
    effect: Effect
    stopped: bool = False
    validation_losses: Mapping[int, float] = field(default_factory=dict)
    saved: Path | None = None

    @property
    def file(self) -> Path:
        """The subject's file."""
        return self.saved or RunFolder(self.path).coefficients


class Clock:
    """Time left, from how long the latest steps, measurements and previews took.

    Steps count by their median, so that neither the slow first one nor a pause of the machine misleads.
    """

    def __init__(self) -> None:
        self.steps: deque[float] = deque(maxlen=20)
        self.previews: deque[float] = deque(maxlen=3)
        self.validations: deque[float] = deque(maxlen=3)

    def stepped(self, seconds: float) -> None:
        """A step took this long."""
        self.steps.append(seconds)

    def previewed(self, seconds: float) -> None:
        """A preview took this long."""
        self.previews.append(seconds)

    def validated(self, seconds: float) -> None:
        """A measurement took this long."""
        self.validations.append(seconds)

    def seconds_left(self, step: int, config: TrainConfig) -> float:
        """Seconds until the last step is done, after `step` steps."""
        per_step = statistics.median(self.steps) if self.steps else 0.0
        left = per_step * (config.max_train_steps - step)
        if every := config.validate_every_n_steps:
            done = -(-step // every) if step == config.max_train_steps else step // every
            left += (-(-config.max_train_steps // every) - done) * self._per_validation(per_step, config)
        if not config.validation_steps:
            return left
        every = config.validation_steps  # the preview of this very step is still to come, also that of step 0
        previews = -(-config.max_train_steps // every) - (step - 1) // every
        return left + previews * self._per_preview(per_step, config)

    def _per_validation(self, per_step: float, config: TrainConfig) -> float:
        if self.validations:
            return statistics.median(self.validations)
        return per_step * probe_size(config) / (PASSES * config.pictures_per_step)

    def _per_preview(self, per_step: float, config: TrainConfig) -> float:
        if self.previews:
            return statistics.median(self.previews)
        # Before the first one: a picture is two forward passes per denoising step.
        passes = 2 * USUAL.steps * config.num_validation_images
        return per_step * passes / (PASSES * config.pictures_per_step)


class StopRequest:
    """Whether someone wants the run to end: by a signal, where this is the main thread, or by `should_stop`.

    As a context manager it takes Ctrl-C, SIGTERM and SIGHUP over. However many come, none takes away what is learned.
    """

    def __init__(self, should_stop: Callable[[], bool] | None, say: Callable[[str], None]) -> None:
        self.should_stop, self.say = should_stop, say
        self.interrupted = False
        self._taken = ExitStack()

    def asked(self) -> bool:
        """Whether to stop."""
        return self.interrupted or (self.should_stop is not None and self.should_stop())

    def __enter__(self) -> "StopRequest":
        self._taken.enter_context(requests_to_end(self._interrupt))
        return self

    def __exit__(self, *_: object) -> None:
        self._taken.close()

    def _interrupt(self, number: int) -> None:
        line = "stopping after this step and saving what is learned"
        if self.interrupted:
            line = f"still saving what is learned (kill -9 {os.getpid()} ends at once and loses it)"
        self.interrupted = True
        with suppress(RuntimeError):  # the signal came in the middle of a line that is being written
            self.say(line)


def unbroken(say: Callable[[str], None]) -> Callable[[str], None]:
    """The same, but a terminal or a pipe that is gone ends no training."""

    def tell(line: str) -> None:
        with suppress(OSError):
            say(line)

    return tell


@contextmanager
def own_random_state() -> Iterator[None]:
    """Give the caller's random generators back as they were, whatever is seeded inside."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        yield


def clock_time(seconds: float) -> str:
    """75 -> "1:15"; 3700 -> "1:01:40"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


# --- words ------------------------------------------------------------------------------------------------------------


def progress_bar(what: str, done: int, total: int, show: bool) -> Any:
    """A bar whose estimate is ours: tqdm's own counts previews as slow steps."""
    shape = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
    return tqdm(total=total, initial=done, desc=what, disable=not show, bar_format=shape)


def intent(config: TrainConfig, learner: Learner, base: str, pictures: int) -> str:
    """What a run is about to do, in a sentence."""
    learned = []
    for coefficients, where in ((learner.coefficients, "attention"), (learner.text_coefficients, "text encoder")):
        if coefficients:
            values = sum(parameter.numel() for parameter in coefficients.values())
            learned.append(f"{values:,} coefficients of {len(coefficients)} {where} layers")
    if learner.tokens:
        values = sum(token.numel() for token in learner.tokens.values())
        learned.append(f"{values:,} values of the trigger's embedding")
    if learner.stage_tokens:
        values = sum(token.numel() for token in learner.stage_tokens.values())
        stages = len(learner.stage_tokens)
        learned.append(f"{values:,} of what {stages} stage{'s read' if stages > 1 else ' reads'} there")
    if learner.adapter:
        values = sum(parameter.numel() for parameter in learner.adapter.parameters.values())
        learned.append(f"{values:,} of an adapter ({learner.adapter.kind})")
    return (
        f"teaching {base!r} the {config.class_word} {config.trigger!r}: {', '.join(learned)}, from {pictures} "
        f"pictures at {config.resolution} pixels, {config.max_train_steps} steps on {learner.device}"
    )


def outcome(
    step: int,
    config: TrainConfig,
    effect: Effect,
    file: Path,
    kept: int | None = None,
    is_early: bool = False,
    adapter: Adapter | None = None,
) -> list[str]:
    """What a run has done, in a few lines, with advice where it learned nothing.

    Args:
        step: steps done.
        kept: the step that was saved.
        is_early: whether it ended early because nothing improved.
        adapter: that lies beside the file.
    """
    total, patience = config.max_train_steps, config.early_stopping_patience
    lines = []
    if is_early:
        lines.append(f"ended at step {step} of {total}: no lower validation loss in {patience} measurements")
    elif step < total:
        lines.append(f"stopped at step {step} of {total}; what was learned so far is saved")
    if kept is not None and kept != step:
        lines.append(f"the subject is that of step {kept}, which has the lowest validation loss")
    pictures = "pictures of the subject that it was not trained on" if config.holds_out else "the subject's pictures"
    gain = f" ({effect.improvement:+.1%} better)" if effect.learned else ""
    lines.append(
        f"loss on {pictures} {effect.loss_before:.4f} -> {effect.loss_after:.4f}{gain}; predictions changed by "
        f"{effect.change:.1%}"
    )
    if advice := effect.advice():
        lines.append(f"warning: {advice}")
    lines.append(f"saved {file} ({file.stat().st_size:,} bytes)")
    if adapter is not None:
        lines.append(
            f"saved {file.with_name(adapter.kind.file)} ({len(adapter.data):,} bytes): the adapter, {adapter.kind}"
        )
    return lines
