"""The README.md of a run, as the Hub and people read it."""

from dataclasses import replace
from typing import Any

import torch
import yaml
from huggingface_hub import ModelCard

from coeff_diffusion.coefficients import Coefficients, CoefficientsInfo
from coeff_diffusion.config import TrainConfig
from coeff_diffusion.losses import Effect
from coeff_diffusion.model_card import model_card

CONFIG = replace(TrainConfig(instance_data_dir="x", class_word="dog", license="mit").resolve(), resolution=128)
EFFECT = Effect(0.2, 0.25, 0.2)


def card(
    config: TrainConfig = CONFIG, samples: tuple[str, ...] = ("samples/step_000300_0.png",), **info: object
) -> str:
    known: dict[str, Any] = {
        "name": "Rex", "trigger": "sks dog", "class_word": "dog", "instance_prompt": "a sks dog", "seed": 0,
        "base_model": "embedded", "license": "mit", "resolution": 128, "train_steps": 300,
    }  # fmt: skip
    subject = Coefficients({"mid_block.attn1": torch.ones(8, 8)}, info=CoefficientsInfo(**{**known, **info}))
    return model_card(subject, config, EFFECT, samples)


def front(text: str) -> Any:
    return yaml.safe_load(text.split("---\n")[1])


def test_front_matter() -> None:
    found = front(card())
    assert found["base_model"] == "embedded"
    assert found["instance_prompt"] == "a sks dog"
    assert found["license"] == "mit"
    assert found["pipeline_tag"] == "text-to-image"
    assert {"text-to-image", "coeff-diffusion"} <= set(found["tags"])
    assert found["widget"] == [{"text": "a sks dog", "output": {"url": "samples/step_000300_0.png"}}]
    assert ModelCard(card()).data.base_model == "embedded"


def test_only_bases_that_others_can_find_are_linked() -> None:
    assert front(card(base_model="me/sd"))["base_model"] == "me/sd"
    assert "base_model" not in front(card(base_model="my-local-folder"))
    assert front(card(license=""))["license"] == "other"


def test_body() -> None:
    text = card()
    assert "# Rex\n\n![a sks dog](samples/step_000300_0.png)" in text
    assert "64 numbers" in text
    assert "Prompts without `sks dog` give the base, unchanged." in text
    assert "the loss went from 0.2500 to 0.2000 (+20.0% better)" in text
    assert "It acts on every prompt." in card(gate="always")
    assert "widget" not in front(card(samples=()))
    prior = replace(CONFIG, with_prior_preservation=True, num_class_images=50)
    assert "with 50 pictures of `a dog`" in card(prior)


def test_names_are_text_not_markup() -> None:
    text = card(name='<script>alert("x")</script> ![](http://x) *Rex*', instance_prompt='a "sks dog"')
    assert "# \\<script\\>" in text
    assert "\\!\\[\\](http" in text
    assert 'pipe("a \\"sks dog\\"")' in text
    assert front(text)["instance_prompt"] == 'a "sks dog"'


def test_the_same_run_the_same_card() -> None:
    assert card() == card()
