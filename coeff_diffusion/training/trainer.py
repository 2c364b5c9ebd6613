"""Teach a base a subject. Read from `Trainer.run` downwards: set up, fit, preview, checkpoint, measure, save.

A step depends on nothing but the seed, its number and what was learned before it: every random choice comes from a
generator seeded by (seed, step). That is what makes a resumed run equal an uninterrupted one, with or without previews.

Shapes: B pictures of a batch; C, h, w channels and size of the latents.
"""

import math
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from torch import Tensor

from ..families.heap import return_freed
from ..families.load import load_base
from ..families.process import training_schedule
from ..families.quantization import quantize
from ..families.registry import encoders_of, family_of
from ..families.shared_weights import shared_pipeline
from ..inference.pipeline_subjects import loaded_coefficients
from ..inference.request import DrawCancelled, StudioError
from ..inference.studio import Studio
from ..subject.coefficients import Coefficients
from ..subject.errors import CoefficientsError
from ..subject.info import not_learned
from ..subject.user_file import user_path
from .average import Average
from .checkpoint import Checkpoint, CheckpointError, checkpoints_of, find_checkpoint
from .config import ConfigError, TrainConfig
from .keeping import Keeping
from .known_pictures import MOST, KnownPictures, losses_at, strangeness, unknown_pictures
from .launched import unread
from .model import DTYPES, Learner, training_resolution
from .model_card import model_card
from .noising import NoisedBatch, batch_loss, noised_batch
from .optimizer import Optimizer
from .own_pictures import figures, measure_own
from .preparation import prepare_data
from .previews import Previews
from .probe import Effect
from .rates import with_word_rates
from .reports import (
    Clock,
    PreviewReport,
    StepReport,
    StopRequest,
    TrainingCancelled,
    TrainingError,
    TrainResult,
    clock_time,
    intent,
    outcome,
    own_random_state,
    progress_bar,
    unbroken,
)
from .residency import residency_of
from .run_folder import RunFolder
from .validation import Validation


def train(
    config: TrainConfig,
    pipe: Any | None = None,
    on_step: Callable[[StepReport], None] | None = None,
    on_preview: Callable[[PreviewReport], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    say: Callable[[str], None] = print,
) -> TrainResult:
    """Teach a base the subject that `config` describes and leave everything in its output folder.

    Ctrl-C, SIGTERM and SIGHUP (in the main thread) and `should_stop` end training after the current step; what was
    learned is saved.

    Args:
        config: the settings; `resolve` is called here.
        pipe: a base that is loaded already, without subjects; by default the one that the settings name. It is not
            changed, and may draw in another thread meanwhile. One on the CPU is trained there.
        on_step, on_preview: called from the training thread.
        should_stop: asked between steps and while pictures are drawn.
        say: takes the lines meant for the user.

    Raises:
        ConfigError: settings that cannot work. DatasetError: pictures or captions that cannot be used.
        CheckpointError: nothing to resume from. TrainingError: the loss broke up, the disk is full, or the output
            folder is gone.
        TrainingCancelled: stopped before the first step.
    """
    return Trainer(config, pipe, on_step, on_preview, should_stop, say).run()


class Trainer:
    """One training run; see `train` for the arguments.

    Args:
        output: where it leaves what, if not as usual in the output folder.
    """

    def __init__(
        self,
        config: TrainConfig,
        pipe: Any | None = None,
        on_step: Callable[[StepReport], None] | None = None,
        on_preview: Callable[[PreviewReport], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
        say: Callable[[str], None] = print,
        output: RunFolder | None = None,
    ) -> None:
        self.config = config = config.resolve()
        self.output = output or RunFolder(user_path(str(config.output_dir)))
        self.pipe, self.is_own = pipe, pipe is None
        if pipe is not None:
            family_of(pipe)  # or the error that names it
        self.accelerator = Accelerator(
            cpu=pipe is not None and pipe.device.type == "cpu",  # who gives a base also chose where it is
            log_with=None if config.report_to == "none" else config.report_to,
            project_config=ProjectConfiguration(logging_dir=str(self.output.path / config.logging_dir)),
        )
        self.device, self.is_main = self.accelerator.device, self.accelerator.is_main_process
        self.keeping = Keeping(self.output, config, self.is_main)
        self.on_step, self.on_preview = on_step, on_preview
        self.say = unbroken(say) if self.is_main else lambda line: None
        self.stop = StopRequest(should_stop, self.say)
        self.clock = Clock()
        self.step = 0  # steps done
        self.losses: list[float] = []
        self.average: Average | None = None

    def run(self) -> TrainResult:
        """Set up, fit, measure, save."""
        config, resume = self.config, self.config.resume_from_checkpoint is not None
        if not self.is_main:  # one of several processes speaks and writes for all
            return self.run_claimed()
        for note in unread(config):
            self.say(note)
        with self.output.claimed(overwrite=config.overwrite_output_dir, resume=resume, say=self.say):
            self.keeping.remember_folder()
            return self.run_claimed()

    def run_claimed(self) -> TrainResult:
        """All of it, once the output folder is this run's."""
        resume = self.config.resume_from_checkpoint
        checkpoint = None if resume is None else Checkpoint.load(find_checkpoint(resume, self.output.checkpoints))
        with own_random_state():
            self.prepare(checkpoint)
            with self.stop:
                try:
                    self.fit()
                    return self.save()
                except CoefficientsError as error:  # values that no subject may have: no number, or far too large
                    raise TrainingError(f"step {self.step}: {error}; lower the learning rates") from error
                except OSError as error:
                    raise self.keeping.rescue(self.step, self.snapshot, error) from error

    # --- set up -------------------------------------------------------------------------------------------------------

    def prepare(self, checkpoint: Checkpoint | None) -> None:
        """Everything before the first step, or the first one after a checkpoint."""
        self.setup()
        if checkpoint is not None:
            self.resume(checkpoint)

    def setup(self) -> None:
        """Load the base, put what learns beside it, read the pictures, and ask what the base predicts by itself."""
        config = self.config
        dtype = DTYPES[config.mixed_precision]
        if self.pipe is None:
            name, revision = config.pretrained_model_name_or_path, config.revision
            vae = config.pretrained_vae_model_name_or_path
            self.pipe = load_base(
                name,
                revision=revision,
                dtype=dtype,
                config=config.base_config,
                vae=vae,
                quantization=config.quantization,
            )
        if loaded := loaded_coefficients(self.pipe):
            raise ConfigError([f"the base has subjects loaded ({', '.join(loaded)}); unload them before training"])
        # Previews and class pictures are drawn over the same weights, by the path that everybody draws with.
        self.studio = Studio(shared_pipeline(self.pipe, self.device, dtype))
        quantize(self.studio.pipe, config.quantization)
        if self.is_own:
            self.pipe = self.studio.pipe  # on a GPU these are copies: nobody needs the weights they were made of
            return_freed()
        self.schedule = training_schedule(self.pipe.scheduler.config)
        config = replace(config, resolution=training_resolution(config.resolution, self.pipe))
        self.config = config = with_word_rates(config, self.pipe)
        self.learner = Learner(self.studio.pipe, config, self.device)
        pipes = self.studio.pipe, self.learner.student
        self.residency = residency_of(pipes, self.device, config.offload, self.is_own, self.say)
        try:
            with self.accelerator.main_process_first():
                self.training_data = prepare_data(
                    config,
                    self.learner,
                    self.studio,
                    self.say,
                    self.stop.asked,
                    self.is_main,
                    partial(self.residency.only, ("vae",)),
                )
        except DrawCancelled as error:
            raise TrainingCancelled("stopped while drawing class pictures; what is drawn is kept") from error
        self.data = self.training_data.data
        self.optimization = Optimizer(self.learner.groups(config), config, self.device)
        if config.use_ema:
            self.average = Average(self.learner.parameters, config.ema_decay)
        started = time.monotonic()
        means = self.mean_of_all, self.averaged
        self.validation = Validation(self.learner, self.data, self.schedule, config, *means)
        self.clock.validated(time.monotonic() - started)
        shown, _ = self.data.instance.largest()
        self.known = self.measured()
        if self.known and (
            note := unknown_pictures(self.studio.pipe, self.known, shown.first_views(), str(config.class_word))
        ):
            self.say(f"warning: {note}")
        self.previews = Previews(self.studio, config, self.output, self.say, self.stop.asked, self.on_preview)
        reading = encoders_of(self.studio.pipe) if any(self.data.prompts.live) else ()
        self.residency.keep([self.learner.family.denoiser, *reading])

    def measured(self) -> KnownPictures | None:
        """What the base knows, as far as that was measured or is to be now. No training ends for want of it."""
        wanted = {"auto": self.device.type != "cpu", "always": True, "never": False}[self.config.measure_base]
        with self.accelerator.main_process_first():  # the others find what it has kept
            if (known := figures(self.studio.pipe)) is not None or not wanted:
                return known
            try:
                return measure_own(self.studio, self.say, self.stop.asked)
            except DrawCancelled as error:
                raise TrainingCancelled("stopped while the base was drawing what it knows") from error
            except (StudioError, OSError) as error:
                self.say(f"what the base knows was not measured: {error} (--measure_base never leaves it)")
                return None

    def identity(self) -> dict[str, Any]:
        """What a checkpoint and the run that goes on from it must have in common."""
        return {
            **self.config.trajectory(),
            **self.training_data.fingerprint,
            "base": self.learner.info.base_fingerprint,
            "base_sample": self.learner.info.base_sample,
            "processes": self.accelerator.num_processes,
        }

    def state(self) -> dict[str, Tensor]:
        """What training goes on from."""
        return {**self.learner.parameters, **(self.average.values if self.average else {})}

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on exactly where the checkpoint was written."""
        config = self.config
        checkpoint.restore(self.identity(), self.state(), self.optimization)
        if checkpoint.step > config.max_train_steps:
            raise CheckpointError(
                f"the checkpoint is of step {checkpoint.step}, and --max_train_steps is {config.max_train_steps}: give "
                "more steps, go on from an earlier checkpoint, or start anew with --overwrite_output_dir"
            )
        self.step, self.losses = checkpoint.step, list(checkpoint.losses)
        self.keeping.resume(self.step, self.validation.due)
        self.validation.resume(checkpoint.validation)
        if config.keep_best:
            self.keeping.check_has(self.validation.losses)
        self.say(f"going on from step {self.step} of {config.max_train_steps}")
        if later := [path.stem for step, path in checkpoints_of(self.output.checkpoints).items() if step > self.step]:
            self.say(f"note: the next checkpoint takes the place of the later ones: {', '.join(later)}")

    # --- fit ----------------------------------------------------------------------------------------------------------

    def fit(self) -> None:
        """All steps that are left, or as many as nobody stops."""
        config = self.config
        self.begin()
        with progress_bar(str(config.trigger), self.step, config.max_train_steps, show=self.is_main) as bar:
            while not self.is_done and not self.stop_agreed():
                started = time.monotonic()
                self.learned(self.train_step(), started)
                self.report(bar)
                self.keep_what_is_due()
        self.learner.train(False)

    @property
    def is_done(self) -> bool:
        """Whether no step is left, or none is worth it."""
        return self.step >= self.config.max_train_steps or self.validation.exhausted

    def learned(self, loss: float, started: float) -> None:
        """A step is done.

        Args:
            started: when it began, of the monotonic clock.

        Raises:
            TrainingError: the loss is no number any more.
        """
        if not math.isfinite(loss):
            steps = self.keeping.timeline
            kept = f"; the steps up to {max(steps)} are in {self.output.timeline}" if steps else ""
            raise TrainingError(
                f"the loss became {loss} at step {self.step + 1}: lower --learning_rate and --token_learning_rate{kept}"
            )
        self.step += 1
        if self.average is not None:
            self.average.update(self.step)
        self.losses.append(loss)
        self.clock.stepped(time.monotonic() - started)
        if self.validation.due(self.step):
            self.validate()

    def keep_what_is_due(self) -> None:
        """Write and draw what there is to be after this step."""
        config = self.config
        self.keeping.check_folder()
        if self.keeping.keeps(self.step, self.validation.due(self.step)):
            self.keep()
        if self.is_main:
            if config.checkpointing_steps and self.step % config.checkpointing_steps == 0:
                self.checkpoint()
            if self.previews.due(self.step):
                self.preview()

    def begin(self) -> None:
        """The first writes: from here on the output folder is this run's."""
        config = self.config
        if self.is_main:
            if config.overwrite_output_dir:
                self.output.clear(config.logging_dir)
            again = replace(config, overwrite_output_dir=False, resume_from_checkpoint=None)
            self.keeping.write(self.output.config, again.to_yaml())
            self.say(intent(config, self.learner, self.studio.base, len(self.data.instance)))
        if config.report_to != "none":
            of_a_run_that_went_on = {"purge_step": self.step + 1} if self.step else {}  # behind the checkpoint
            self.accelerator.init_trackers("", init_kwargs={config.report_to: of_a_run_that_went_on})
        self.learner.train(True)
        if self.is_main and self.previews.due(self.step) and not self.previews.drawn(self.step):
            self.preview()  # that of step 0, or one before which the run ended that the checkpoint is of

    def train_step(self) -> float:
        """One update of what learns; returns the mean loss of its batches."""
        several = self.config.gradient_accumulation_steps
        batches = [partial(self.batch_loss, self.step * several + i) for i in range(several)]
        average = partial(self.accelerator.reduce, reduction="mean") if self.accelerator.num_processes > 1 else None
        return self.optimization.update(batches, average)

    def mean_of_all(self, value: float) -> float:
        """The mean of a number over all processes, so that all decide alike."""
        if self.accelerator.num_processes == 1:
            return value
        return float(self.accelerator.reduce(torch.tensor(value, device=self.device), "mean"))

    def noised(self, number: int) -> NoisedBatch:
        """The batch of this number: the subject's pictures and, for prior preservation, as many of the class."""
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        return noised_batch(self.config, self.learner, self.data, self.schedule, number, rank, ranks)

    def batch_loss(self, number: int) -> Tensor:
        """The loss of one batch."""
        batch = self.noised(number)
        torch.manual_seed(batch.seed)  # the dropout of the coefficients draws from the global generator
        found = [self.learner.denoise(part.noised, part.timesteps, part.condition) for part in batch.parts]
        return batch_loss(self.config, self.schedule, batch, found)

    def stop_agreed(self) -> bool:
        """Whether to stop; in a run of several processes all stop together."""
        asked = self.stop.asked()
        if self.accelerator.num_processes == 1:
            return asked
        return bool(self.accelerator.reduce(torch.tensor(float(asked), device=self.device), "sum") > 0)

    # --- on the way ---------------------------------------------------------------------------------------------------

    def report(self, bar: Any) -> None:
        """Tell everyone who listens about the step that is done."""
        config, rate = self.config, self.optimization.learning_rates[0]
        left = self.clock.seconds_left(self.step, config)
        loss = f"loss {statistics.fmean(self.losses[-50:]):.4f}"
        bar.set_postfix_str(f"{loss}, {self.validation.said()}lr {rate:.1e}, {clock_time(left)} left")
        bar.update()
        if config.report_to != "none":
            tracked = {"loss": self.losses[-1], "learning_rate": rate}
            if self.step in self.validation.losses:
                tracked["validation_loss"] = self.validation.losses[self.step]
            self.accelerator.log(tracked, step=self.step)
        if self.on_step is not None and self.is_main:
            measured = dict(self.validation.losses)
            self.on_step(StepReport(self.step, config.max_train_steps, self.losses[-1], rate, left, measured))

    def keep(self) -> None:
        """Add the subject as it is now to the timeline."""
        subject = self.snapshot(self.validation.effect_at(self.step))
        self.keeping.keep(self.step, subject, self.losses, self.validation.losses)

    def checkpoint(self) -> None:
        """Write what a killed run needs to go on."""
        state, identity = self.optimization.state_dict(), self.identity()
        measured = self.validation.losses
        self.keeping.checkpoint(Checkpoint(self.step, self.state(), state, self.losses, identity, measured))

    def preview(self) -> None:
        """Draw what the subject looks like by now."""
        started = time.monotonic()
        with self.residency.only(self.residency.names):
            is_drawn = self.previews.draw(self.step, self.snapshot())
        if is_drawn:
            self.clock.previewed(time.monotonic() - started)

    # --- measure and save ---------------------------------------------------------------------------------------------

    def validate(self) -> Effect:
        """What the subject changes by now, on fixed noise."""
        started = time.monotonic()
        effect = self.validation.measure(self.step)
        if not math.isfinite(effect.loss_after):
            raise TrainingError(f"the loss on fixed noise became {effect.loss_after}; lower the learning rates")
        self.clock.validated(time.monotonic() - started)
        return effect

    def chosen(self) -> tuple[Coefficients, Effect]:
        """The subject to save, of the last step or of the best one, and what it changes."""
        validation, effect = self.validation, replace(self.validate(), strangeness=self.strangeness())
        best = validation.best if self.config.keep_best else None
        if best is None or best == self.step:
            return self.snapshot(effect), effect
        kept = self.keeping.subject_of(best)
        assert kept.info.effect is not None  # it was measured before it was kept
        # Whether the base knows such pictures does not hang on the step: it is asked with the last one.
        effect = replace(effect, change=kept.info.effect, loss_after=validation.losses[best])
        return kept.replace(info=replace(kept.info, strangeness=effect.strangeness)), effect

    def averaged(self) -> AbstractContextManager[None]:
        """Within, what learns has the values that are saved."""
        return nullcontext() if self.average is None else self.average.in_place()

    def snapshot(self, effect: Effect | None = None) -> Coefficients:
        """What is learned so far, as it is saved."""
        with self.averaged():
            return self.learner.snapshot(self.step, self.losses, effect)

    def strangeness(self) -> float | None:
        """How many times as far off the base is with the subject's pictures, by now, as with those that it knows."""
        known = self.known
        if known is None or not known.kind:  # what a base draws is enough for advice, not for a verdict in the file
            return None
        shown, numbers = self.data.instance.largest()
        latents = shown.first_views()[:MOST]
        prompts = [self.data.prompt_of[number] for number in numbers[: len(latents)]]
        framing = self.learner.framing(shown.first_framings()[: len(latents)])
        condition = {**self.data.prompts.condition(prompts), **framing}
        denoise = partial(self.learner.denoise, condition=condition)
        with torch.no_grad(), self.averaged():
            found = strangeness(known, losses_at(known.levels, self.schedule, denoise, latents))
        return float(f"{found:.4g}")

    def save(self) -> TrainResult:
        """Measure what was learned and write the subject, its timeline and its card.

        Raises:
            TrainingCancelled: nothing was learned yet.
        """
        config, unfinished = self.config, self.step < self.config.max_train_steps
        if not self.step:
            raise TrainingCancelled("stopped before the first step; nothing was learned and nothing is saved")
        is_early = unfinished and self.validation.exhausted
        coefficients, effect = self.chosen()
        file, kept = self.output.coefficients, coefficients.info.train_steps
        if self.is_main:
            self.keeping.check_folder()
            coefficients.save(file)
            if unfinished and config.timeline_steps:
                self.keep()
            if unfinished and config.checkpointing_steps:
                self.checkpoint()
            shown = [] if not_learned(effect.strangeness) else self.output.newest_samples(kept)
            samples = [path.relative_to(self.output.path).as_posix() for path in shown]
            self.keeping.write(self.output.card, model_card(coefficients, config, effect, samples))
            for line in outcome(self.step, config, effect, file, kept, is_early, coefficients.adapter):
                self.say(line)
        if config.report_to != "none":
            self.accelerator.log({"change": effect.change, "improvement": effect.improvement}, step=self.step)
            self.accelerator.end_training()
        stopped = unfinished and not is_early
        return TrainResult(
            self.output.path, coefficients, list(self.losses), effect, stopped, dict(self.validation.losses), file
        )
