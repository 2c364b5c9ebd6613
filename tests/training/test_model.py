"""The frozen base with the few numbers that learn."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from coeff_diffusion import load_coefficients
from coeff_diffusion.families.fingerprint import check_fits
from coeff_diffusion.families.load import load_base
from coeff_diffusion.families.stable_diffusion import StableDiffusion
from coeff_diffusion.families.stable_diffusion_xl import StableDiffusionXL
from coeff_diffusion.method.attachment import layer_heads
from coeff_diffusion.training.config import ConfigError, TrainConfig
from coeff_diffusion.training.model import Learner, training_layers, training_resolution
from coeff_diffusion.training.probe import Effect

CPU = torch.device("cpu")


@pytest.fixture
def config() -> TrainConfig:
    return replace(TrainConfig(instance_data_dir="x", class_word="dog").resolve(), resolution=16)


def denoise(learner: Learner, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    noised = torch.randn(2, 4, 8, 8, generator=generator)
    condition = learner.condition(["a sks dog", "a cat"], (16, 16))
    return learner.denoise(noised, torch.tensor([10, 500]), condition)


def test_untrained_coefficients_are_the_base(tiny_pipe: StableDiffusionPipeline, config: TrainConfig) -> None:
    learner = Learner(tiny_pipe, replace(config, train="coefficients"), CPU)
    generator = torch.Generator().manual_seed(0)
    noised, steps = torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([10, 500])
    text = tiny_pipe.encode_prompt(["a sks dog", "a cat"], "cpu", 1, do_classifier_free_guidance=False)[0]
    with torch.no_grad():
        expected = tiny_pipe.unet(noised, steps, encoder_hidden_states=text).sample
        assert torch.equal(denoise(learner), expected)


def test_an_untrained_token_is_the_class_word(tiny_pipe: StableDiffusionPipeline, config: TrainConfig) -> None:
    learner = Learner(tiny_pipe, replace(config, train="token"), CPU)
    plain = tiny_pipe.encode_prompt(["a dog"], "cpu", 1, do_classifier_free_guidance=False)[0]
    torch.testing.assert_close(learner.condition(["a sks dog"], (16, 16))["prompt_embeds"], plain)


def test_only_coefficients_and_token_get_gradients(tiny_pipe: StableDiffusionPipeline, config: TrainConfig) -> None:
    learner = Learner(tiny_pipe, config, CPU)
    learner.train(True)
    denoise(learner).square().mean().backward()
    assert all(bool(parameter.grad.any()) for parameter in learner.parameters.values() if parameter.grad is not None)
    assert all(parameter.grad is not None for parameter in learner.parameters.values())
    frozen = [*learner.denoiser.parameters(), *learner.student.text_encoder.parameters()]
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in frozen)
    heads = layer_heads(tiny_pipe.unet).values()
    trained = sum(parameter.numel() for parameter in learner.parameters.values())
    assert trained == sum(h * h for h in heads) + 32 + 5 * 32
    assert list(learner.parameters)[-6:-4] == ["token/text_encoder", "stage/down_blocks.0"]


def test_stage_tokens_come_with_the_token_unless_left_out(
    tiny_pipe: StableDiffusionPipeline, config: TrainConfig
) -> None:
    assert len(Learner(tiny_pipe, config, CPU).snapshot(1, []).stage_tokens) == 5
    for changes in ({"stage_tokens": False}, {"train": "coefficients"}):
        assert not Learner(tiny_pipe, replace(config, **changes), CPU).snapshot(1, []).stage_tokens


def test_dropout_is_on_the_coefficients_and_in_training_only(
    tiny_pipe: StableDiffusionPipeline, config: TrainConfig
) -> None:
    for block in tiny_pipe.unet.modules():
        if isinstance(block, torch.nn.Dropout):
            block.p = 0.5  # a base with dropout of its own: nothing of it may train
    learner = Learner(tiny_pipe, replace(config, coeff_dropout=0.5), CPU)
    with torch.no_grad():
        for coeff in learner.coefficients.values():
            coeff += 0.3
        still = denoise(learner)
        learner.train(True)
        noisy = [denoise(learner) for _ in range(2)]
        assert not torch.equal(noisy[0], noisy[1])
        for coeff in learner.coefficients.values():
            coeff.zero_()
        learner.train(False)
        zero = denoise(learner)
        learner.train(True)
        torch.testing.assert_close(denoise(learner), zero)
        for coeff in learner.coefficients.values():
            coeff += 0.3
        learner.train(False)
        assert torch.equal(denoise(learner), still)


def test_a_snapshot_is_a_copy_that_fits(tiny_pipe: StableDiffusionPipeline, config: TrainConfig) -> None:
    learner = Learner(tiny_pipe, config, CPU)
    with torch.no_grad():
        for parameter in learner.parameters.values():
            parameter += 0.01
    first = learner.snapshot(3, [0.5, 0.25], Effect(0.123456789, 1, 1))
    assert (first.info.train_steps, first.info.final_loss, first.info.effect) == (3, 0.375, 0.123457)
    check_fits(first, tiny_pipe.unet)
    with torch.no_grad():
        for parameter in learner.parameters.values():
            parameter += 0.01
    second = learner.snapshot(4, [])
    assert second.info.final_loss is None
    assert all(float((second[path] - first[path]).mean()) == pytest.approx(0.01, rel=1e-3) for path in first)
    load_coefficients(tiny_pipe, first)


def test_a_snapshot_predicts_what_the_learner_predicts(tiny_pipe: StableDiffusionPipeline, config: TrainConfig) -> None:
    """What was trained is what is loaded: the same prediction through the stock pipeline."""
    learner = Learner(tiny_pipe, config, CPU)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in learner.parameters.values():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(parameter.half())  # a snapshot is rounded to it
        expected = denoise(learner)[:1]
        load_coefficients(tiny_pipe, learner.snapshot(1, []))
        text = tiny_pipe.encode_prompt(["a sks dog"], "cpu", 1, do_classifier_free_guidance=False)[0]
        noised = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        found = tiny_pipe.unet(noised[:1], torch.tensor([10]), encoder_hidden_states=text).sample
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def reloaded(learner: Learner) -> Learner:
    found: Learner = pickle.loads(pickle.dumps(learner))
    return found


@pytest.mark.parametrize("copied", [copy.deepcopy, reloaded])
def test_a_copied_learner_learns_on_its_own(
    tiny_pipe: StableDiffusionPipeline, config: TrainConfig, copied: Callable[[Learner], Learner]
) -> None:
    learner = Learner(tiny_pipe, config, CPU)
    with torch.no_grad():
        for parameter in learner.parameters.values():
            parameter += 0.3 * torch.randn(parameter.shape)
    expected = denoise(learner)
    twin = copied(learner)  # while the last prediction may still be differentiated
    assert torch.equal(denoise(twin), expected)
    denoise(twin).square().mean().backward()
    assert all(parameter.grad is not None for parameter in twin.parameters.values())
    assert all(parameter.grad is None for parameter in learner.parameters.values())
    with torch.no_grad():
        for parameter in twin.parameters.values():
            parameter += 0.3
    assert torch.equal(denoise(learner), expected)
    assert not torch.allclose(denoise(twin), expected, atol=1e-3)


def test_resolution(tiny_pipe: StableDiffusionPipeline) -> None:
    assert training_resolution(None, tiny_pipe) == 16
    assert training_resolution(24, tiny_pipe) == 24
    with pytest.raises(ConfigError, match="--resolution is 18, expected a multiple of 8 for this base"):
        training_resolution(18, tiny_pipe)


# --- which layers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "starts", "stages"),
    [
        ("auto", ["up_blocks.0.attentions.0", "up_blocks.0.attentions.1"], ["up_blocks.0"]),
        ("light", ["up_blocks.0.attentions.0", "up_blocks.0.attentions.1"], ["up_blocks.0"]),
        ("content", ["up_blocks.0.attentions.0"], ["up_blocks.0"]),
        ("style", ["up_blocks.0.attentions.1"], ["up_blocks.0"]),
        ("all", ["down_blocks.1", "mid_block", "up_blocks.0"], ["down_blocks.1", "up_blocks.0", "mid_block"]),
    ],
)
def test_the_choices_of_layers_on_xl(
    tiny_xl_pipe: StableDiffusionXLPipeline, config: TrainConfig, layers: str, starts: list[str], stages: list[str]
) -> None:
    """Coefficients where they were asked for, a stage token where a stage has some, and the file says so and fits."""
    learner = Learner(tiny_xl_pipe, replace(config, layers=layers), CPU)
    found = {next((start for start in starts if path.startswith(start)), path) for path in learner.coefficients}
    assert found == set(starts)
    assert sorted(learner.stage_tokens) == sorted(stages)
    if layers == "light":
        assert {path.rpartition(".")[2] for path in learner.coefficients} == {"attn2"}
    subject = learner.snapshot(1, [0.5])
    assert subject.info.layers == "all"
    assert bool(subject.info.blocks) is (layers != "all")
    load_coefficients(tiny_xl_pipe, subject)


def test_the_embedded_base_learns_where_a_token_matters(config: TrainConfig) -> None:
    pipe, config = load_base(), replace(config, resolution=128)
    learner = Learner(pipe, config, CPU)
    assert sorted(learner.stage_tokens) == ["down_blocks.1", "up_blocks.0", "up_blocks.1", "up_blocks.2"]
    assert all(path.startswith((*learner.stage_tokens,)) for path in learner.coefficients)
    assert sum(parameter.numel() for parameter in learner.parameters.values()) <= 131_584 / 50  # of a LoRA of rank 4
    load_coefficients(pipe, learner.snapshot(1, [0.5]))
    for changes in ({"layers": "all"}, {"stage_tokens": False}):
        assert len(Learner(load_base(), replace(config, **changes), CPU).coefficients) == 20


@pytest.mark.parametrize("train", ["coefficients+token", "token"])
def test_a_pattern_that_matches_nothing_is_named(
    tiny_pipe: StableDiffusionPipeline, config: TrainConfig, train: str
) -> None:
    """Beside others that do match it, too: stages that were meant would not learn."""
    Learner(tiny_pipe, replace(config, train=train, blocks=["up_blocks.*", "mid_block.*"]), CPU)
    with pytest.raises(ConfigError, match=r"--blocks dwn_blocks\.\* text_encoder\* matches no layer that could learn"):
        Learner(tiny_pipe, replace(config, train=train, blocks=["up_blocks.*", "dwn_blocks.*", "text_encoder*"]), CPU)
    Learner(tiny_pipe, replace(config, train=train, layers="all+text", blocks=["up_blocks.*", "text_encoder*"]), CPU)


def test_choices_that_a_family_does_not_know(config: TrainConfig) -> None:
    sd, xl = StableDiffusion(), StableDiffusionXL()
    assert training_layers(config, sd).blocks == ()
    assert training_layers(replace(config, blocks=["mid_block.*"]), xl).blocks == ("mid_block.*",)
    with pytest.raises(ConfigError, match=r"--layers style means nothing for .* 2\.x; it knows auto, all"):
        training_layers(replace(config, layers="style"), sd)
    with pytest.raises(ConfigError, match="--layers content says which blocks; leave --blocks out"):
        training_layers(replace(config, layers="content", blocks=["mid_block.*"]), xl)
