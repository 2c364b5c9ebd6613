"""Teach a base many subjects at once. Read from `ManyTrainer.run` downwards.

Each subject has a `Trainer` of its own: its pictures, its random choices, its parameters, its optimizer, its folder.
What they share is the base: in a step one pass of the denoiser answers all of them (`SharedDenoiser`). So nothing that
one learns hangs on the others, and each goes on from a checkpoint as it would alone.
"""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..families.load import load_base
from ..families.quantization import quantize
from ..families.registry import family_of
from ..families.shared_weights import shared_pipeline
from ..inference.pipeline_subjects import loaded_coefficients
from ..sources.library import SUFFIX
from ..subject.user_file import user_path
from .checkpoint import Checkpoint
from .config import ConfigError, TrainConfig
from .many_config import AT_ONCE
from .many_denoiser import SharedDenoiser
from .many_plan import missing, plan
from .many_reports import Learned, ManyReport, ManyResult, Progress, SubjectRun, starting_points
from .many_subjects import RUNS, Wanted
from .model import DTYPES
from .noising import batch_loss
from .reports import StopRequest, TrainingCancelled, TrainingError, own_random_state, progress_bar, unbroken
from .run_folder import RunFolder
from .subject_store import SubjectStore
from .trainer import Trainer

Value = TypeVar("Value")


def train_many(
    folder: str | Path,
    config: TrainConfig | None = None,
    *,
    subjects: str | Path | None = None,
    subjects_per_batch: int = AT_ONCE,
    pipe: Any | None = None,
    on_step: Callable[[ManyReport], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    say: Callable[[str], None] = print,
) -> ManyResult:
    """Teach a base every subject of a folder of folders, several at once.

    Each subject learns what it would alone, up to the rounding of larger batches, and ends as `<name>.safetensors` in
    the output folder. Called again, it skips those that are there and goes on with those that were begun. A subject
    that fails ends alone.

    Args:
        folder: one folder for each subject, with its pictures inside; see `many_subjects` for what is told of them.
        config: what holds for all, see `many_settings`. `overwrite_output_dir` teaches all of them anew.
        subjects: a table that tells of them; default: the one in the folder.
        subjects_per_batch: how many learn at once. Each takes as much memory as a training of its own, the base aside.
        pipe: a base that is loaded already, without subjects; it is not changed.
        on_step: called after each step.
        should_stop: asked between steps, as Ctrl-C, SIGTERM and SIGHUP are: what is begun is kept, to go on from.
        say: takes the lines meant for the user.

    Raises:
        ConfigError: settings that cannot work for any of them. TrainingError: the memory does not hold so many.
    """
    config, wanted = plan(folder, config, subjects, subjects_per_batch)
    return ManyTrainer(wanted, config, subjects_per_batch, pipe, on_step, should_stop, say).run()


class ManyTrainer:
    """Trainings of many subjects; see `train_many` for the arguments.

    Args:
        wanted, config: as `plan` gives them.
    """

    def __init__(
        self,
        wanted: Sequence[Wanted],
        config: TrainConfig,
        subjects_per_batch: int = AT_ONCE,
        pipe: Any | None = None,
        on_step: Callable[[ManyReport], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self.wanted, self.config, self.at_once, self.pipe = wanted, config, subjects_per_batch, pipe
        self.on_step, self.say = on_step, unbroken(say)
        self.stop = StopRequest(should_stop, self.say)
        self.output = RunFolder(user_path(str(config.output_dir)))
        self.result = ManyResult(self.output.path)
        self.progress = Progress()

    def run(self) -> ManyResult:
        """Teach those that are not there yet, batch by batch."""
        waiting = missing(self.wanted, SubjectStore(self.output.path), self.config, self.result, self.say)
        if not waiting:
            return self.result
        runs = RunFolder(self.output.path / RUNS)
        with runs.claimed(overwrite=True, say=self.say), own_random_state(), self.stop:
            self.output.sweep()
            self.load()
            steps = {one.name: self.config.max_train_steps for one in waiting}
            with progress_bar(f"{len(waiting)} subjects", 0, sum(steps.values()), show=True) as bar:
                self.progress.show(bar, steps)
                for start in range(0, len(waiting), self.at_once):
                    if not self.stop.asked():
                        self.teach(waiting[start : start + self.at_once])
        self.result.stopped = len(self.result.files) + len(self.result.failed) < len(self.wanted)
        return self.result

    def load(self) -> None:
        """The base, once, where it is trained on and in the type it is trained in: the trainers share its weights."""
        config = self.config
        if self.pipe is None:
            name, vae = config.pretrained_model_name_or_path, config.pretrained_vae_model_name_or_path
            options: dict[str, Any] = {"revision": config.revision, "config": config.base_config, "vae": vae}
            options["quantization"] = config.quantization
            self.pipe = load_base(name, dtype=DTYPES[config.mixed_precision], device="auto", **options)
        if loaded := loaded_coefficients(self.pipe):
            raise ConfigError([f"the base has subjects loaded ({', '.join(loaded)}); unload them before training"])
        family_of(self.pipe)  # or the error that names it
        self.base = shared_pipeline(self.pipe, self.pipe.device, DTYPES[config.mixed_precision])
        quantize(self.base, config.quantization)

    # --- a batch of subjects ------------------------------------------------------------------------------------------

    def teach(self, group: Sequence[Wanted]) -> None:
        """Teach some subjects from where each of them is."""
        with ExitStack() as claims:
            learning: dict[str, Trainer] = {}
            starts = self.starts(group)
            for one in group:
                if self.stop.asked():
                    return
                trainer = self.guarded(one.name, partial(self.prepared, one, starts[one.name], claims))
                if trainer is not None:
                    learning[one.name] = trainer
            if not learning:
                return
            config, first = self.config, next(iter(learning.values()))
            shared = SharedDenoiser(self.base, first.learner, config.coeff_dropout, config.gradient_checkpointing)
            while learning := self.rest(learning):
                if self.stop.asked():
                    for name, trainer in learning.items():
                        if trainer.step:
                            self.guarded(name, trainer.checkpoint)
                    return
                self.step(shared, learning)

    def starts(self, group: Sequence[Wanted]) -> dict[str, int]:
        """The steps that they go on from."""
        anew = self.config.overwrite_output_dir
        found = {one.name: [] if anew else self.folder_of(one).checkpoint_steps for one in group}
        return starting_points(found, self.config.checkpointing_steps)

    def prepared(self, wanted: Wanted, start: int, claims: ExitStack) -> Trainer:
        """A subject's trainer, ready for its next step."""
        assert wanted.config is not None
        run = self.folder_of(wanted)
        path = run.checkpoint(start) if start else None
        config = replace(
            wanted.config, resume_from_checkpoint=None if path is None else str(path), overwrite_output_dir=path is None
        )
        trainer = Trainer(
            config,
            self.base,
            should_stop=self.stop.asked,
            say=lambda line: self.say(f"{wanted.name}: {line}"),
            output=run,
        )
        claims.callback(remove_if_empty, run.path)  # after the claim, which is given back before
        claims.enter_context(run.claimed(overwrite=True, say=self.say))
        trainer.keeping.remember_folder()
        trainer.prepare(None if path is None else Checkpoint.load(path))
        trainer.begin()
        self.progress.done(wanted.name, trainer.step)
        return trainer

    def step(self, shared: SharedDenoiser, learning: Mapping[str, Trainer]) -> None:
        """One update of each subject."""
        started, trainers = time.monotonic(), list(learning.values())
        try:
            totals = summed_losses(shared, trainers, self.config.gradient_accumulation_steps)
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"the memory does not hold the steps of {len(trainers)} subjects at once: lower --subjects_per_batch "
                "or --train_batch_size, or give --gradient_checkpointing; the same command then goes on"
            ) from error

        for (name, trainer), total in zip(learning.items(), totals, strict=True):
            self.guarded(name, partial(update, trainer, total, started))
        well = {name: trainer for name, trainer in learning.items() if name not in self.result.failed}
        losses = {name: trainer.losses[-1] for name, trainer in well.items()}
        left = {name: 0 if t.is_done else t.config.max_train_steps - t.step for name, t in well.items()}
        report = self.progress.stepped(left, losses, time.monotonic() - started)
        if self.on_step is not None:
            self.on_step(report)

    def rest(self, learning: Mapping[str, Trainer]) -> dict[str, Trainer]:
        """Those that have steps left. Who is done is saved: until all of these are, each can be gone on with."""
        well = {name: trainer for name, trainer in learning.items() if name not in self.result.failed}
        done = {name: trainer for name, trainer in well.items() if trainer.is_done}
        for name, trainer in done.items():
            self.guarded(name, trainer.checkpoint)
        for name, trainer in done.items():
            if name not in self.result.failed:
                self.guarded(name, partial(self.save, name, trainer))
        return {name: trainer for name, trainer in well.items() if name not in done}

    def save(self, name: str, trainer: Trainer) -> None:
        """Write a subject that has learned all it is to learn, and forget what it could have been gone on with from."""
        trainer.learner.train(False)
        saved = trainer.save()
        self.result.learned[name] = Learned(saved.coefficients, saved.losses, saved.effect, saved.file)
        shutil.rmtree(trainer.output.checkpoints, ignore_errors=True)

    # --- what goes wrong ----------------------------------------------------------------------------------------------

    def guarded(self, name: str, do: Callable[[], Value]) -> Value | None:
        """Do something for one subject; what goes wrong ends this one alone."""
        try:
            return do()
        except TrainingCancelled:  # while class pictures were drawn; whoever asks next stops all
            return None
        except Exception as error:  # noqa: BLE001 - whatever it is, the others are to be learned
            self.fail(name, error)
            return None

    def fail(self, name: str, error: Exception) -> None:
        """A subject is not learned."""
        self.say(self.result.fail(name, error))
        self.progress.ended(name)

    def folder_of(self, wanted: Wanted) -> SubjectRun:
        """Where a subject's training leaves what."""
        return SubjectRun(self.output.path / RUNS / wanted.name, self.output.path / f"{wanted.name}{SUFFIX}")


def update(trainer: Trainer, total: torch.Tensor, started: float) -> None:
    """The update of one subject from the gradients of a loss, and what is to be kept after it."""
    trainer.learned(trainer.optimization.apply(total), started)
    trainer.keep_what_is_due()


def remove_if_empty(folder: Path) -> None:
    """Of a training that did not begin nothing is left."""
    with suppress(OSError):
        folder.rmdir()


def summed_losses(shared: SharedDenoiser, trainers: Sequence[Trainer], several: int) -> list[torch.Tensor]:
    """Gradients of each trainer's own loss, of a mean of several batches, and these losses."""
    totals = [torch.zeros((), device=shared.device) for _ in trainers]
    for i in range(several):
        batches = [trainer.noised(trainer.step * several + i) for trainer in trainers]
        asked = [(trainer.learner, batch) for trainer, batch in zip(trainers, batches, strict=True)]
        losses = [
            batch_loss(trainer.config, trainer.schedule, batch, answers) / several
            for trainer, batch, answers in zip(trainers, batches, shared.predict(asked), strict=True)
        ]
        scaled = [t.optimization.scaler.scale(loss) for t, loss in zip(trainers, losses, strict=True)]
        torch.autograd.backward(scaled)
        totals = [total + loss.detach() for total, loss in zip(totals, losses, strict=True)]
    return totals
