"""The script that measures presets on a GPU trains by them, and says where there is nothing to measure."""

from pathlib import Path

import preset_memory
import pytest
import torch

from coeff_diffusion.training.config import parse_train_config


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure")
def test_without_a_gpu_it_says_so_in_a_line() -> None:
    with pytest.raises(SystemExit) as caught:
        preset_memory.main([])
    assert "measures the memory of a GPU, and none was found" in str(caught.value.code)
    assert "\n" not in str(caught.value.code)


@pytest.mark.parametrize("preset", preset_memory.PRESETS)
def test_it_trains_by_the_preset_itself(preset: str, tmp_path: Path) -> None:
    asked = parse_train_config(preset_memory.flags(preset, "my-xl", tmp_path, tmp_path / "out")).resolve()
    assert (asked.pretrained_model_name_or_path, asked.max_train_steps) == ("my-xl", preset_memory.STEPS)
    assert asked.validation_steps == preset_memory.STEPS  # the preview counts
    turned_on = {"sdxl-8gb": ("int8", True), "sdxl": ("no", True)}
    assert (asked.quantization, asked.offload) == turned_on.get(preset, ("no", False))
