"""What the configs say of memory is what the tool computes."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from torch import nn

from coeff_diffusion.training.config import TrainConfig
from tools.training_memory import TrainingBytes, main, most_bytes, parsed, side_of

CONFIGS = Path(__file__).parents[2] / "configs"


def test_what_is_alive_at_once_is_counted() -> None:
    with torch.device("meta"):
        layer = nn.Linear(1000, 1000, bias=False).requires_grad_(False)
        inputs = torch.empty(1, 1000)

    def chain() -> None:
        found = inputs
        for _ in range(5):
            found = layer(found)

    assert 4_000 * 2 <= most_bytes(layer, chain) <= 4_000 * 3  # one comes, one goes; weights are not counted


def stated(name: str) -> tuple[str, list[str]]:
    """What a config says that it takes, and the arguments that compute it."""
    text = " ".join((CONFIGS / name).read_text().replace("\n#", " ").split())
    said, command = re.findall(
        r"Memory: ([\d.]+ GB), computed, not measured \(python -m tools.training_memory (.*?)\)", text
    )[0]
    return said, shlex.split(command)


@pytest.mark.parametrize("name", ["sdxl-8gb.yaml", "sd15.yaml"])
def test_the_configs_say_what_it_computes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    said, command = stated(name)
    main(command)
    assert f": {said} (" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["sdxl-24gb.yaml", "sdxl-16gb.yaml", "sdxl.yaml", "sdxl-8gb.yaml"])
def test_what_is_computed_is_what_the_config_turns_on(name: str) -> None:
    config, (base, asked) = TrainConfig.from_yaml(CONFIGS / name), parsed(stated(name)[1])
    assert side_of(asked, base) == config.resolution
    for setting in ("train_batch_size", "gradient_checkpointing", "quantization", "offload", "num_validation_images"):
        assert getattr(asked, setting) == getattr(config, setting), setting
    assert config.validation_steps > 0


def test_with_offloading_only_what_is_at_work_counts() -> None:
    found = TrainingBytes(denoiser=100, text_encoders=30, autoencoder=5, encoding=60, step=20, preview=15)
    assert found.peaks() == {"loading": 135, "encoding": 195, "a step": 155, "a preview": 150}
    assert found.peaks(offload=True) == {"loading": 135, "encoding": 65, "a step": 150, "a preview": 150}
    assert found.peaks(offload=True, learns_in_text=False)["a step"] == 120
