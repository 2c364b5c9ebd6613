"""Coefficients and an adapter that learn together: stock diffusers and PEFT are what the adapter is held to."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image
from training_runs import train_and_kill

from coeff_diffusion.commands.config import InfoConfig, PullConfig, PushConfig, VerifyConfig
from coeff_diffusion.commands.generate import generate
from coeff_diffusion.commands.generate_config import GenerateConfig
from coeff_diffusion.commands.info import show_info
from coeff_diffusion.commands.push_pull import pull, push
from coeff_diffusion.commands.verify import verify
from coeff_diffusion.families.fingerprint import check_adapter_fits
from coeff_diffusion.inference.pipeline_subjects import load_coefficients, set_coefficients, unload_coefficients
from coeff_diffusion.inference.request import DrawRequest
from coeff_diffusion.inference.studio import Studio
from coeff_diffusion.sources.image_card import chunks
from coeff_diffusion.sources.library import Library
from coeff_diffusion.subject.adapter_methods import ADAPTER_FILES, LORA_FILE, OWN_FILE
from coeff_diffusion.subject.blend import blend
from coeff_diffusion.subject.coefficients import Coefficients
from coeff_diffusion.subject.errors import CoefficientsError
from coeff_diffusion.subject.layer_strengths import LayerStrengths
from coeff_diffusion.training import validation
from coeff_diffusion.training.config import ConfigError, TrainConfig, parse_train_config
from coeff_diffusion.training.many_trainer import train_many
from coeff_diffusion.training.probe import MOST
from coeff_diffusion.training.run_folder import RunFolder
from coeff_diffusion.training.timeline import keep_step
from coeff_diffusion.training.trainer import train

PROMPTS = ["a sks dog", "a cat"]


@pytest.fixture
def config(subject_images: Path, tmp_path: Path) -> TrainConfig:
    """Coefficients alone beside the adapter: without a learned word a stock pipeline reads the same prompts."""
    return TrainConfig(
        instance_data_dir=str(subject_images),
        class_word="dog",
        train="coefficients",
        with_adapter="lora:4",
        adapter_learning_rate=1e-2,
        output_dir=str(tmp_path / "out"),
        max_train_steps=4,
        train_batch_size=1,
        timeline_steps=2,
        validation_steps=0,
    )


def drawn(pipe: Any, prompts: list[str]) -> np.ndarray:
    """The pictures of prompts in one batch, `[P, h, w, 3]`."""
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    return pipe(prompt=prompts, num_inference_steps=2, generator=generators, output_type="np").images


@pytest.mark.parametrize("kind", ["lora:4", "dora:4"])
def test_stock_diffusers_draws_with_the_adapter_what_we_draw(
    kind: str, config: TrainConfig, tiny_pipe: StableDiffusionPipeline, tiny_base_dir: Path
) -> None:
    folder = train(replace(config, with_adapter=kind), tiny_pipe).path
    base = drawn(tiny_pipe, PROMPTS)
    stock = StableDiffusionPipeline.from_pretrained(tiny_base_dir)
    stock.set_progress_bar_config(disable=True)
    stock.load_lora_weights(folder)
    theirs = drawn(stock, PROMPTS[:1])
    theirs_of_both = drawn(stock, PROMPTS)

    name = load_coefficients(tiny_pipe, folder)
    joined = drawn(tiny_pipe, PROMPTS)
    without_coefficients = LayerStrengths(self_attention=0, cross_attention=0)
    set_coefficients(tiny_pipe, {name: 1}, layers=without_coefficients)
    assert np.array_equal(drawn(tiny_pipe, PROMPTS[:1]), theirs)
    both = drawn(tiny_pipe, PROMPTS)
    assert np.array_equal(both[0], theirs_of_both[0])
    assert np.array_equal(both[1], base[1])  # its prompt does not call the subject up
    set_coefficients(tiny_pipe, {name: 1}, adapter_strength=0)
    coefficients_alone = drawn(tiny_pipe, PROMPTS)
    for one, other in [(joined, both), (joined, coefficients_alone), (both, base), (coefficients_alone, base)]:
        assert not np.array_equal(one[0], other[0])
    set_coefficients(tiny_pipe, {name: 0})
    assert np.array_equal(drawn(tiny_pipe, PROMPTS), base)
    unload_coefficients(tiny_pipe)
    assert np.array_equal(drawn(tiny_pipe, PROMPTS), base)
    assert not any(module._forward_hooks for module in tiny_pipe.unet.modules())


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """What a run leaves of what it learned."""
    names = ("coefficients.safetensors", *ADAPTER_FILES, "timeline.safetensors", "adapters/*", "samples/*")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for name in names for path in folder.glob(name)}


def test_a_killed_run_resumes_exactly_with_its_adapter_average_and_best_step(
    config: TrainConfig,
    tiny_base_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(validation, "MOST", MOST)  # as in the process that is killed
    config = replace(
        config,
        pretrained_model_name_or_path=str(tiny_base_dir),
        train="coefficients+token",
        with_adapter="ssf",
        use_ema=True,
        keep_best=True,
        validate_every_n_steps=1,
        validation_steps=2,
        num_validation_images=1,
        checkpointing_steps=1,
    )
    tiny_pipe = StableDiffusionPipeline.from_pretrained(tiny_base_dir)  # as that process loads it, to the bit
    whole = train(config, tiny_pipe)
    out = tmp_path / "killed"
    train_and_kill(replace(config, output_dir=str(out)), 3, tmp_path / "killed.yaml")
    resumed = train(replace(config, output_dir=str(out), resume_from_checkpoint="latest"), tiny_pipe)
    assert folder_bytes(out) == folder_bytes(whole.path)
    best = resumed.coefficients.info.train_steps
    assert best is not None
    assert (out / OWN_FILE).read_bytes() == RunFolder(out).adapter_of_step(best).read_bytes()
    with pytest.raises(ValueError, match="with_adapter was 'ssf' and is 'lora:4'"):
        train(replace(config, output_dir=str(out), resume_from_checkpoint="latest", with_adapter="lora:4"), tiny_pipe)


def test_what_is_measured_and_shown_on_the_way_is_what_the_files_give(
    config: TrainConfig, tiny_pipe: StableDiffusionPipeline
) -> None:
    shown: list[Image.Image] = []
    result = train(
        replace(config, validation_steps=4, num_validation_images=1, trigger="sks dog"),
        tiny_pipe,
        on_preview=lambda report: shown.append(report.pictures[0].image),
    )
    studio = Studio(tiny_pipe)
    name = studio.load(result.path)
    request = DrawRequest("a sks dog", subjects={name: 1.0}, seed=0, width=16, height=16)
    (picture,) = studio.draw(request)
    assert picture.image.tobytes() == shown[-1].tobytes()
    (again,) = studio.draw(replace(request, adapter_strength=0.5))
    assert "Adapter strength: 0.5" in again.parameters
    assert again.image.tobytes() != picture.image.tobytes()


def test_a_picture_is_drawn_again_with_the_strength_of_its_adapter(
    config: TrainConfig, tiny_pipe: StableDiffusionPipeline, tiny_base_dir: Path, tmp_path: Path
) -> None:
    folder = str(train(config, tiny_pipe).path)
    common = {"subject": [folder], "base": str(tiny_base_dir), "output_dir": str(tmp_path / "pictures")}
    settings = {"adapter_strength": 0.5, "seed": 3, "num_inference_steps": 2}
    (drawn_first,) = generate(GenerateConfig(prompt=["a sks dog"], settings=settings, **common))
    (again,) = generate(GenerateConfig(from_picture=str(drawn_first), **common))
    (whole,) = generate(GenerateConfig(from_picture=str(drawn_first), settings={"adapter_strength": 1.0}, **common))
    pixels = [Image.open(path).tobytes() for path in (drawn_first, again, whole)]
    assert pixels[0] == pixels[1] != pixels[2]


def test_any_step_of_the_timeline_can_be_made_the_subject(
    config: TrainConfig, tiny_pipe: StableDiffusionPipeline
) -> None:
    run = RunFolder(train(config, tiny_pipe).path)
    adapter = run.path / LORA_FILE
    last = adapter.read_bytes()
    keep_step(run, 2)
    assert adapter.read_bytes() == run.adapter_of_step(2).read_bytes() != last
    assert Coefficients.load(run.path).adapter is not None
    run.adapter_of_step(4).unlink()
    with pytest.raises(CoefficientsError, match=r"step_000004.safetensors is gone: the adapter \(lora:4\) of step 4"):
        keep_step(run, 4)


def test_a_subject_and_its_adapter_belong_together(
    config: TrainConfig,
    tiny_pipe: StableDiffusionPipeline,
    tiny_xl_pipe: StableDiffusionXLPipeline,
    tmp_path: Path,
) -> None:
    lines: list[str] = []
    result = train(config, tiny_pipe, say=lines.append)
    adapter = result.path / LORA_FILE
    digits = hashlib.sha256(adapter.read_bytes()).hexdigest()
    assert any(line.startswith(f"saved {adapter} (") and line.endswith("the adapter, lora:4") for line in lines)
    assert result.coefficients.info.adapter_sha256 == digits
    assert result.coefficients.adapter is not None
    values = result.coefficients.adapter.values
    assert f"`{LORA_FILE}` (`lora:4`)" in (result.path / "README.md").read_text()
    show_info(InfoConfig(str(result.path)), lines.append)
    assert f"lora:4, {LORA_FILE} (SHA-256 {digits[:12]}...), {values:,} values, " in lines[-1]

    shared = tmp_path / "shared"
    push(PushConfig(str(result.path), str(shared)), lines.append)
    pull(PullConfig(str(shared), str(tmp_path / "pulled")), lines.append)
    assert (tmp_path / "pulled" / LORA_FILE).read_bytes() == adapter.read_bytes()
    verify(VerifyConfig(str(tmp_path / "pulled")), lines.append)
    assert "an adapter (lora:4, its hash is right)" in lines[-1]
    library = Library(tmp_path / "library")
    assert library.add(shared / "coefficients.safetensors") == "sks-dog"  # all files are called coefficients
    assert list(library.find()) == ["sks-dog"]
    assert library.subjects()["sks-dog"].adapter is not None

    subject = Coefficients.load(shared)
    for refused in (
        lambda: chunks([subject]),
        lambda: blend([(subject, 0.5)]),
        lambda: subject.save(tmp_path / "dog.safetensors"),
        lambda: check_adapter_fits(subject, tiny_xl_pipe.unet),
    ):
        with pytest.raises(CoefficientsError, match="adapter"):
            refused()

    (shared / LORA_FILE).unlink()
    show_info(InfoConfig(str(shared)), lines.append)
    assert "NOT THERE" in lines[-1]
    for refused in (
        lambda: load_coefficients(tiny_pipe, shared),
        lambda: push(PushConfig(str(shared), str(tmp_path / "lost")), lines.append),
        lambda: pull(PullConfig(str(shared), str(tmp_path / "lost")), lines.append),
        lambda: Library(tmp_path / "empty").add(shared / "coefficients.safetensors"),
    ):
        with pytest.raises(CoefficientsError, match=r"adapter.*is not there"):
            refused()
    adapter_of_another = train(replace(config, output_dir=str(tmp_path / "other"), seed=1), tiny_pipe).path / LORA_FILE
    (shared / LORA_FILE).write_bytes(adapter_of_another.read_bytes())
    with pytest.raises(
        CoefficientsError, match=f"not the adapter that the subject learned with.*expected {digits[:12]}"
    ):
        load_coefficients(tiny_pipe, shared)
    assert not hasattr(tiny_pipe, "_coeff_subjects")


def test_xl_learns_with_an_adapter(config: TrainConfig, tiny_xl_pipe: StableDiffusionXLPipeline) -> None:
    folder = train(config, tiny_xl_pipe).path
    load_coefficients(tiny_xl_pipe, folder)
    set_coefficients(tiny_xl_pipe, {"sks dog": 1}, layers=LayerStrengths(self_attention=0, cross_attention=0))
    ours = drawn(tiny_xl_pipe, PROMPTS[:1])
    unload_coefficients(tiny_xl_pipe)
    tiny_xl_pipe.load_lora_weights(folder)
    assert np.array_equal(ours, drawn(tiny_xl_pipe, PROMPTS[:1]))


def test_settings_that_no_adapter_can_have_are_refused(config: TrainConfig) -> None:
    with pytest.raises(ConfigError, match=r"--with: the adapter 'oft:4' is not known; expected lora:RANK, dora:RANK"):
        replace(config, with_adapter="oft:4").resolve()
    with pytest.raises(ConfigError, match=r"--with dora:4 computes with the base's own weights"):
        replace(config, with_adapter="dora:4", quantization="int8").resolve()


def test_the_flag_and_the_key_are_called_with(config: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "with.yaml").write_text("with: lora:8\n")
    assert TrainConfig.from_yaml(tmp_path / "with.yaml").with_adapter == "lora:8"
    found = parse_train_config(["--config", str(tmp_path / "with.yaml"), "--with", "dora:2"], say=lambda line: None)
    assert found.with_adapter == "dora:2"
    (tmp_path / "all.yaml").write_text(config.to_yaml())
    assert TrainConfig.from_yaml(tmp_path / "all.yaml") == config
    with pytest.raises(ConfigError, match="--with is of a single training"):
        train_many(tmp_path, replace(config, output_dir=None))
