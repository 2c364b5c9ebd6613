"""Coefficients of text encoders that learn: from the subject's prompts alone, the same in every run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image

from coeff_diffusion import CoeffConfig, Coefficients
from coeff_diffusion.families.registry import family_of
from coeff_diffusion.training.config import ConfigError, TrainConfig, parse_train_config
from coeff_diffusion.training.many_config import many_settings
from coeff_diffusion.training.many_trainer import train_many
from coeff_diffusion.training.model import training_layers
from coeff_diffusion.training.trainer import Trainer, train

TEXT = ["text_encoder/text_model.encoder.layers.0.self_attn", "text_encoder/text_model.encoder.layers.1.self_attn"]


@pytest.fixture
def config(subject_images: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        instance_data_dir=str(subject_images),
        class_word="dog",
        train="coefficients",
        layers="text",
        output_dir=str(tmp_path / "out"),
        max_train_steps=4,
        train_batch_size=1,
        cached_views=1,
        timeline_steps=2,
        validation_steps=0,
    )


def subject_of(config: TrainConfig, pipe: Any) -> Coefficients:
    return Coefficients.load(train(config, pipe, say=lambda line: None).path)


def test_only_text_learns_where_only_text_is_asked_for(config: TrainConfig, tiny_pipe: StableDiffusionPipeline) -> None:
    said: list[str] = []
    result = train(config, tiny_pipe, say=said.append)
    subject = Coefficients.load(result.path)
    assert list(subject) == TEXT
    assert all(coeff.any() for coeff in subject.values())
    assert subject.info.layers == "text"
    assert any("32 coefficients of 2 text encoder layers, from 5 pictures" in line for line in said)
    assert "coefficients of the text encoder" in (result.path / "README.md").read_text()


def test_both_learn_with_token_average_and_accumulation(
    config: TrainConfig, tiny_pipe: StableDiffusionPipeline
) -> None:
    more: dict[str, Any] = {"use_ema": True, "gradient_accumulation_steps": 2, "keep_best": True}
    config = replace(config, layers="all+text", train="coefficients+token", validate_every_n_steps=2, **more)
    subject = subject_of(config, tiny_pipe)
    assert len(subject) == 16
    assert all(subject[path].any() for path in TEXT)
    assert list(subject.tokens) == ["text_encoder"]


def test_a_killed_training_goes_on_exactly(config: TrainConfig, tiny_pipe: StableDiffusionPipeline) -> None:
    """With dropout in the text encoder: what is left out of a step depends on its number alone."""
    config = replace(config, layers="self+text", coeff_dropout=0.5, checkpointing_steps=2, max_train_steps=3)
    whole = subject_of(config, tiny_pipe)
    checkpoint = str(Path(str(config.output_dir)) / "checkpoints" / "step_000002.safetensors")
    again = replace(config, output_dir=f"{config.output_dir}-again", resume_from_checkpoint=checkpoint)
    assert subject_of(again, tiny_pipe) == whole


def test_class_prompts_are_read_by_the_base(
    config: TrainConfig, tiny_pipe: StableDiffusionPipeline, tmp_path: Path
) -> None:
    (tmp_path / "class").mkdir()
    Image.effect_noise((16, 16), 80).convert("RGB").save(tmp_path / "class" / "0.png")
    prior: dict[str, Any] = {"with_prior_preservation": True, "class_data_dir": str(tmp_path / "class")}
    trainer = Trainer(replace(config, num_class_images=1, **prior), tiny_pipe, say=lambda line: None)
    trainer.prepare(None)
    base = family_of(tiny_pipe).condition(tiny_pipe, ["a dog", "a sks dog"], (16, 16))["prompt_embeds"]
    with torch.no_grad():
        for parameter in trainer.learner.text_coefficients.values():
            parameter.fill_(0.5)
    prompts = trainer.data.prompts
    found = prompts.condition([1, 0])["prompt_embeds"]
    assert prompts.texts == ["a sks dog", "a dog"]
    assert torch.equal(found[0], tiny_pipe.encode_prompt("a dog", "cpu", 1, False)[0][0])
    assert not torch.allclose(found[1], base[1], atol=1e-3)
    found.sum().backward()
    assert all(parameter.grad is not None for parameter in trainer.learner.text_coefficients.values())


def test_both_text_encoders_of_xl_learn(config: TrainConfig, tiny_xl_pipe: StableDiffusionXLPipeline) -> None:
    subject = subject_of(config, tiny_xl_pipe)
    assert [path.partition("/")[0] for path in subject if subject[path].any()] == [
        "text_encoder",
        *["text_encoder_2"] * 2,
    ]


def test_many_subjects_learn_it_as_alone(
    config: TrainConfig, tiny_pipe: StableDiffusionPipeline, tmp_path: Path
) -> None:
    for number, name in enumerate(("dog", "rex.dog")):
        (tmp_path / "all" / name).mkdir(parents=True)
        Image.effect_noise((24, 24), 40 + 60 * number).convert("RGB").save(tmp_path / "all" / name / "0.png")
    settings: dict[str, Any] = {
        "layers": "self+text", "max_train_steps": 2, "train_batch_size": 2, "cached_views": 1, "coeff_dropout": 0.5,
    }  # fmt: skip
    together = train_many(
        tmp_path / "all",
        many_settings(**settings, output_dir=str(tmp_path / "many")),
        pipe=tiny_pipe,
        say=lambda line: None,
    )
    found = {Path(file).stem: Coefficients.load(file) for file in together.files.values()}["dog"]
    own = replace(config, instance_data_dir=str(tmp_path / "all" / "dog"), train="coefficients+token", **settings)
    alone = subject_of(own, tiny_pipe)
    assert (len(together.files), list(found)) == (2, list(alone))
    for path in TEXT:
        torch.testing.assert_close(found[path], alone[path], atol=2e-5, rtol=0.01)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--layers text", ("text", ())),
        ("--layers all+text", ("all+text", ())),
        ("--layers auto+text", ("all+text", ())),
        (
            "--layers cross+text --blocks+=mid_block.* --blocks+=text_encoder/*",
            ("cross+text", ("mid_block.*", "text_encoder/*")),
        ),
    ],
)
def test_choices(flags: str, expected: tuple[str, Any], tiny_pipe: StableDiffusionPipeline) -> None:
    config = parse_train_config(flags.split())
    assert training_layers(config, family_of(tiny_pipe)) == CoeffConfig(*expected)  # type: ignore[arg-type]


def test_presets_of_xl_take_it_along(tiny_xl_pipe: StableDiffusionXLPipeline) -> None:
    found = training_layers(TrainConfig(layers="style+text"), family_of(tiny_xl_pipe))
    assert found == CoeffConfig("all+text", ("up_blocks.0.attentions.1.*", "text_encoder*"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layers": "all+text", "blocks": ["mid_block.*"]}, "--blocks mid_block.* leaves no layer of the text encoder"),
        ({"layers": "all+text", "blocks": ["text_encoder/*"]}, "leaves no layer of the denoiser to learn"),
        ({"layers": "style+text"}, "--layers style means nothing for Stable Diffusion 1.x or 2.x"),
    ],
)
def test_a_choice_of_nothing_is_refused(
    changes: dict[str, Any], said: str, config: TrainConfig, tiny_pipe: StableDiffusionPipeline
) -> None:
    with pytest.raises(ConfigError) as error:
        train(replace(config, **changes), tiny_pipe, say=lambda line: None)
    assert said in str(error.value)
