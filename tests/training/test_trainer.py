"""Real training runs on the tiny base, from the folder of pictures to the folder of results."""

import errno
import os
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image
from training_runs import train_and_kill

from coeff_diffusion.cli import main
from coeff_diffusion.images.files import read_parameters
from coeff_diffusion.images.photo import DatasetError
from coeff_diffusion.inference.pipeline_subjects import load_coefficients
from coeff_diffusion.inference.request import DrawRequest
from coeff_diffusion.inference.studio import Studio
from coeff_diffusion.subject import atomic_write as files
from coeff_diffusion.subject.coefficients import Coefficients
from coeff_diffusion.subject.errors import CoefficientsError
from coeff_diffusion.training.checkpoint import CheckpointError
from coeff_diffusion.training.config import ConfigError, TrainConfig
from coeff_diffusion.training.launched import unread
from coeff_diffusion.training.reports import PreviewReport, StepReport, TrainingCancelled, TrainingError, TrainResult
from coeff_diffusion.training.timeline import load_losses, load_timeline
from coeff_diffusion.training.trainer import Trainer, train

LAYERS = 14
VALUES = 608  # the sum of the squared head counts of the tiny base's layers
WIDTH = 32


@pytest.fixture
def config(subject_images: Path, tmp_path: Path) -> TrainConfig:
    """Short and without previews; tests switch on what they are about."""
    return TrainConfig(
        instance_data_dir=str(subject_images),
        class_word="dog",
        output_dir=str(tmp_path / "out"),
        max_train_steps=6,
        train_batch_size=2,
        timeline_steps=3,
        validation_steps=0,
        num_validation_images=1,
    )


@pytest.fixture
def run(config: TrainConfig, tiny_pipe: StableDiffusionPipeline) -> Callable[..., TrainResult]:
    def run(to: str = "out", callbacks: dict[str, Any] | None = None, **changes: Any) -> TrainResult:
        folder = str(Path(str(config.output_dir)).parent / to)
        return train(replace(config, output_dir=folder, **changes), tiny_pipe, **(callbacks or {}))

    return run


def tree(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# --- end to end -------------------------------------------------------------------------------------------------------


def test_from_pictures_to_results(
    tiny_base_dir: Path, subject_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One command as a user types it; exactly these files; the file acts; its own config makes it again."""
    out = tmp_path / "my dog"
    arguments = [
        *("--base", str(tiny_base_dir), "--instance_data_dir", str(subject_images), "--class_word", "dog"),
        *("--output_dir", str(out), "--max_train_steps", "5", "--validation_steps", "3", "--timeline_steps", "2"),
        *("--license", "cc0-1.0", "--center_crop"),
    ]
    assert main(["train", *arguments]) == 0
    assert tree(out) == [
        "README.md",
        "coefficients.safetensors",
        "config.yaml",
        "samples/step_000000_0.png",
        "samples/step_000000_1.png",
        "samples/step_000003_0.png",
        "samples/step_000003_1.png",
        "samples/step_000005_0.png",
        "samples/step_000005_1.png",
        "timeline.safetensors",
    ]
    said = capsys.readouterr()
    assert (
        "608 coefficients of 14 attention layers, 32 values of the trigger's embedding, 160 of what 5 stages read "
        "there, from 5 pictures" in said.out
    )
    assert f"saved {out / 'coefficients.safetensors'}" in said.out
    assert "5/5 [" in said.err
    assert "loss " in said.err
    assert " left]" in said.err

    subject = Coefficients.load(out)
    assert len(subject) == LAYERS
    assert sum(coeff.numel() for coeff in subject.values()) == VALUES
    assert subject.tokens["text_encoder"].shape == (1, WIDTH)
    info = subject.info
    assert (info.trigger, info.class_word, info.instance_prompt, info.gate) == (
        "sks dog",
        "dog",
        "a sks dog",
        "trigger",
    )
    assert (info.base_model, info.resolution, info.prediction_type, info.seed) == ("tiny", 16, "epsilon", 0)
    assert (info.train_steps, info.license, info.created) == (5, "cc0-1.0", "")
    assert info.final_loss is not None
    assert info.effect is not None
    assert info.effect > 0.01

    timeline = load_timeline(out / "timeline.safetensors")
    assert list(timeline) == [2, 4, 5]
    assert timeline[5].named_tensors().keys() == subject.named_tensors().keys()
    assert all(torch.equal(value, timeline[5][path]) for path, value in subject.items())
    assert len(load_losses(out / "timeline.safetensors")) == 5
    parameters = read_parameters(out / "samples" / "step_000005_0.png")
    assert (parameters.prompt, parameters.seed, parameters.subjects) == ("a sks dog", 0, {"sks dog": 1.0})

    settings = TrainConfig.from_yaml(out / "config.yaml")
    assert (settings.trigger, settings.resolution, settings.max_train_steps) == ("sks dog", 16, 5)
    again = train(replace(settings, output_dir=str(tmp_path / "again")))
    for name in tree(out):
        if name != "config.yaml":  # it names its own folder
            assert (out / name).read_bytes() == (again.path / name).read_bytes(), name


def test_the_preview_is_what_the_file_draws(
    run: Callable[..., TrainResult], tiny_base_dir: Path, tiny_pipe: StableDiffusionPipeline
) -> None:
    seen: list[PreviewReport] = []
    result = run(validation_steps=3, callbacks={"on_preview": seen.append}, seed=5)
    assert [report.step for report in seen] == [0, 3, 6]
    studio = Studio(tiny_pipe)
    before, *seen = seen  # nothing is learned yet: what the base makes of the class word
    of_base = studio.draw(DrawRequest("a dog", seed=5, width=16, height=16))[0].image
    assert before.pictures[0].image.tobytes() == of_base.tobytes()
    for report in seen:
        studio.load(load_timeline(result.path / "timeline.safetensors")[report.step], name="dog")
        request = DrawRequest("a sks dog", subjects={"dog": 1.0}, seed=5, width=16, height=16)
        assert studio.draw(request)[0].image.tobytes() == report.pictures[0].image.tobytes()
        assert Image.open(report.paths[0]).tobytes() == report.pictures[0].image.tobytes()
        studio.unload("dog")


# --- what learns ------------------------------------------------------------------------------------------------------


def weights_of(pipe: StableDiffusionPipeline) -> dict[str, torch.Tensor]:
    parts = {"unet": pipe.unet, "text_encoder": pipe.text_encoder, "vae": pipe.vae}
    return {f"{n}.{k}": v.clone() for n, part in parts.items() for k, v in part.state_dict().items()}


def test_nothing_of_the_base_changes(run: Callable[..., TrainResult], tiny_pipe: StableDiffusionPipeline) -> None:
    before, processors = weights_of(tiny_pipe), dict(tiny_pipe.unet.attn_processors)
    tokenizer, flags = tiny_pipe.tokenizer, [p.requires_grad for p in tiny_pipe.unet.parameters()]
    random_state = torch.get_rng_state()
    run(validation_steps=3, gradient_checkpointing=True, mixed_precision="bf16")
    after = weights_of(tiny_pipe)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert tiny_pipe.unet.attn_processors == processors
    assert tiny_pipe.tokenizer is tokenizer
    assert [p.requires_grad for p in tiny_pipe.unet.parameters()] == flags
    assert not tiny_pipe.unet.is_gradient_checkpointing
    assert tiny_pipe.unet.dtype == torch.float32
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize(
    ("changes", "layers", "vectors"),
    [
        ({"train": "coefficients"}, LAYERS, 0),
        ({"train": "token", "num_vectors": 3}, 0, 3),
        ({"layers": "cross", "num_vectors": 2}, LAYERS // 2, 2),
        ({"layers": "self", "blocks": ["up_blocks.*", "mid_block.*"], "train": "coefficients"}, 5, 0),
    ],
)
def test_what_is_trained_is_what_is_saved(
    run: Callable[..., TrainResult],
    tiny_pipe: StableDiffusionPipeline,
    changes: dict[str, Any],
    layers: int,
    vectors: int,
) -> None:
    result = run(**changes)
    assert len(result.coefficients) == layers
    assert [len(token) for token in result.coefficients.tokens.values()] == ([vectors] if vectors else [])
    assert all(bool(value.any()) for value in result.coefficients.values())
    load_coefficients(tiny_pipe, result.path)  # and fits the base


def test_learning_rates_are_separate(run: Callable[..., TrainResult]) -> None:
    """Adam's first step is as long as its learning rate."""
    plain = {"max_train_steps": 1, "adam_weight_decay": 0.0, "coeff_dropout": 0.0, "use_ema": False}
    result = run(learning_rate=1e-3, token_learning_rate=1e-2, stage_token_learning_rate=0.1, **plain)
    moved = max(float(coeff.abs().max()) for coeff in result.coefficients.values())
    assert moved == pytest.approx(1e-3, rel=1e-2)
    untouched = run("slow", token_learning_rate=1e-12, **plain)
    token, start = result.coefficients.tokens["text_encoder"], untouched.coefficients.tokens["text_encoder"]
    assert float((token - start).abs().max()) == pytest.approx(1e-2, rel=2e-2)  # files are rounded to float16
    stages = result.coefficients.stage_tokens.values()
    assert max(float(stage.abs().max()) for stage in stages) == pytest.approx(0.1, rel=1e-2)


def test_training_lowers_the_loss_on_its_pictures(run: Callable[..., TrainResult]) -> None:
    result = run(max_train_steps=40, train_batch_size=4)
    assert result.effect.loss_after < result.effect.loss_before
    assert len(result.losses) == 40


def test_learned_nothing_says_so(run: Callable[..., TrainResult]) -> None:
    lines: list[str] = []
    rates = dict.fromkeys(("learning_rate", "token_learning_rate", "stage_token_learning_rate"), 1e-9)
    result = run(**rates, callbacks={"say": lines.append})
    assert result.effect.change < 1e-4
    assert any(line.startswith("warning: the subject learned nothing") and "--learning_rate" in line for line in lines)


# --- the same again ---------------------------------------------------------------------------------------------------


def test_the_seed_decides_the_bytes(run: Callable[..., TrainResult]) -> None:
    torch.manual_seed(1)
    first = run("a")
    torch.manual_seed(2)  # the caller's random state has no say
    second, other = run("b", validation_steps=3), run("c", seed=1)
    assert first.losses == second.losses  # nor have previews
    for name in ("coefficients.safetensors", "timeline.safetensors"):
        assert (first.path / name).read_bytes() == (second.path / name).read_bytes()
    assert first.losses != other.losses


def test_dates_come_from_outside_only(run: Callable[..., TrainResult], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert run("a", max_train_steps=1).coefficients.info.created == "2023-11-14T22:13:20Z"
    assert run("b", max_train_steps=1, created="2026-11-23").coefficients.info.created == "2026-11-23"


def test_a_killed_run_resumes_exactly(
    config: TrainConfig, tiny_base_dir: Path, tiny_pipe: StableDiffusionPipeline, tmp_path: Path
) -> None:
    """Losses and files of a run that was killed and resumed equal those of one that was not."""
    config = replace(
        config, pretrained_model_name_or_path=str(tiny_base_dir), max_train_steps=10, checkpointing_steps=2,
        checkpoints_total_limit=2, lr_scheduler="cosine", lr_warmup_steps=3, gradient_accumulation_steps=2,
        timeline_steps=3, random_flip=True,
    )  # fmt: skip
    whole = train(replace(config, output_dir=str(tmp_path / "whole")), tiny_pipe)

    train_and_kill(config, 7, tmp_path / "config.yaml")
    out = tmp_path / "out"
    assert tree(out / "checkpoints") == ["step_000004.safetensors", "step_000006.safetensors"]
    assert not (out / "coefficients.safetensors").exists()

    reports: list[StepReport] = []
    resumed = train(replace(config, resume_from_checkpoint="latest"), tiny_pipe, on_step=reports.append)
    assert reports[0].step == 7
    assert resumed.losses == whole.losses
    for name in ("coefficients.safetensors", "timeline.safetensors", "checkpoints/step_000010.safetensors"):
        mine, other = (resumed.path / name).read_bytes(), (whole.path / name).read_bytes()
        assert len(mine) == len(other) if name.startswith("checkpoints") else mine == other, name


def test_resuming_checks_that_it_is_the_same_run(
    run: Callable[..., TrainResult], config: TrainConfig, subject_images: Path
) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint in .*leave out --resume_from_checkpoint"):
        run(resume_from_checkpoint="latest")
    run(checkpointing_steps=3)
    with pytest.raises(CheckpointError, match=r"train was .* and is 'token'; learning_rate was 0\.001 and is 0\.1"):
        run(resume_from_checkpoint="latest", learning_rate=0.1, train="token")
    longer = run(resume_from_checkpoint="step_000003", max_train_steps=8)  # going on for longer is fine
    assert len(longer.losses) == 8
    with pytest.raises(CheckpointError, match="the checkpoint is of step 3, and --max_train_steps is 2: give more"):
        run(resume_from_checkpoint="step_000003", max_train_steps=2)
    Image.new("RGB", (20, 20)).save(subject_images / "0.png")
    with pytest.raises(CheckpointError, match="belongs to another run: pictures was"):
        run(resume_from_checkpoint="latest")


def test_a_run_that_goes_back_leaves_no_later_checkpoint(run: Callable[..., TrainResult]) -> None:
    lines: list[str] = []
    out = run(checkpointing_steps=2).path
    asked = {"resume_from_checkpoint": "step_000002", "checkpointing_steps": 1, "checkpoints_total_limit": 1}
    run(max_train_steps=3, callbacks={"say": lines.append}, **asked)
    assert tree(out / "checkpoints") == ["step_000003.safetensors"]
    assert any("takes the place of the later ones: step_000004, step_000006" in line for line in lines)


# --- ending early -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "times"), [(signal.SIGINT, 1), (signal.SIGINT, 2), (signal.SIGTERM, 1), (signal.SIGHUP, 2)]
)
def test_a_request_to_end_saves_what_it_has_and_says_so(
    run: Callable[..., TrainResult], number: int, times: int
) -> None:
    lines: list[str] = []

    def press(report: StepReport) -> None:
        if report.step == 2:
            for _ in range(times):
                os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    result = run(checkpointing_steps=4, callbacks={"on_step": press, "say": lines.append})
    assert signal.getsignal(number) is before
    assert result.stopped
    assert len(result.losses) == 2
    assert Coefficients.load(result.path).info.train_steps == 2
    assert list(load_timeline(result.path / "timeline.safetensors")) == [2]
    assert lines[1].startswith("stopping after this step and saving")
    assert lines[times + 1] == "stopped at step 2 of 6; what was learned so far is saved"
    if times == 1:
        resumed = run(checkpointing_steps=4, resume_from_checkpoint="latest")
        whole = run("whole")
        assert resumed.losses == whole.losses
        checkpoints = [f"checkpoints/step_00000{step}.safetensors" for step in (2, 4)]
        assert tree(resumed.path) == sorted([*tree(whole.path), *checkpoints])
        for name in ("coefficients.safetensors", "timeline.safetensors", "README.md"):
            assert (resumed.path / name).read_bytes() == (whole.path / name).read_bytes()


def test_a_resumed_run_has_the_preview_that_was_broken_off(run: Callable[..., TrainResult]) -> None:
    settings = {"checkpointing_steps": 2, "validation_steps": 4, "num_validation_images": 2}
    whole = run("whole", **settings)
    for step in (4, 6):
        steps: list[int] = []
        callbacks = {
            "on_step": lambda report, steps=steps: steps.append(report.step),
            "should_stop": lambda steps=steps, step=step: len(steps) >= step,
        }
        stopped = run(f"{step}", callbacks=callbacks, **settings)
        assert not (stopped.path / "samples" / f"step_{step:06d}_1.png").exists()
        if step == 6:  # a kill between two of its pictures
            shutil.copy(whole.path / "samples" / "step_000006_0.png", stopped.path / "samples")
        seen: list[PreviewReport] = []
        resumed = run(f"{step}", resume_from_checkpoint="latest", callbacks={"on_preview": seen.append}, **settings)
        assert [report.step for report in seen] == [4, 6][step == 6 :]
        assert tree(resumed.path) == tree(whole.path)
        for name in tree(whole.path):
            if name != "config.yaml" and not name.startswith("checkpoints"):
                assert (resumed.path / name).read_bytes() == (whole.path / name).read_bytes(), name


def test_two_trainings_into_one_folder(run: Callable[..., TrainResult]) -> None:
    refused: list[str] = []

    def second(report: StepReport) -> None:
        if report.step == 2:
            with pytest.raises(ConfigError, match="is being trained into right now") as error:
                run(overwrite_output_dir=True)
            refused.append(str(error.value))

    whole = run("whole")
    result = run(callbacks={"on_step": second})
    assert len(refused) == 1
    assert result.file.read_bytes() == whole.file.read_bytes()
    assert tree(result.path) == tree(whole.path)


@pytest.mark.parametrize("way", ["deleted", "replaced", "a file"])
def test_a_folder_that_goes_away_is_an_error(run: Callable[..., TrainResult], tmp_path: Path, way: str) -> None:
    """What is learned is saved where it was to go, unless that is somebody else's now."""
    out = tmp_path / "out"

    def away(report: StepReport) -> None:
        if report.step == 2:
            shutil.rmtree(out)
            if way == "replaced":
                out.mkdir()
            elif way == "a file":
                out.touch()

    saved = "is saved in .*coefficients.safetensors$" if way == "deleted" else "could not be saved either$"
    with pytest.raises(TrainingError, match=rf"its folder was deleted, moved or replaced \({out}\); .* {saved}"):
        run(callbacks={"on_step": away}, checkpointing_steps=2, validation_steps=2)
    if way == "deleted":
        assert tree(out) == ["coefficients.safetensors"]
        assert Coefficients.load(out).info.train_steps == 2
    else:
        assert tree(out) == []


def test_a_damaged_timeline_or_checkpoint_is_refused_by_name(run: Callable[..., TrainResult]) -> None:
    result = run(checkpointing_steps=3)
    errors = {"timeline.safetensors": CoefficientsError, "checkpoints/step_000006.safetensors": CheckpointError}
    for name, error in errors.items():
        (result.path / name).write_bytes((result.path / name).read_bytes()[:-1])
        with pytest.raises(error, match=f"{name} is not a readable"):
            run(checkpointing_steps=3, resume_from_checkpoint="latest", max_train_steps=8)


def test_should_stop(run: Callable[..., TrainResult]) -> None:
    steps: list[int] = []
    callbacks = {"on_step": lambda report: steps.append(report.step), "should_stop": lambda: len(steps) >= 4}
    result = run(callbacks=callbacks, validation_steps=4)  # also in the middle of a preview
    assert (result.stopped, len(result.losses)) == (True, 4)
    assert [path.name for path in (result.path / "samples").iterdir()] == ["step_000000_0.png"]
    assert "samples/" not in (result.path / "README.md").read_text()  # it shows the base, not the subject


def test_stopped_before_training(run: Callable[..., TrainResult], tmp_path: Path) -> None:
    with pytest.raises(TrainingCancelled, match="before the first step; nothing was learned"):
        run("none", callbacks={"should_stop": lambda: True})
    assert tree(tmp_path / "none") == ["config.yaml"]
    with pytest.raises(TrainingCancelled, match="while drawing class pictures"):
        run(
            with_prior_preservation=True,
            class_data_dir=str(tmp_path / "class"),
            callbacks={"should_stop": lambda: True},
        )


def test_a_loss_that_breaks_up(run: Callable[..., TrainResult]) -> None:
    with pytest.raises(TrainingError, match="lower .*learning.rate"):
        run(learning_rate=1e25, token_learning_rate=1e25, max_train_steps=10, timeline_steps=0)
    with pytest.raises(TrainingError, match="lower the learning rates"):
        run("large", learning_rate=1e3, timeline_steps=1)


@pytest.mark.parametrize("everything", [False, True])
def test_full_disk(
    run: Callable[..., TrainResult], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, everything: bool
) -> None:
    """A disk that is full in the middle of a run: a clear error, the subject saved if it fits, no half files."""

    def full(descriptor: int) -> None:
        name = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        if "timeline" in name or (everything and "coefficients" in name):
            raise OSError(errno.ENOSPC, "No space left on device", name)

    monkeypatch.setattr(files.os, "fsync", full)
    saved = "could not be saved either" if everything else "is saved in"
    with pytest.raises(
        TrainingError,
        match=f"ended at step 3: the disk is full .*out/timeline.safetensors.; the subject of step 3 {saved}",
    ):
        run()
    assert tree(tmp_path / "out") == (["config.yaml"] if everything else ["coefficients.safetensors", "config.yaml"])


# --- bad input --------------------------------------------------------------------------------------------------------


def test_an_output_folder_is_never_overwritten_unasked(run: Callable[..., TrainResult], tmp_path: Path) -> None:
    run("a", validation_steps=3, checkpointing_steps=3)
    mine = tmp_path / "a" / "notes.txt"
    mine.write_text("mine")
    with pytest.raises(ConfigError, match=r"--output_dir .* is not empty; .*--overwrite_output_dir"):
        run("a")
    run("a", overwrite_output_dir=True, max_train_steps=1)
    assert tree(tmp_path / "a") == [
        "README.md", "coefficients.safetensors", "config.yaml", "notes.txt", "timeline.safetensors",
    ]  # fmt: skip


def test_bad_input_is_found_before_training(
    run: Callable[..., TrainResult], tiny_pipe: StableDiffusionPipeline, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match="no pictures in"):
        run("a", instance_data_dir=str(tmp_path / "empty"))
    with pytest.raises(ConfigError, match=r"--output_dir .*/file/out cannot be written"):
        run("file/out")
    with pytest.raises(ConfigError, match="--resolution is 20, expected a multiple of 8"):
        run("b", resolution=20)
    with pytest.raises(ConfigError, match="--max_train_steps is -1"):
        run("c", max_train_steps=-1)
    load_coefficients(tiny_pipe, run("d").path, name="rex")
    with pytest.raises(ConfigError, match=r"the base has subjects loaded \(rex\); unload them"):
        run("e")


def test_errors_on_the_command_line(tiny_base_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--max_train_steps", "-3", "--class_word", "dog"]) == 2
    said = capsys.readouterr().err
    assert "--max_train_steps is -3, expected at least 1; --instance_data_dir is missing" in said
    assert main(["train", "--lerning_rate", "1"]) == 2
    assert "did you mean 'learning_rate'?" in capsys.readouterr().err


# --- ways to train ----------------------------------------------------------------------------------------------------


def test_prior_preservation(run: Callable[..., TrainResult], tmp_path: Path) -> None:
    folder = tmp_path / "class"
    settings = {"with_prior_preservation": True, "class_data_dir": str(folder), "num_class_images": 3}
    result = run(**settings)
    drawn = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sorted(drawn) == ["class_00000.png", "class_00001.png", "class_00002.png"]
    assert read_parameters(folder / "class_00001.png").prompt == "a dog"
    again = run("again", **settings)
    assert again.losses == result.losses
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == drawn
    assert result.losses != run("alone").losses
    weighted = run("weighted", **settings, prior_loss_weight=0.0, max_train_steps=1)
    both = run("both", **settings, prior_loss_weight=1.0, max_train_steps=1)
    assert weighted.losses[0] < both.losses[0]
    assert both.coefficients.info.class_prompt == "a dog"


def test_captions(run: Callable[..., TrainResult], subject_images: Path) -> None:
    lines: list[str] = []
    plain = run("plain")
    (subject_images / "0.txt").write_text("a dog on a beach")
    captioned = run("captioned", callbacks={"say": lines.append})
    assert lines[0] == "found 5 pictures, 1 caption"
    assert lines[1] == "0.txt: 'a dog on a beach' lacks the trigger and is read as 'a sks dog on a beach'"
    assert plain.losses != captioned.losses
    (subject_images / "1.txt").write_text("a dog " * 100 + "sks dog")
    with pytest.raises(DatasetError, match="its trigger is cut off"):
        run("long")


@pytest.mark.parametrize("what", ["coefficients+token", "coefficients"])
def test_captions_that_the_text_encoder_does_not_read_to_the_end(
    run: Callable[..., TrainResult], subject_images: Path, what: str
) -> None:
    lines: list[str] = []
    (subject_images / "0.txt").write_text("a sks dog" + " on grass" * 60)
    (subject_images / "1.txt").write_text("a sks dog on grass")
    shown = {"validation_prompt": "a sks dog" + " on snow" * 60, "validation_steps": 1}
    run("cut", callbacks={"say": lines.append}, train=what, max_train_steps=2, **shown)
    said, preview = [line for line in lines if "cut off" in line]  # of the previews once
    assert preview.startswith("previews: prompt: ")
    assert re.fullmatch(r"0\.txt: \d+ of \d+ tokens are cut off, the text encoder does not read '.*grass on.*'", said)
    (subject_images / "1.txt").write_text("a dog " * 100 + "sks dog")
    with pytest.raises(DatasetError, match=r"^1\.txt: the prompt .* its trigger is cut off; the text encoder reads 77"):
        run("long", train=what)


def test_masks_decide_what_is_learned(run: Callable[..., TrainResult], subject_images: Path) -> None:
    """Whatever is painted over what a mask hides, the loss of the rest is of the rest alone."""
    lines: list[str] = []
    plain = run("plain", max_train_steps=1)
    for path in sorted(subject_images.iterdir()):
        with Image.open(path) as image:
            mask = Image.new("L", image.size, 0)
        mask.paste(255, (0, 0, mask.width, mask.height // 2))
        mask.save(subject_images / f"{path.stem}-masklabel.png")
    masked = run("masked", callbacks={"say": lines.append}, max_train_steps=1)
    assert lines[0] == "found 5 pictures, 5 masks"
    assert masked.losses != plain.losses
    unused = run("unused", callbacks={"say": lines.append}, max_train_steps=1, use_masks=False)
    assert unused.losses == plain.losses
    assert "found 5 pictures, 5 masks, which are not used (--use_masks is off)" in lines
    run("kept", max_train_steps=2, checkpointing_steps=1)
    Image.new("L", (24, 24), 255).save(subject_images / "0-masklabel.png")
    with pytest.raises(CheckpointError, match="pictures"):
        run("kept", max_train_steps=3, resume_from_checkpoint="latest")


def test_what_of_a_folder_is_not_used_is_said(run: Callable[..., TrainResult], subject_images: Path) -> None:
    lines: list[str] = []
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    frames[0].save(subject_images / "5.gif", save_all=True, append_images=frames[1:])
    Image.new("RGB", (20, 20)).save(subject_images / "6.png", icc_profile=b"garbage")
    Image.new("RGBA", (20, 20), (9, 9, 9, 200)).save(subject_images / "7.png")
    (subject_images / "raw").mkdir()
    (subject_images / "8.NEF").write_bytes(b"II*\0")
    run("said", callbacks={"say": lines.append}, max_train_steps=1)
    assert lines[:3] == [
        "found 8 pictures",
        "left out raw/: only the folder itself is read; name the one that is meant, or move its pictures up",
        "left out 8.NEF: raw photos are not developed; export them as JPEG, PNG or TIFF",
    ]
    assert "5.gif: it is an animation or holds several pictures; the first one is used" in lines
    assert any(line.startswith("6.png: its colour profile cannot be used (") for line in lines)
    assert "7.png: only what is not transparent is learned" in lines


def test_gradient_checkpointing_changes_nothing(run: Callable[..., TrainResult]) -> None:
    plain, saving = run("plain"), run("saving", gradient_checkpointing=True)
    torch.testing.assert_close(saving.losses, plain.losses, rtol=1e-5, atol=0)


def test_bf16(run: Callable[..., TrainResult], tiny_base_dir: Path, tiny_pipe: StableDiffusionPipeline) -> None:
    result = run(mixed_precision="bf16", validation_steps=6)
    assert all(value.dtype == torch.float32 for value in result.coefficients.named_tensors().values())
    torch.testing.assert_close(result.losses, run("full").losses, rtol=2e-2, atol=0)
    assert (result.path / "samples" / "step_000006_0.png").is_file()


@pytest.mark.parametrize("zero_snr", [False, True])
def test_v_prediction(run: Callable[..., TrainResult], tiny_pipe: StableDiffusionPipeline, zero_snr: bool) -> None:
    tiny_pipe.scheduler = DDIMScheduler.from_config(
        tiny_pipe.scheduler.config, prediction_type="v_prediction", rescale_betas_zero_snr=zero_snr,
        timestep_spacing="trailing",
    )  # fmt: skip
    result = run(snr_gamma=5.0, validation_steps=6)
    assert result.coefficients.info.prediction_type == "v_prediction"
    assert all(0 < loss < 10 for loss in result.losses)
    assert (result.path / "samples" / "step_000006_0.png").is_file()


def test_reports(run: Callable[..., TrainResult]) -> None:
    reports: list[StepReport] = []
    result = run(callbacks={"on_step": reports.append}, learning_rate=1e-2, lr_scheduler="linear", lr_warmup_steps=2)
    assert [report.step for report in reports] == [1, 2, 3, 4, 5, 6]
    assert [report.loss for report in reports] == result.losses
    assert [round(report.learning_rate, 6) for report in reports] == [0.005, 0.01, 0.0075, 0.005, 0.0025, 0]
    assert all(report.total == 6 for report in reports)
    assert reports[0].seconds_left > reports[-1].seconds_left == 0


def test_tensorboard(run: Callable[..., TrainResult]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = run(report_to="tensorboard", logging_dir="logs")
    assert [name for name in tree(result.path) if name.startswith("logs/")]
    events = EventAccumulator(str(result.path / "logs"))
    events.Reload()
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(result.losses)
    assert {"loss", "learning_rate", "change", "improvement"} <= set(events.Tags()["scalars"])
    run(report_to="tensorboard", checkpointing_steps=2, overwrite_output_dir=True, max_train_steps=5)
    (first,) = (result.path / "logs").rglob("events.*")
    first.rename(first.with_name(first.name.replace("tfevents.", "tfevents.0")))  # which is older, seconds tell
    resumed = run(report_to="tensorboard", resume_from_checkpoint="step_000002")
    events = EventAccumulator(str(result.path / "logs"))
    events.Reload()  # what was tracked behind the checkpoint is no second curve
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(resumed.losses)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"MIXED_PRECISION": "bf16"}, ["told --mixed_precision bf16, which is not read from there; give"]),
        ({"GRADIENT_ACCUMULATION_STEPS": "4"}, ["told --gradient_accumulation_steps 4, which is not read from there"]),
        ({"USE_FSDP": "true", "DYNAMO_BACKEND": "INDUCTOR"}, ["use torch.compile, which", "use FSDP, which trainings"]),
        ({"MIXED_PRECISION": "no", "GRADIENT_ACCUMULATION_STEPS": "1", "DYNAMO_BACKEND": "NO"}, []),
    ],
)
def test_what_accelerate_is_told_beside_the_settings_is_said(
    monkeypatch: pytest.MonkeyPatch, told: dict[str, str], said: list[str]
) -> None:
    """`accelerate launch --mixed_precision bf16 train_dreambooth_coeff.py` trains in float32."""
    for name, value in told.items():
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    notes = unread(TrainConfig())
    assert [one in note for one, note in zip(said, notes, strict=True)] == [True] * len(said)
    assert unread(TrainConfig(mixed_precision="bf16", gradient_accumulation_steps=4)) == [
        note for note in notes if " use " in note
    ]


def test_the_model_card_is_what_the_hub_reads(run: Callable[..., TrainResult]) -> None:
    result = run(validation_steps=6, license="mit")
    text = (result.path / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["instance_prompt"] == "a sks dog"
    assert front["license"] == "mit"
    assert front["widget"][0] == {"text": "a sks dog", "output": {"url": "samples/step_000006_0.png"}}


def test_a_step_depends_on_seed_and_number_alone(config: TrainConfig, tiny_pipe: StableDiffusionPipeline) -> None:
    trainer = Trainer(config, tiny_pipe)
    trainer.setup()
    trainer.learner.train(True)
    later = float(trainer.batch_loss(4).detach())
    float(trainer.batch_loss(3).detach())
    assert float(trainer.batch_loss(4).detach()) == later


def test_a_base_of_two_text_encoders_is_taught_as_well(
    config: TrainConfig, tiny_xl_pipe: StableDiffusionXLPipeline, tmp_path: Path
) -> None:
    """Stable Diffusion XL: a token for each encoder, pooled text and sizes, previews, and the file fits again."""
    changes = {"max_train_steps": 3, "validation_steps": 3, "with_prior_preservation": True, "num_class_images": 2}
    folders = {"output_dir": str(tmp_path / "xl"), "class_data_dir": str(tmp_path / "class")}
    result = train(replace(config, **changes, **folders), tiny_xl_pipe)
    subject = Coefficients.load(result.file)
    assert {name: token.shape for name, token in subject.tokens.items()} == {
        "text_encoder": (1, 32), "text_encoder_2": (1, 48),
    }  # fmt: skip
    assert all(bool(coeff.any()) for coeff in subject.values())
    assert sorted(path.name for path in (result.path / "samples").iterdir()) == [
        "step_000000_0.png", "step_000003_0.png"
    ]  # fmt: skip
    load_coefficients(tiny_xl_pipe, subject)
