"""What a run writes into its folder on the way, and what it finds there when it goes on."""

import errno
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from ..subject.atomic_write import atomic_write
from ..subject.coefficients import Coefficients
from .checkpoint import Checkpoint, CheckpointError, prune_checkpoints
from .config import TrainConfig
from .reports import TrainingError
from .run_folder import RunFolder
from .timeline import keep_adapter, load_timeline, save_timeline, subject_of_step


class Keeping:
    """The timeline, the checkpoints and the texts of one run.

    Args:
        output: where they lie.
        config: resolved settings.
        is_main: whether this process writes; the others of a run remember the same.

    Attributes:
        timeline: the subjects of the steps that are kept so far, without their adapters, which are on disk alone.
    """

    def __init__(self, output: RunFolder, config: TrainConfig, is_main: bool = True) -> None:
        self.output, self.config, self.is_main = output, config, is_main
        self.timeline: dict[int, Coefficients] = {}
        self._place: tuple[int, int] | None = None  # which folder that is, from when it is this run's

    def remember_folder(self) -> None:
        """The folder is this run's now: another one of the same name would be somebody else's."""
        self._place = self.output.place()

    def check_folder(self) -> None:
        """Raises OSError: the output folder is not there any more, or another has taken its place."""
        if self._place is not None and self.output.place() != self._place:
            raise FileNotFoundError(errno.ENOENT, "its folder was deleted, moved or replaced", str(self.output.path))

    def keeps(self, step: int, is_measured: bool) -> bool:
        """Whether the timeline has this step in a run that nobody stops.

        Args:
            is_measured: whether the subject is measured at this step.
        """
        every = self.config.timeline_steps
        return bool(every) and (step == self.config.max_train_steps or step % every == 0 or is_measured)

    def resume(self, step: int, is_measured: Callable[[int], bool]) -> None:
        """Remember the timeline up to this step.

        Args:
            is_measured: whether the subject is measured at a step.
        """
        if self.output.timeline.is_file():
            found = load_timeline(self.output.timeline)
            self.timeline = {at: kept for at, kept in found.items() if at <= step and self.keeps(at, is_measured(at))}

    def check_has(self, measured: Iterable[int]) -> None:
        """Raises CheckpointError: one of the steps that were measured, any of which may be the best, is not there."""
        kept = {
            step
            for step, subject in self.timeline.items()
            if subject.info.effect is not None
            and (not subject.info.adapter or self.output.adapter_of_step(step).is_file())
        }
        if lost := [step for step in measured if step and step not in kept]:
            raise CheckpointError(
                f"{self.output.timeline} does not hold the subject of step {lost[0]}, which may be the best one; go on "
                "in the folder of the run, or without --keep_best"
            )

    def keep(self, step: int, subject: Coefficients, losses: Sequence[float], measured: Mapping[int, float]) -> None:
        """Put the subject of a step on the timeline.

        Args:
            losses: of every step so far.
            measured: the losses that were measured on the way, by step.
        """
        self.timeline[step] = subject.replace(adapter=None)
        if self.is_main:
            keep_adapter(self.output, step, subject)
            save_timeline(self.output.timeline, self.timeline, losses, measured)

    def subject_of(self, step: int) -> Coefficients:
        """The subject of a step of the timeline, with its adapter."""
        return subject_of_step(self.output, step, self.timeline[step])

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """Write what a killed run needs to go on, and delete older ones beyond the limit (see `prune_checkpoints`)."""
        checkpoint.save(self.output.checkpoint(checkpoint.step))
        prune_checkpoints(self.output.checkpoints, self.config.checkpoints_total_limit, checkpoint.step)

    def write(self, path: Path, text: str) -> None:
        """Write a text, whole or not at all."""
        with atomic_write(path) as file:
            file.write(text.encode())

    def rescue(self, step: int, snapshot: Callable[[], Coefficients], error: OSError) -> TrainingError:
        """Something could not be written: save at least the subject, which is small, and say what happened.

        Args:
            step: steps done.
            snapshot: what is learned so far.
            error: what happened.
        """
        saved = "nothing was learned yet"
        if step:
            try:
                if self.output.place() != self._place:
                    self.output.path.mkdir(parents=True)  # or it is somebody else's, and stays as it is
                snapshot().save(self.output.coefficients)
                saved = f"the subject of step {step} is saved in {self.output.coefficients}"
            except OSError:
                saved = f"the subject of step {step} could not be saved either"
        where = f" ({error.filename})" if error.filename else ""
        return TrainingError(f"training ended at step {step}: {error.strerror or error}{where}; {saved}")
