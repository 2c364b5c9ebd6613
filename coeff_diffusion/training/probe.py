"""What a subject has learned, asked on fixed noise: how much it changes what the base predicts of its pictures.

The one measure of a training: before and after it, and on the way (`validation`).

Shapes: B pictures of a batch; C, h, w channels and size of the latents.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from ..families.process import prediction_target, signal_to_noise
from ..subject.info import not_learned
from .losses import min_snr_weights, squared_errors

LEAST, MOST = 8, 40  # noised pictures of a probe


@dataclass(frozen=True)
class Effect:
    """What training changed in the prediction of the very same noised pictures of the subject.

    Attributes:
        change: root mean square of the change, as a share of the prediction's own.
        loss_before, loss_after: mean squared error against the truth, before training and with the subject.
        strangeness: how many times as far off the base still is, with the subject, as with pictures that it knows (see
            `known_pictures`); None of a base without such figures.
    """

    change: float
    loss_before: float
    loss_after: float
    strangeness: float | None = None

    @property
    def improvement(self) -> float:
        """Share of the loss that training took away; negative where it made things worse."""
        return 1 - self.loss_after / self.loss_before if self.loss_before else 0.0

    @property
    def learned(self) -> bool:
        """Whether the base is nearer to the pictures with the subject than without, and near enough to draw it."""
        return self.improvement > 0 and not not_learned(self.strangeness)

    def to_dict(self) -> dict[str, float]:
        values = asdict(self) | {"improvement": self.improvement}
        return {name: float(f"{value:.6g}") for name, value in values.items() if value is not None}

    def advice(self) -> str | None:
        """One sentence of what went wrong and what to do, or None where the subject was learned."""
        if failed := not_learned(self.strangeness):
            return (
                f"the subject was not learned: {failed}. Take another base, or pictures of the kind that this one knows"
            )
        if self.change < LEAST_CHANGE:
            return (
                f"the subject learned nothing: it changes the predictions by {self.change:.2%} (expected at least "
                f"{LEAST_CHANGE:.0%}). Raise --learning_rate and --token_learning_rate or --max_train_steps, and check "
                "that the trigger stands in the prompt or the captions"
            )
        if self.improvement < LEAST_IMPROVEMENT:
            return (
                f"the subject learned next to nothing: the loss on its pictures went from {self.loss_before:.4f} to "
                f"{self.loss_after:.4f} ({self.improvement:+.2%} better, expected {LEAST_IMPROVEMENT:.1%} or more). "
                + (
                    "The predictions moved without getting better: lower the learning rates"
                    if self.improvement < 0
                    else "Raise --max_train_steps or the learning rates"
                )
                + ", and check that the pictures show one subject, of the given class word"
            )
        return None


LEAST_CHANGE = 0.01
LEAST_IMPROVEMENT = 0.005


@dataclass(frozen=True)
class Probe:
    """Fixed noised pictures of the subject, drawn once, to ask the denoiser about before, during and after training.

    Attributes:
        noised, target: `[N, C, h, w]`; timesteps: `[N]`; pictures: which picture each one shows.
        weights: how much each place counts in the loss, `[N, 1, h, w]`; None where all count alike.
        timestep_weights: how much each one counts, as in training, `[N]`.
    """

    noised: Tensor
    target: Tensor
    timesteps: Tensor
    pictures: Sequence[int]
    weights: Tensor | None
    timestep_weights: Tensor

    @classmethod
    def draw(
        cls,
        schedule: DDPMScheduler,
        latents: Tensor,
        seed: int,
        weights: Tensor | None = None,
        count: int = MOST,
        snr_gamma: float | None = None,
    ) -> "Probe":
        """`count` times one of the latents `[P, C, h, w]` in turn, at the middles of equal parts of the noise schedule.

        Training draws its timesteps evenly too, so that its loss and this one can be compared.

        Args:
            weights: of the latents, `[P, 1, h, w]`.
            snr_gamma: see `min_snr_weights`.
        """
        total = schedule.config.num_train_timesteps
        pictures = [number % len(latents) for number in range(count)]
        clean = latents[pictures]  # [N, C, h, w]
        timesteps = ((torch.arange(count) + 0.5) / count * total).long().to(clean.device)  # [N]
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed)).to(clean)
        return cls(
            schedule.add_noise(clean, noise, timesteps),
            prediction_target(schedule, clean, noise, timesteps),
            timesteps,
            pictures,
            None if weights is None else weights[pictures],
            min_snr_weights(signal_to_noise(schedule, timesteps), snr_gamma, schedule.config.prediction_type),
        )

    @torch.no_grad()
    def predict(self, denoise: Callable[[Tensor, Tensor, Sequence[int]], Tensor], batch_size: int) -> Tensor:
        """`denoise(noised, timesteps, pictures)` over the whole probe in batches, `[N, C, h, w]` float32."""
        spans = [slice(i, i + batch_size) for i in range(0, len(self.timesteps), batch_size)]
        return torch.cat([denoise(self.noised[s], self.timesteps[s], self.pictures[s]).float() for s in spans])

    def loss(self, prediction: Tensor) -> float:
        """What training would call the loss of a result of `predict`."""
        return float((squared_errors(prediction, self.target, self.weights) * self.timestep_weights).mean())

    def effect(self, before: Tensor, after: Tensor) -> Effect:
        """Compare two results of `predict`."""
        change = (after - before).square().mean().sqrt() / before.square().mean().sqrt().clamp(min=1e-12)
        return Effect(float(change), self.loss(before), self.loss(after))
