"""What the configs say of memory is what the tool computes."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from torch import nn

from tools.training_memory import main, most_bytes

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


@pytest.mark.parametrize("name", ["sdxl-8gb.yaml", "sd15.yaml"])
def test_the_configs_say_what_it_computes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join((CONFIGS / name).read_text().replace("\n#", " ").split())
    said, command = re.findall(
        r"Memory: ([\d.]+ GB), computed, not measured \(python -m tools.training_memory (.*?)\)", text
    )[0]
    main(shlex.split(command))
    assert f": {said} (" in capsys.readouterr().out
