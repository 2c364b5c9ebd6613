"""A batch of pictures -> what the denoiser is asked in a step of training, and the loss of what it answers.

Shapes: B pictures of a batch, b those of them that have one size; C, h, w channels and size of the latents.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from ..families.family import Conditioning
from ..families.process import prediction_target, signal_to_noise
from .config import TrainConfig
from .dataset import TrainingSet
from .latents import Part
from .losses import min_snr_weights, squared_errors, training_loss, training_noise
from .model import Learner
from .seeds import mixed_seed

TEXT = 1  # tells what is random while prompts are read from the rest of the step


class NoisedPart(NamedTuple):
    """Those pictures of a batch that have one size, noised.

    Attributes:
        rows: their places in the batch, `[b]`.
        noised, target: `[b, C, h, w]`.
        timesteps: `[b]`.
        condition: what the denoiser is told beside these, `[b, ...]` by name; it may learn.
        places: how much each place of the latents counts, `[b, 1, h, w]`; None where all count alike.
    """

    rows: list[int]
    noised: Tensor
    target: Tensor
    timesteps: Tensor
    condition: Conditioning
    places: Tensor | None


class NoisedBatch(NamedTuple):
    """What is asked in a step.

    Attributes:
        parts: one for each size of pictures.
        num_class: how many pictures, at the end, are of the class.
        seed: of whatever else is random in this step: which coefficients are left out.
    """

    parts: list[NoisedPart]
    num_class: int
    seed: int


def noised_batch(
    config: TrainConfig,
    learner: Learner,
    data: TrainingSet,
    schedule: DDPMScheduler,
    number: int,
    rank: int = 0,
    ranks: int = 1,
) -> NoisedBatch:
    """A batch by its number in the run; it depends on that and the seed alone.

    Args:
        rank, ranks: which of how many processes asks.
    """
    seed = mixed_seed(config.seed, number, rank)
    torch.manual_seed(mixed_seed(seed, TEXT))  # the dropout of text encoders' coefficients: prompts are read here
    generator = torch.Generator().manual_seed(seed)
    position = (number * ranks + rank) * config.train_batch_size
    batch = data.batch(position, config.train_batch_size, config.seed, generator)

    parts = [noised_part(config, learner, data, schedule, part, batch.prompts, generator) for part in batch.parts]
    return NoisedBatch(parts, batch.num_class, seed)


def noised_part(
    config: TrainConfig,
    learner: Learner,
    data: TrainingSet,
    schedule: DDPMScheduler,
    part: Part,
    prompts: Sequence[int],
    generator: torch.Generator,
) -> NoisedPart:
    """A part of a batch, noised.

    Args:
        prompts: those of the whole batch.
        generator: decides noise and timesteps.
    """
    latents = part.latents
    noise = training_noise(latents.shape, config.noise_offset, generator).to(latents)  # [b, C, h, w]
    timesteps = torch.randint(schedule.config.num_train_timesteps, (len(latents),), generator=generator)
    timesteps = timesteps.to(latents.device)  # [b]
    condition = data.prompts.condition([prompts[row] for row in part.rows])
    return NoisedPart(
        part.rows,
        schedule.add_noise(latents, noise, timesteps),
        prediction_target(schedule, latents, noise, timesteps),
        timesteps,
        {**condition, **learner.framing(part.framings)},
        part.weights,
    )


def part_errors(
    config: TrainConfig, schedule: DDPMScheduler, part: NoisedPart, prediction: Tensor
) -> tuple[Tensor, Tensor]:
    """How far a prediction `[b, C, h, w]` is off for each picture, and how much that counts, `[b]` each."""
    snr = signal_to_noise(schedule, part.timesteps)  # [b]
    weights = min_snr_weights(snr, config.snr_gamma, schedule.config.prediction_type)
    return squared_errors(prediction, part.target, part.places), weights


def batch_loss(
    config: TrainConfig, schedule: DDPMScheduler, batch: NoisedBatch, predictions: Sequence[Tensor]
) -> Tensor:
    """The loss of what is predicted for each part, `[b, C, h, w]`."""
    pairs = zip(batch.parts, predictions, strict=True)
    found = [part_errors(config, schedule, part, prediction) for part, prediction in pairs]
    rows = [row for part in batch.parts for row in part.rows]
    order = torch.tensor(rows, device=found[0][0].device).argsort()
    errors, weights = (torch.cat(parts)[order] for parts in zip(*found, strict=True))  # [B] each
    return training_loss(errors, weights, batch.num_class, config.prior_loss_weight)
