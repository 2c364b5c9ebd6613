"""Every shipped YAML is read, explained and trained with."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from coeff_diffusion.training.config import TrainConfig, parse_train_config
from coeff_diffusion.training.rates import OF_EMBEDDED, OF_OTHERS
from coeff_diffusion.training.trainer import train

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = sorted(CONFIGS.glob("*.yaml"))
XL = ("sdxl.yaml", "sdxl-8gb.yaml", "sdxl-16gb.yaml", "sdxl-24gb.yaml", "illustrious.yaml")
PRESETS = ("quick.yaml", "careful.yaml")


def test_the_expected_files_are_there() -> None:
    sd, xl = ["careful.yaml", "embedded.yaml", "quick.yaml", "sd15.yaml", "sd21.yaml"], sorted(XL)
    assert sorted(path.name for path in FILES) == sorted(sd + xl)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_key_says_what_turning_it_does(path: Path) -> None:
    lines = path.read_text().splitlines()
    keys = [i for i, line in enumerate(lines) if line and not line.startswith("#")]
    assert len(keys) == len(yaml.safe_load(path.read_text()))
    for i in keys:
        assert lines[i - 1].startswith("# "), f"{lines[i]} has no comment"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_it_trains(path: Path, request: pytest.FixtureRequest, subject_images: Path, tmp_path: Path) -> None:
    pipe = request.getfixturevalue("tiny_xl_pipe" if path.name in XL else "tiny_pipe")
    base = [] if path.name not in PRESETS else ["--config", str(CONFIGS / "embedded.yaml")]
    config = parse_train_config([*base, "--config", str(path), "--class_word", "dog"])
    config = replace(config, instance_data_dir=str(subject_images), output_dir=str(tmp_path / "out"))
    assert config.resolve().resolution in (128, 512, 768, 1024)
    steps = max(2, config.lr_warmup_steps + 1) if config.lr_scheduler != "constant" else 2
    result = train(replace(config, resolution=16, max_train_steps=steps, validation_steps=0), pipe)
    assert len(result.losses) == steps


def test_presets_go_on_top_of_a_base() -> None:
    config = parse_train_config([f"--config={CONFIGS / 'sd15.yaml'}", f"--config={CONFIGS / 'careful.yaml'}"])
    assert (config.resolution, config.max_train_steps, config.lr_scheduler) == (512, 600, "cosine")


def test_the_embedded_file_states_the_defaults() -> None:
    stated = yaml.safe_load((CONFIGS / "embedded.yaml").read_text())
    default = TrainConfig(token_learning_rate=OF_EMBEDDED.token, stage_token_learning_rate=OF_EMBEDDED.stage_token)
    differing = {key: value for key, value in stated.items() if getattr(default, key) != value}
    assert differing == {"resolution": 128}


@pytest.mark.parametrize("name", ["sd15.yaml", "sd21.yaml", *XL])
def test_words_of_other_bases_learn_as_slowly_with_a_file_as_without(name: str) -> None:
    stated = yaml.safe_load((CONFIGS / name).read_text())
    assert (stated["token_learning_rate"], stated["stage_token_learning_rate"]) == OF_OTHERS
