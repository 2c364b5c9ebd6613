"""Words learn at rates that go by the base, where nobody says else."""

from dataclasses import replace
from pathlib import Path

import pytest
from diffusers import StableDiffusionPipeline

from coeff_diffusion.families.load import load_base
from coeff_diffusion.training.config import TrainConfig
from coeff_diffusion.training.rates import OF_EMBEDDED, OF_OTHERS, with_word_rates
from coeff_diffusion.training.trainer import Trainer


def test_the_base_decides() -> None:
    config = with_word_rates(TrainConfig(), load_base("embedded"))
    assert (config.token_learning_rate, config.stage_token_learning_rate) == OF_EMBEDDED


@pytest.mark.parametrize("said", [{}, {"token_learning_rate": 5e-3}, {"stage_token_learning_rate": 0.2}])
def test_training_learns_at_them(
    said: dict[str, float], tiny_pipe: StableDiffusionPipeline, subject_images: Path, tmp_path: Path
) -> None:
    """And the run's own settings say them, so that it goes on at the same rates whatever the defaults are by then."""
    config = TrainConfig(instance_data_dir=str(subject_images), class_word="dog", output_dir=str(tmp_path / "out"))
    config = replace(config, max_train_steps=1, validation_steps=0, **said)  # type: ignore[arg-type]
    trainer = Trainer(config.resolve(), tiny_pipe, say=lambda line: None)
    trainer.run()
    expected = {**OF_OTHERS._asdict(), **{name.removesuffix("_learning_rate"): rate for name, rate in said.items()}}
    assert trainer.optimization.learning_rates == [1e-3, expected["token"], expected["stage_token"]]
    written = TrainConfig.from_yaml(tmp_path / "out" / "config.yaml")
    assert (written.token_learning_rate, written.stage_token_learning_rate) == tuple(expected.values())
