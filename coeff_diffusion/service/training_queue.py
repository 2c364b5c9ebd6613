"""Trainings: one at a time, the rest wait in line. They live here and not in a page, so closing a page ends none."""

import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..families.shared_weights import shared_pipeline
from ..inference.request import StudioError
from ..training.config import ConfigError, TrainConfig
from ..training.crop_boxes import Box
from ..training.model import training_resolution
from ..training.reports import PreviewReport, StepReport, TrainingCancelled
from ..training.run_folder import RunFolder
from ..training.timeline import keep_step
from ..training.trainer import train
from .line import Line
from .loading import SubjectLoader
from .picture_check import PictureCheck, box_problems, caption_problems, check_pictures, copy_pictures, unknown_crops
from .presets import MEANING, PAGE, PRESETS
from .time_estimate import TimeEstimate, about
from .training_form import TrainingForm, folder_name, training_config, word_problems
from .training_job import State, TrainingJob

MAX_WAITING = 8
ALL = ""  # trainings go to one library, whoever asked for them: they wait in one line
CLOSING = "the studio is closing; ask again when it is open"
MAX_REMEMBERED = 50  # trainings that are over and still listed


class TrainingQueue:
    """The trainings of this process, with one thread that works them off in turn.

    Args:
        loader: says which base is taught and which library the subjects go to. Drawing goes on meanwhile: a training
            works on a structure of its own over the same weights, made while no subject is loaded.
        earlier: trainings that are over, to be remembered.
    """

    def __init__(self, loader: SubjectLoader, earlier: Iterable[TrainingJob] = ()) -> None:
        self.loader = loader
        self.time_estimate = TimeEstimate(loader)
        self._lock = threading.RLock()
        self._jobs = {job.number: job for job in earlier}
        self._line = Line()
        self._worker: threading.Thread | None = None
        self._refusal = ""  # why no training is taken

    # --- asking -------------------------------------------------------------------------------------------------------

    def check(
        self,
        pictures: Sequence[Path],
        center_crop: bool = True,
        seed: int = 0,
        class_word: str = "",
        boxes: Mapping[Path, Box] | None = None,
    ) -> PictureCheck:
        """Look at pictures before anything is asked for; the base is asked, too, whether it knows such pictures."""
        found = check_pictures(pictures, self.resolution, center_crop, seed, boxes)
        if found.crops:
            with self.loader.using(()) as studio:
                if note := unknown_crops(studio.pipe, list(found.crops.values()), class_word):
                    found.notes.insert(0, note)
        return found

    def submit(self, request: TrainingForm) -> TrainingJob:
        """Check everything, copy the pictures into the subject's folder in the library, and put it in line.

        Raises:
            ConfigError: with all that is wrong, pictures included. OSError: the library cannot be written.
        """
        name = folder_name(request.name)
        folder = self.loader.library.folder / name
        problems = word_problems(request)
        if not problems and self.writing(name):  # a button pressed twice, above all
            problems.append(f"{name!r} is being taught or waits for it already; a second one takes another name")
        elif not problems and (folder.exists() or folder.with_name(f"{name}.safetensors").exists()):
            problems.append(_taken(name))
        problems += check_pictures(request.pictures, self.resolution).refused
        problems += [*caption_problems(request.captions), *box_problems(request.boxes)]
        if not request.pictures:
            problems.append("there are no pictures: give a few of the subject, five good ones do")
        try:
            config = self.config(request, folder)
        except ConfigError as error:
            problems += error.problems
        if problems:
            raise ConfigError(problems)
        _claim(folder)
        try:
            called = copy_pictures(request.pictures, folder / "pictures", request.captions, request.masks)
            boxes = {called[path]: list(box) for path, box in request.boxes.items() if path in called}
            return self._line_up(name, replace(config, crop_boxes=boxes or None))
        except (OSError, ConfigError):
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _line_up(self, name: str, config: TrainConfig) -> TrainingJob:
        with self._lock:
            if self._refusal:
                raise ConfigError([self._refusal])
            if len(self._line) >= MAX_WAITING:
                raise ConfigError([f"{MAX_WAITING} trainings wait already; take one out, or ask again later"])
            job = TrainingJob(max(self._jobs, default=0) + 1, name, config)
            self._jobs[job.number] = job
            self._line.add(ALL, job.number)
            over = [one.number for one in self._jobs.values() if one.over]
            for number in over[:-MAX_REMEMBERED]:
                del self._jobs[number]
            if self._worker is None:
                self._worker = threading.Thread(target=self._work, name="trainings", daemon=True)
                self._worker.start()
        return job

    def config(self, request: TrainingForm, folder: Path) -> TrainConfig:
        """The settings of a training that leaves its results in `folder` (see `training_config`)."""
        class_pictures = self.loader.library.folder / ".class-pictures"
        return training_config(request, self.loader.studio.pipe, folder, class_pictures)

    @property
    def resolution(self) -> int:
        """Side in pixels of what trainings see."""
        return training_resolution(None, self.loader.studio.pipe)

    def offers(self) -> dict[str, str]:
        """Each preset in words: how many steps, how long on this machine, what for. The first call measures."""
        configs = {name: TrainConfig(**{**PAGE, **changes}) for name, changes in PRESETS.items()}
        return {
            name: f"{name}: {one.max_train_steps} steps, {about(self.time_estimate.seconds(one))}; {MEANING[name]}"
            for name, one in configs.items()
        }

    # --- looking ------------------------------------------------------------------------------------------------------

    @property
    def jobs(self) -> list[TrainingJob]:
        """All that are remembered, in the order they were asked for; then those that wait, in that of the line."""
        with self._lock:
            waiting = self._line.of(ALL)
            return [job for number, job in self._jobs.items() if number not in waiting] + [
                self._jobs[number] for number in waiting
            ]

    @property
    def busy(self) -> bool:
        """Whether anything runs or waits."""
        return any(not job.over for job in self.jobs)

    @property
    def latest(self) -> TrainingJob | None:
        """The one that runs, else the one that was asked for last."""
        jobs = self.jobs
        return next((job for job in jobs if job.state == "running"), jobs[-1] if jobs else None)

    def find(self, number: int | None) -> TrainingJob | None:
        """One of them."""
        with self._lock:
            return None if number is None else self._jobs.get(number)

    def place(self, job: TrainingJob) -> int:
        """Its place in the line: 1 is next, 0 does not wait."""
        with self._lock:
            waiting = self._line.of(ALL)
        return waiting.index(job.number) + 1 if job.number in waiting else 0

    def writing(self, name: str) -> TrainingJob | None:
        """The training that will yet write the subject of this name: its folder has to stay where it is."""
        return next((job for job in self.jobs if job.name == name and not job.over), None)

    def sooner(self, number: int) -> None:
        """Let one that waits change places with the one before it in the line."""
        with self._lock:
            self._line.sooner(ALL, number)

    # --- stopping -----------------------------------------------------------------------------------------------------

    def stop(self, number: int) -> None:
        """End one: if it runs, after its current step, keeping what it learned; if it waits, at once."""
        with self._lock:
            job = self._jobs.get(number)
            if job is None or job.over:
                return
            job.stop.set()
            if self._line.remove(ALL, number):
                job.state = "stopped"
                shutil.rmtree(job.folder, ignore_errors=True)

    @contextmanager
    def resting(self, why: str) -> Iterator[None]:
        """No training begins while the block runs; who asks for one meanwhile is told why.

        Raises:
            StudioError: one runs or waits.
        """
        with self._lock:
            if self.busy:
                raise StudioError("a subject is being trained; try again when it is done, or stop it on the Train tab")
            self._refusal = why
        try:
            yield
        finally:
            with self._lock:
                self._refusal = "" if self._refusal == why else self._refusal

    def close(self) -> None:
        """Stop all and wait until the one that runs has saved, however long its step takes."""
        with self._lock:
            self._refusal = CLOSING
            worker = self._worker
            for job in self._jobs.values():
                self.stop(job.number)
        if worker is not None:
            worker.join()

    # --- working ------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._lock:
                number = self._line.take()
                if number is None:
                    self._worker = None
                    return
                job = self._jobs[number]
                job.state = "running"
            self._train(job)

    def _train(self, job: TrainingJob) -> None:
        last = time.monotonic()

        def on_step(report: StepReport) -> None:
            nonlocal last
            now = time.monotonic()
            self.time_estimate.stepped(now - last, job.config)
            last = now
            job.stepped(report)

        def on_preview(report: PreviewReport) -> None:
            nonlocal last
            job.previewed(report)
            last = time.monotonic()  # a step that follows a picture did not take that long

        state: State = "failed"
        try:
            result = train(job.config, self._clean_base(), on_step, on_preview, job.stop.is_set, job.say)
            if job.kept_step is not None:  # chosen on the timeline meanwhile: it outlives the last step
                keep_step(RunFolder(job.folder), job.kept_step)
                job.say(f"step {job.kept_step} stays the subject, as it was chosen on the timeline")
            job.advice = "" if result.effect.learned else result.effect.advice() or ""
            state = "stopped" if result.stopped else "done"
        except TrainingCancelled:
            state = "stopped"
        except Exception as error:  # noqa: BLE001 - whatever it is, the line goes on, and who asked reads why
            job.error = sentence(error)
        if not job.losses:  # nothing was learned: the name is free again; what goes are copies of pictures
            shutil.rmtree(job.folder, ignore_errors=True)
        job.state = state

    def _clean_base(self) -> Any:
        """The base without subjects, in a structure that drawings do not touch."""
        with self.loader.using(()) as studio:
            if loaded := studio.subjects:
                raise ConfigError([f"the base has subjects loaded ({', '.join(loaded)}); unload them before training"])
            return shared_pipeline(studio.pipe)


def sentence(error: Exception) -> str:
    """What went wrong, on one line."""
    problems = getattr(error, "problems", None)
    text = " ".join("; ".join(problems).split() if problems else str(error).split()) or "no message"
    return text if type(error).__module__.startswith("coeff_diffusion") else f"{type(error).__name__}: {text}"


def _claim(folder: Path) -> None:
    """Make the folder of a subject, which nobody else can have."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir()
    except FileExistsError as error:
        raise ConfigError([_taken(folder.name)]) from error


def _taken(name: str) -> str:
    return f"there is a subject {name!r} in the library already; take another name"
