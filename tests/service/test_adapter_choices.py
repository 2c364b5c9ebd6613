"""The adapters that the page offers: known ones, what their files weigh, and the way to a training."""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from training_runs import SHORT, over

from coeff_diffusion import Coefficients
from coeff_diffusion.families.registry import sites_of
from coeff_diffusion.inference.studio import Studio
from coeff_diffusion.service import SubjectLoader, TrainingForm, TrainingQueue
from coeff_diffusion.service.adapter_choices import adapter_bytes, adapter_choices, offered
from coeff_diffusion.sources.library import Library
from coeff_diffusion.subject.adapter_kind import METHODS, AdapterKind
from coeff_diffusion.training.adapter import LearningAdapter
from coeff_diffusion.training.config import ConfigError


def test_every_method_is_offered_with_about_what_its_file_weighs(tiny_pipe: StableDiffusionPipeline) -> None:
    kinds = offered()
    assert {kind.method for kind in kinds} == set(METHODS)
    assert AdapterKind.parse("lora:16") in kinds
    assert [value for _, value in adapter_choices(tiny_pipe)] == ["", *map(str, kinds)]
    sites = sites_of(tiny_pipe.unet).values()
    for kind in kinds:
        guessed = adapter_bytes(tiny_pipe, kind)
        saved = LearningAdapter(tiny_pipe.unet, sites, kind, 0, torch.device("cpu")).snapshot()
        assert guessed == pytest.approx(len(saved.data), rel=0.15)


def test_the_form_takes_one_as_the_command_line_does(
    tiny_pipe: StableDiffusionPipeline, subject_images: Path, tmp_path: Path
) -> None:
    queue = TrainingQueue(SubjectLoader(Studio(tiny_pipe), Library(tmp_path / "subjects")))
    asked = TrainingForm(sorted(subject_images.iterdir())[:1], "rex", "dog", settings=SHORT | {"with_adapter": "lora"})
    with pytest.raises(ConfigError, match="--with: the adapter 'lora' is not known"):
        queue.submit(asked)
    asked = TrainingForm(asked.pictures, "rex", "dog", settings=SHORT | {"with_adapter": "lora:2", "train": "token"})
    job = over(queue.submit(asked))
    queue.close()
    found = Coefficients.load(job.folder)
    assert job.config.with_adapter == found.info.adapter == "lora:2"
    assert found.adapter is not None
