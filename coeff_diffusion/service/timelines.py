"""Timelines: what a subject looked like at every step that its training kept, and which of them is the subject."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..inference.request import DrawProgress, DrawRequest, Picture
from ..sources.library import listed_name
from ..sources.open import open_subject
from ..subject.coefficients import Coefficients
from ..subject.errors import CoefficientsError
from ..subject.user_file import version_of
from ..training.config import ConfigError, TrainConfig
from ..training.run_folder import RunFolder
from ..training.timeline import keep_step, load_losses, load_timeline, load_validation, subject_of_step
from ..training.validation import best_step
from .loading import SubjectLoader
from .training_queue import TrainingQueue

MAX_PIXELS = 64_000_000  # of all pictures that are remembered, 192 MB: 244 of 512 pixels, 61 of 1,024
MAX_READ = 4  # timelines kept in memory


@dataclass(frozen=True)
class Timeline:
    """A run that kept its steps.

    Attributes:
        subjects: by step, in order.
        losses: of every training step so far.
        validation: the losses that were measured on fixed noise, by step.
        prompt, seed: what its training drew as previews.
    """

    name: str
    subjects: Mapping[int, Coefficients]
    losses: Sequence[float]
    validation: Mapping[int, float]
    prompt: str
    seed: int

    @property
    def steps(self) -> list[int]:
        """The kept steps."""
        return list(self.subjects)

    @property
    def best(self) -> int | None:
        """The kept step with the lowest validation loss; None where none was measured."""
        return best_step({step: loss for step, loss in self.validation.items() if step in self.subjects})

    def nearest(self, step: float) -> int:
        """The kept step that is closest."""
        return min(self.subjects, key=lambda kept: abs(kept - step))


@dataclass(frozen=True)
class Moment:
    """A picture of one step.

    Attributes:
        notes: sentences for the user about what was probably not meant.
    """

    step: int
    picture: Picture
    notes: Sequence[str]


class Timelines:
    """Reads timelines of the library, draws their steps and keeps one.

    Args:
        trainings: knows what is being trained right now, which may be looked at too.
    """

    def __init__(self, loader: SubjectLoader, training_queue: TrainingQueue) -> None:
        self.loader, self.training_queue = loader, training_queue
        self._lock = threading.Lock()
        self._read: OrderedDict[Path, tuple[object, Timeline]] = OrderedDict()
        self._drawn: OrderedDict[tuple[str, str, int], Moment] = OrderedDict()

    def find(self) -> list[str]:
        """The runs of the library with a timeline, by the names they are listed under. Looks at the disk every time."""
        return sorted(self._files())

    def _files(self) -> dict[str, Path]:
        folder = self.loader.library.folder
        inside = {path: path.relative_to(folder).parent for path in folder.glob("**/timeline.safetensors")}
        return {
            listed_name(parent): path
            for path, parent in inside.items()
            if parent.parts and not any(part.startswith(".") for part in parent.parts)
        }

    def read(self, name: str) -> Timeline:
        """The timeline of a run, as far as it is by now.

        Raises:
            CoefficientsError: there is none of this name, or it is damaged.
        """
        path = self._path(name)
        try:
            stamp = version_of(path.stat())
        except OSError as error:
            raise CoefficientsError(f"{path} is gone ({error.strerror})") from error
        with self._lock:
            if path in self._read and self._read[path][0] == stamp:
                return self._read[path][1]
        subjects = load_timeline(path)
        if not subjects:
            raise CoefficientsError(f"{path} has no steps")
        prompt, seed = _previewed(path, next(iter(subjects.values())))
        timeline = Timeline(name, subjects, load_losses(path), load_validation(path), prompt, seed)
        with self._lock:
            self._read[path] = (stamp, timeline)
            while len(self._read) > MAX_READ:
                self._read.popitem(last=False)
        return timeline

    def losses(self, name: str) -> Sequence[float]:
        """Of every step: of a run that goes on, up to this moment."""
        job = self.training_queue.writing(name)
        return list(job.losses) if job is not None and job.losses else self.read(name).losses

    def validation(self, name: str) -> Mapping[int, float]:
        """The losses on fixed noise, by step: of a run that goes on, up to this moment."""
        job = self.training_queue.writing(name)
        return job.validation if job is not None and job.losses else self.read(name).validation

    def draw(
        self,
        name: str,
        step: float,
        prompt: str,
        seed: int,
        on_step: Callable[[DrawProgress], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Moment:
        """The same noise and words at a step. Drawn once, then remembered.

        Args:
            step: the nearest one that was kept is drawn.

        Raises:
            CoefficientsError, StudioError: with a message for the user. DrawCancelled: `should_stop` said so.
        """
        timeline = self.read(name)
        step = timeline.nearest(step)
        if (moment := self.drawn(name, step, prompt, seed)) is not None:
            return moment
        subject = subject_of_step(RunFolder(self._path(name).parent), step, timeline.subjects[step])
        side = subject.info.resolution
        request = DrawRequest(prompt, subjects={name: 1.0}, seed=seed, width=side, height=side)
        with self.loader.using((), {name: subject}) as studio:
            moment = Moment(step, studio.draw(request, on_step, should_stop)[0], studio.notes(request))
        with self._lock:
            self._drawn[subject.sha256, prompt, seed] = moment
            while sum(_pixels(one) for one in self._drawn.values()) > MAX_PIXELS and len(self._drawn) > 1:
                self._drawn.popitem(last=False)
        return moment

    def drawn(self, name: str, step: int, prompt: str, seed: int) -> Moment | None:
        """The picture of a kept step, where it is there already."""
        key = (self.read(name).subjects[step].sha256, prompt, seed)
        with self._lock:
            return self._drawn.get(key)

    def kept(self, name: str) -> int | None:
        """The step that is the subject now; None where there is no subject yet, or one that is on no step."""
        file = RunFolder(self._path(name).parent).coefficients
        if not file.is_file():
            return None
        subject = open_subject(file)
        return next((step for step, one in self.read(name).subjects.items() if one.sha256 == subject.sha256), None)

    def keep(self, name: str, step: float) -> int:
        """Make a step the subject. The timeline stays whole, so any other can be chosen later.

        Of a run that goes on, the choice outlives the end of the training.

        Returns:
            The step that was kept: the nearest one.

        Raises:
            CoefficientsError: there is no such run, or its subject is on no step and would be lost.
        """
        timeline = self.read(name)
        step = timeline.nearest(step)
        job = self.training_queue.writing(name)
        if job is not None:
            job.kept_step = step
        keep_step(RunFolder(self._path(name).parent), step)
        return step

    def _path(self, name: str) -> Path:
        files = self._files()
        if name not in files:
            listed = ", ".join(map(repr, files)) or "none"
            raise CoefficientsError(f"no timeline of {name!r} in {self.loader.library.folder}; there is {listed}")
        return files[name]


def _previewed(path: Path, subject: Coefficients) -> tuple[str, int]:
    """Prompt and seed of a run's previews: from its settings, or what the file itself tells where they are missing."""
    info = subject.info
    try:
        config = TrainConfig.from_yaml(RunFolder(path.parent).config)
    except ConfigError:
        return info.instance_prompt or info.trigger, info.seed or 0
    return str(config.validation_prompt or info.instance_prompt), config.seed


def _pixels(moment: Moment) -> int:
    return moment.picture.image.width * moment.picture.image.height
