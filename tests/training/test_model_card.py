"""The README.md of a run, as the Hub and people read it."""

import ast
import re
import shlex
from dataclasses import replace
from typing import Any

import torch
import yaml
from huggingface_hub import ModelCard

from coeff_diffusion.subject.coefficients import Coefficients
from coeff_diffusion.subject.info import CoefficientsInfo
from coeff_diffusion.training.config import TrainConfig
from coeff_diffusion.training.model_card import model_card, subject_card
from coeff_diffusion.training.probe import Effect

CONFIG = replace(
    TrainConfig(instance_data_dir="x", class_word="dog", license="mit", token_learning_rate=1e-3).resolve(),
    resolution=128,
    stage_token_learning_rate=0.03,
)
EFFECT = Effect(0.2, 0.25, 0.2)


def card(
    config: TrainConfig = CONFIG, samples: tuple[str, ...] = ("samples/step_000300_0.png",), **info: object
) -> str:
    known: dict[str, Any] = {
        "name": "Rex", "trigger": "sks dog", "class_word": "dog", "instance_prompt": "a sks dog", "seed": 0,
        "base_model": "user/base", "license": "mit", "resolution": 128, "train_steps": 300,
    }  # fmt: skip
    subject = Coefficients({"mid_block.attn1": torch.ones(8, 8)}, info=CoefficientsInfo(**{**known, **info}))
    return model_card(subject, config, EFFECT, samples)


def front(text: str) -> Any:
    return yaml.safe_load(text.split("---\n")[1])


def test_front_matter() -> None:
    found = front(card())
    assert found["base_model"] == "user/base"
    assert found["base_model_relation"] == "adapter"
    assert found["instance_prompt"] == "a sks dog"
    assert found["license"] == "mit"
    assert found["pipeline_tag"] == "text-to-image"
    assert {"text-to-image", "coeff-diffusion"} <= set(found["tags"])
    assert found["widget"] == [{"text": "a sks dog", "output": {"url": "samples/step_000300_0.png"}}]
    assert ModelCard(card()).data.base_model == "user/base"


def test_rates_of_what_learned_are_told() -> None:
    assert "learning rate 0.001 (coefficients), 0.001 (token), 0.03 (what the stages read); seed 0." in card()
    assert "learning rate 0.001 (coefficients); seed 0." in card(replace(CONFIG, train="coefficients"))
    words = card(replace(CONFIG, train="token", with_adapter="lora:4"), adapter="lora:4")
    assert "learning rate 0.001 (token), 0.03 (what the stages read), 0.0001 (adapter); seed 0." in words


def test_only_bases_on_the_hub_are_linked_and_only_public_ones_named() -> None:
    assert front(card(base_model="me/sd"))["base_model"] == "me/sd"
    embedded = card(base_model="embedded")
    assert "base_model" not in front(embedded)
    assert 'load_base("embedded")' in embedded
    local = card(base_model="my-local-folder", base_architecture="stable-diffusion-v1")
    assert "base_model" not in front(local)
    assert "my-local-folder" not in local
    assert "one of the family `stable-diffusion-v1` that is not public" in local


def test_licenses_are_named_as_the_hub_does() -> None:
    assert front(card(license=""))["license"] == "other"
    assert front(card(license="CC0-1.0"))["license"] == "cc0-1.0"
    own = front(card(license="Ask me first!"))
    assert (own["license"], own["license_name"]) == ("other", "ask-me-first")


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


def test_a_subject_of_which_only_its_file_is_known() -> None:
    tensors = {"mid_block.attn1": torch.ones(2, 2)}, {"text_encoder": torch.ones(1, 4)}
    text = subject_card(
        Coefficients(*tensors, CoefficientsInfo(trigger="sks dog", gate="always")), {"samples/a.png": "x"}
    )
    assert "# sks dog\n\n![x](samples/a.png)" in text
    assert "8 numbers\n(coefficients of the attention maps and the embedding of the trigger)" in text
    assert "make the base draw this subject" in text
    assert "**Trigger:** `sks dog`. It acts on every prompt." in text
    assert "one of the family `unknown` that is not public" in text
    assert "Nothing is known about it." in text
    assert front(text)["widget"] == [{"text": "x", "output": {"url": "samples/a.png"}}]
    known = CoefficientsInfo(train_steps=200, resolution=512, seed=3, effect=0.051, trained_with="x 1")
    text = subject_card(Coefficients(tensors[0], info=known), {})
    assert "200 steps, pictures of 512 pixels, seed 3, with x 1." in text
    assert "changes the predictions by 5.1%" in text
    assert "widget" not in front(text)
    assert "instance_prompt" not in front(text)


def test_what_is_pasted_runs_nothing_else() -> None:
    text = card(instance_prompt='a dog"); print("x")\n$(date) `date`', base_model='x"); print("y")', trigger="a`b")
    code = re.findall(r"```(?:python)?\n(.*?)```", text, re.DOTALL)
    assert [type(node).__name__ for node in ast.parse(code[0]).body] == ["ImportFrom", "Assign", "Expr", "Expr"]
    words = shlex.split(code[1].replace("\\\n", ""))
    assert words[-1] == 'a dog"); print("x") $(date) `date`'
    assert "'y'" not in text
    assert "**Trigger:** `a'b`." in text


def test_names_are_text_not_markup() -> None:
    text = card(name='<script>alert("x")</script> ![](http://x) *Rex*', instance_prompt='a "sks dog"')
    assert "# \\<script\\>" in text
    assert "\\!\\[\\](http" in text
    assert 'pipe("a \\"sks dog\\"")' in text
    assert front(text)["instance_prompt"] == 'a "sks dog"'


def test_the_same_run_the_same_card() -> None:
    assert card() == card()


def test_a_card_for_xl_names_its_pipeline() -> None:
    assert "StableDiffusionPipeline" in card()
    assert "stable-diffusion-xl" not in front(card())["tags"]
    by_name = card(base_architecture="stable-diffusion-xl-v1-base")
    tokens = {"text_encoder": torch.ones(1, 768), "text_encoder_2": torch.ones(1, 1280)}
    by_tokens = subject_card(Coefficients({}, tokens, CoefficientsInfo(trigger="sks dog")), {})
    for text in (by_name, by_tokens):
        assert "or any StableDiffusionXLPipeline of the same family" in text
        assert "A subject for Stable Diffusion XL, learned" in text
        assert "stable-diffusion-xl" in front(text)["tags"]
