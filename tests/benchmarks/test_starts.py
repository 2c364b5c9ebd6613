"""Starts without the residual form: what tells them from the library's own training is the start and what drops out."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from starts import WholeTrainer

from coeff_diffusion.subject.coefficients import Coefficients
from coeff_diffusion.training.config import TrainConfig
from coeff_diffusion.training.reports import own_random_state
from coeff_diffusion.training.trainer import Trainer


@pytest.fixture
def config(subject_images: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        instance_data_dir=str(subject_images),
        class_word="dog",
        train="coefficients",
        output_dir=str(tmp_path),
        max_train_steps=3,
        train_batch_size=1,
        coeff_dropout=0.0,
        adam_weight_decay=0.0,
        timeline_steps=0,
        validation_steps=0,
    )


def learned(trainer: Trainer, steps: bool = True) -> Coefficients:
    with own_random_state():
        trainer.setup()
        if steps:
            trainer.fit()
    return trainer.learner.snapshot(trainer.step, trainer.losses)


def largest_difference(one: Coefficients, other: Coefficients) -> float:
    return max(float((one[path] - other[path]).abs().max()) for path in one)


def test_the_identity_differs_from_the_residual_form_by_dropout_alone(
    config: TrainConfig, tiny_pipe: StableDiffusionPipeline
) -> None:
    residual = learned(Trainer(config, tiny_pipe, say=lambda line: None))
    identity = learned(WholeTrainer(config, tiny_pipe, say=lambda line: None))
    assert largest_difference(residual, identity) < 1e-5
    dropping = learned(WholeTrainer(replace(config, coeff_dropout=0.5), tiny_pipe, say=lambda line: None))
    assert largest_difference(residual, dropping) > 1e-4


def test_random_mixing_matrices_have_variance_one_by_heads(
    config: TrainConfig, tiny_pipe: StableDiffusionPipeline
) -> None:
    trainer = WholeTrainer(config, tiny_pipe, say=lambda line: None)
    trainer.start = "random"
    found = learned(trainer, steps=False)
    whole = torch.cat([((coeff + torch.eye(len(coeff))) * len(coeff) ** 0.5).flatten() for coeff in found.values()])
    assert float(whole.std()) == pytest.approx(1, abs=0.1)
