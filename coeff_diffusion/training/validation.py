"""The subject measured on the way, always on the same noised pictures: which step is the best, and when to end.

What is measured is what its file would hold, rounded and without dropout, and training goes on as if nothing had been
measured: no random generator is drawn from.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence

from diffusers import DDPMScheduler
from torch import Tensor

from .config import TrainConfig
from .dataset import TrainingSet, mixed_seed
from .model import Learner
from .probe import LEAST, MOST, Effect, Probe

SHARE = 0.1  # of the time of training that measuring may take
PASSES = 2.3  # of a measurement make a step of training, picture for picture: `benchmarks/validation.py cost`


def smoothed(losses: Mapping[int, float]) -> dict[int, float]:
    """Each step's loss as the mean of itself, counted twice, and its neighbours: a lucky measurement is no best step.

    Args:
        losses: by step; that of step 0, of the base alone, is left out.
    """
    steps = sorted(step for step in losses if step)
    around = {step: [step, *steps[max(0, place - 1) : place + 2]] for place, step in enumerate(steps)}
    return {step: statistics.fmean(losses[one] for one in near) for step, near in around.items()}


def best_step(losses: Mapping[int, float], threshold: float = 0.0) -> int | None:
    """The first step that no later one improves on by more than the threshold; None before the first measurement."""
    best, lowest = None, float("inf")
    for step, loss in smoothed(losses).items():
        if loss < lowest - threshold:
            best, lowest = step, loss
    return best


def measurements_since(losses: Mapping[int, float], step: int | None) -> int:
    """How many measurements have followed that of a step."""
    return 0 if step is None else sum(later > step for later in losses)


def probe_size(config: TrainConfig) -> int:
    """How many noised pictures are measured: within `SHARE` of the time of training, where that is not too few."""
    every = config.validate_every_n_steps
    return max(LEAST, min(MOST, int(SHARE * PASSES * config.pictures_per_step * every))) if every else MOST


class Validation:
    """The measurements of a run.

    Args:
        learner: what learns; at the time it is made, the base alone.
        data: its held-out pictures are measured, or, where there are none, those that are trained on.
        config: resolved settings.
        average: takes a number to its mean over all processes, so that all of them decide alike.

    Attributes:
        losses: by step, to six digits; that of step 0 is the base's. Empty where nothing is to be measured on the way.
    """

    def __init__(
        self,
        learner: Learner,
        data: TrainingSet,
        schedule: DDPMScheduler,
        config: TrainConfig,
        average: Callable[[float], float],
    ) -> None:
        self.learner, self.data, self.config, self.average = learner, data, config, average
        self.every = config.validate_every_n_steps or 0
        shown, self.prompt_of = data.probed
        self.probe = Probe.draw(
            schedule,
            shown.first_views(),
            mixed_seed(config.seed, -3),
            shown.first_weights(),
            probe_size(config),
            config.snr_gamma,
        )
        self.before = self._predict()
        self.losses: dict[int, float] = {}
        self.latest: tuple[int, Effect] = (0, Effect(0.0, *[self._averaged(self.probe.loss(self.before))] * 2))
        if self.every:
            self.losses[0] = self.latest[1].loss_after

    def due(self, step: int) -> bool:
        """Whether this step is measured in a run that nobody stops."""
        return bool(self.every) and (step == self.config.max_train_steps or step % self.every == 0)

    def resume(self, losses: Mapping[int, float]) -> None:
        """Go on from the measurements of a checkpoint."""
        self.losses |= {step: loss for step, loss in losses.items() if step and self.due(step)}

    def measure(self, step: int) -> Effect:
        """What the subject changes by now; measured once a step."""
        if self.latest[0] != step:
            found = self.probe.effect(self.before, self._predict())
            before = self.latest[1].loss_before
            self.latest = step, Effect(self._averaged(found.change), before, self._averaged(found.loss_after))
            if self.every:
                self.losses[step] = self.latest[1].loss_after
        return self.latest[1]

    def effect_at(self, step: int) -> Effect | None:
        """What was measured last, if it was at this step."""
        return self.latest[1] if self.latest[0] == step and step in self.losses else None

    @property
    def best(self) -> int | None:
        """The step with the lowest loss so far."""
        return best_step(self.losses)

    @property
    def exhausted(self) -> bool:
        """Whether the loss has not improved for as long as the settings have patience."""
        patience = self.config.early_stopping_patience
        reached = best_step(self.losses, self.config.early_stopping_threshold)
        return bool(patience) and measurements_since(self.losses, reached) >= patience

    def said(self) -> str:
        """The latest and the best loss, for the progress bar; nothing where nothing is measured."""
        best = self.best
        if best is None:
            return ""
        return f"validation {self.losses[max(self.losses)]:.4f} (best {self.losses[best]:.4f} at {best}), "

    def _predict(self) -> Tensor:
        """What is predicted for the probe's noised pictures, each with its own prompt, `[N, C, h, w]`."""

        def denoise(noised: Tensor, timesteps: Tensor, pictures: Sequence[int]) -> Tensor:
            prompts = [self.prompt_of[picture] for picture in pictures]
            return self.learner.denoise(noised, timesteps, self.data.prompts.condition(prompts))

        with self.learner.as_saved():
            return self.probe.predict(denoise, 2 * self.config.train_batch_size)  # without gradients twice as many fit

    def _averaged(self, value: float) -> float:
        return float(f"{self.average(value):.6g}")
