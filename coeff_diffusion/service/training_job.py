"""One training as it can be looked at from anywhere while it runs, waits or is over."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..training.config import TrainConfig
from ..training.reports import PreviewReport, StepReport, clock_time
from ..training.validation import best_step

State = Literal["queued", "running", "done", "stopped", "failed"]


@dataclass
class TrainingJob:
    """A training and how far it is. Written by the thread that trains, read by anyone: lists only grow.

    Attributes:
        number: of this process's trainings, from 1.
        name: what the library lists the subject under.
        config: its settings, resolved.
        losses: of every step so far.
        validation: the losses that were measured on fixed noise, by step.
        previews: the files of the pictures drawn so far, by step.
        messages: what the trainer said.
        seconds_left: its estimate; None before the first step.
        error: why it failed, in one sentence.
        advice: what it did not reach, in one sentence; empty where it learned the subject.
        kept_step: the step of the timeline that is to stay the subject when the training is over.
        stop: set when somebody wants it to end.
    """

    number: int
    name: str
    config: TrainConfig
    state: State = "queued"
    losses: list[float] = field(default_factory=list)
    validation: Mapping[int, float] = field(default_factory=dict)
    previews: dict[int, list[Path]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    seconds_left: float | None = None
    error: str = ""
    advice: str = ""
    kept_step: int | None = None
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def folder(self) -> Path:
        """Where it leaves everything."""
        return Path(str(self.config.output_dir))

    @property
    def over(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in ("done", "stopped", "failed")

    @property
    def drawable(self) -> bool:
        """Whether there is a subject of it to draw with."""
        return self.state in ("done", "stopped") and self.step > 0 and not self.advice

    @property
    def step(self) -> int:
        """Steps done."""
        return len(self.losses)

    def say(self, line: str) -> None:
        """Take a line of the trainer."""
        self.messages.append(line)

    def stepped(self, report: StepReport) -> None:
        """A step is done."""
        self.seconds_left = report.seconds_left
        self.losses.append(report.loss)
        self.validation = report.validation_losses

    def previewed(self, report: PreviewReport) -> None:
        """Pictures are drawn."""
        self.previews = {**self.previews, report.step: report.paths}

    def status(self, place: int) -> str:
        """How far it is, in one sentence.

        Args:
            place: in the line, where it waits.
        """
        total, use = self.config.max_train_steps, f"write “{self.config.instance_prompt}” in a prompt"
        match self.state:
            case "queued":
                return f"{self.name} waits, number {place} in line"
            case "failed":
                return f"{self.name} failed at step {self.step} of {total}: {self.error}"
            case "stopped" if not self.step:
                return f"{self.name} was stopped before its first step; nothing is left of it"
            case "stopped":
                return f"{self.name} was stopped at step {self.step} of {total} and is in the library: {use}"
            case "done" if self.advice:
                return f"{self.name} has ended at step {self.step} of {total}, but {self.advice}"
            case "done" if self.step < total:
                return (
                    f"{self.name} has ended at step {self.step} of {total}, as nothing improved any more, and is in "
                    f"the library: {use}"
                )
            case "done":
                return f"{self.name} has learned all {total} steps and is in the library: {use}"
        if self.stop.is_set():
            return f"{self.name} stops after this step and saves what it has"
        if self.seconds_left is None:
            return f"{self.name} prepares: it reads the pictures before the first of {total} steps"
        return f"{self.name}: step {self.step} of {total}, {clock_time(self.seconds_left)} left"

    def report(self, place: int) -> dict[str, Any]:
        """The same for scripts."""
        return {
            "number": self.number,
            "name": self.name,
            "state": self.state,
            "place": place,
            "step": self.step,
            "total": self.config.max_train_steps,
            "loss": self.losses[-1] if self.losses else None,
            "validation_loss": self.validation[max(self.validation)] if self.validation else None,
            "best_step": best_step(self.validation),
            "seconds_left": self.seconds_left,
            "trigger": self.config.trigger,
            "error": self.error,
            "advice": self.advice,
        }
