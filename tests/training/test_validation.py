"""The subject measured on the way: the curve, the best step, and when to end."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image
from training_runs import train_and_kill

from coeff_diffusion.images.photo import DatasetError
from coeff_diffusion.subject.coefficients import Coefficients
from coeff_diffusion.training import validation
from coeff_diffusion.training.checkpoint import CheckpointError
from coeff_diffusion.training.config import ConfigError, TrainConfig
from coeff_diffusion.training.probe import MOST
from coeff_diffusion.training.reports import StepReport, TrainResult
from coeff_diffusion.training.timeline import load_timeline, load_validation
from coeff_diffusion.training.trainer import Trainer, train
from coeff_diffusion.training.validation import best_step, measurements_since, probe_size, smoothed

# --- the curve --------------------------------------------------------------------------------------------------------


def test_one_lucky_measurement_is_not_the_best_step() -> None:
    losses = {0: 0.1, 20: 0.9, 40: 0.2, 60: 0.9, 80: 0.4, 100: 0.3, 120: 0.3}
    means = {20: 2.0 / 3, 40: 2.2 / 4, 60: 2.4 / 4, 80: 2.0 / 4, 100: 1.3 / 4, 120: 0.9 / 3}
    assert smoothed(losses) == pytest.approx(means, rel=1e-12)
    assert best_step(losses) == 120
    assert best_step({0: 0.1}) is best_step({}) is None  # the base is no subject


def test_a_falling_curve_is_best_at_its_end_and_a_flat_one_at_its_beginning() -> None:
    assert best_step({step: 1 / step for step in (20, 40, 60, 70)}) == 70
    assert best_step({50: 0.5, 100: 0.4}) == 100
    assert best_step(dict.fromkeys((20, 40, 60), 0.5)) == 20


def test_what_counts_as_an_improvement() -> None:
    losses = {10: 0.5, 20: 0.5, 30: 0.5, 40: 0.4, 50: 0.4, 60: 0.4}
    assert (best_step(losses), best_step(losses, 0.11)) == (50, 10)
    assert measurements_since(losses, 50) == 1
    assert measurements_since(losses, 10) == 5
    assert measurements_since({}, None) == 0


def test_measuring_costs_a_tenth_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "MOST", MOST)
    assert probe_size(TrainConfig(validate_every_n_steps=20, train_batch_size=4)) == 18
    assert probe_size(TrainConfig(validate_every_n_steps=20, train_batch_size=2, with_prior_preservation=True)) == 18
    assert probe_size(TrainConfig(validate_every_n_steps=1000)) == probe_size(TrainConfig()) == 40
    assert probe_size(TrainConfig(validate_every_n_steps=1)) == 8  # fewer would measure their noise


# --- settings ---------------------------------------------------------------------------------------------------------


def test_who_asks_for_a_choice_gets_measurements() -> None:
    plain = TrainConfig(instance_data_dir="x", class_word="dog")
    assert plain.resolve().validate_every_n_steps == 0
    for asked in ({"keep_best": True}, {"early_stopping_patience": 3}, {"validation_split": 1}):
        assert replace(plain, **asked).resolve().validate_every_n_steps == 20
    assert replace(plain, validation_data_dir="y", validate_every_n_steps=7).resolve().validate_every_n_steps == 7


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"validate_every_n_steps": -1}, "--validate_every_n_steps is -1, expected at least 0"),
        ({"validate_every_n_steps": 0, "keep_best": True}, "--keep_best needs measurements, and --validate_every_n"),
        ({"validate_every_n_steps": 0, "early_stopping_patience": 2}, "--early_stopping_patience needs measurements"),
        ({"validate_every_n_steps": 0, "validation_split": 0.2}, "--validation_split needs measurements"),
        ({"validation_split": 0.2, "validation_data_dir": "y"}, "--validation_data_dir exclude each other"),
        ({"validation_split": 1.5}, r"--validation_split is 1.5, expected a share .* or a whole number of pictures"),
        ({"validation_split": float("nan")}, "--validation_split is nan"),
        ({"early_stopping_threshold": 0.1}, "--early_stopping_threshold is only used with --early_stopping_patience"),
        ({"early_stopping_patience": 2, "early_stopping_threshold": -0.1}, "threshold is -0.1, expected a number at"),
        ({"keep_best": True, "timeline_steps": 0}, "--keep_best takes the best step from the timeline, and --timeline"),
    ],
)
def test_settings_that_cannot_work(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        TrainConfig(instance_data_dir="x", class_word="dog", **changes).resolve()


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def config(subject_images: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        instance_data_dir=str(subject_images), class_word="dog", output_dir=str(tmp_path / "out"), max_train_steps=6,
        train_batch_size=2, timeline_steps=3, validation_steps=0,
    )  # fmt: skip


Run = Callable[..., TrainResult]


@pytest.fixture
def run(config: TrainConfig, tiny_pipe: StableDiffusionPipeline) -> Run:
    def run(to: str = "out", callbacks: dict[str, Any] | None = None, **changes: Any) -> TrainResult:
        folder = str(Path(str(config.output_dir)).parent / to)
        return train(replace(config, output_dir=folder, **changes), tiny_pipe, **(callbacks or {}))

    return run


def test_measuring_changes_nothing_of_training(run: Run) -> None:
    """Dropout, rounding and random generators: the same coefficients bit by bit, and the same losses."""
    plain = run("plain")
    measured = run("measured", validate_every_n_steps=2, gradient_checkpointing=False)
    assert measured.losses == plain.losses
    assert measured.coefficients.sha256 == plain.coefficients.sha256
    assert list(measured.validation_losses) == [0, 2, 4, 6]
    assert plain.validation_losses == {}
    assert list(load_timeline(measured.path / "timeline.safetensors")) == [2, 3, 4, 6]
    assert load_validation(measured.path / "timeline.safetensors") == measured.validation_losses
    assert load_validation(plain.path / "timeline.safetensors") == {}


def test_what_is_measured_is_what_the_file_holds(config: TrainConfig, tiny_pipe: StableDiffusionPipeline) -> None:
    """One probe: the last measurement is the run's effect, and a subject from its file measures the same."""
    trainer = Trainer(replace(config, validate_every_n_steps=3, learning_rate=0.1), tiny_pipe, say=lambda line: None)
    result = trainer.run()
    assert result.validation_losses[6] == result.effect.loss_after
    assert result.validation_losses[0] == result.effect.loss_before
    assert result.coefficients.info.effect == result.effect.change
    saved, learner = Coefficients.load(result.file), trainer.learner
    exact = {name: parameter.detach().clone() for name, parameter in learner.parameters.items()}
    for learned, values in (
        (learner.coefficients, saved),
        (learner.tokens, saved.tokens),
        (learner.stage_tokens, saved.stage_tokens),
    ):
        for name, parameter in learned.items():
            parameter.data.copy_(values[name])
    assert any(not torch.equal(exact[name], parameter) for name, parameter in learner.parameters.items())
    trainer.validation.latest = (0, trainer.validation.latest[1])
    assert trainer.validation.measure(6) == result.effect


def test_reports_and_trackers_have_the_curve(run: Run) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reports: list[StepReport] = []
    result = run(callbacks={"on_step": reports.append}, validate_every_n_steps=4, report_to="tensorboard")
    assert [list(report.validation_losses) for report in reports] == [[0]] * 3 + [[0, 4]] * 2 + [[0, 4, 6]]
    events = EventAccumulator(str(result.path / "logs"))
    events.Reload()
    tracked = {event.step: event.value for event in events.Scalars("validation_loss")}
    assert tracked == pytest.approx({4: result.validation_losses[4], 6: result.validation_losses[6]})


def test_the_terminal_shows_the_latest_and_the_best(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    losses = run(validate_every_n_steps=2).validation_losses
    best = best_step(losses)
    assert best is not None
    assert f"validation {losses[6]:.4f} (best {losses[best]:.4f} at {best}), lr" in capsys.readouterr().err


# --- keeping the best, and ending -------------------------------------------------------------------------------------

OVERSHOOTING: dict[str, Any] = {"learning_rate": 10.0, "token_learning_rate": 10.0, "stage_token_learning_rate": 10.0}


def test_the_best_step_is_saved(run: Run) -> None:
    lines: list[str] = []
    changes = {**OVERSHOOTING, "validate_every_n_steps": 1, "max_train_steps": 7}
    previews = {"validation_steps": 3, "num_validation_images": 1}
    last = run("last", **changes)
    result = run("best", callbacks={"say": lines.append}, keep_best=True, **changes, **previews)
    best = best_step(result.validation_losses)
    assert best is not None
    assert best < 7
    assert result.losses == last.losses
    assert f"the subject is that of step {best}, which has the lowest validation loss" in lines
    saved, timeline = Coefficients.load(result.file), load_timeline(result.path / "timeline.safetensors")
    assert saved == timeline[best] == result.coefficients
    assert (saved.info.train_steps, last.coefficients.info.train_steps) == (best, 7)
    assert result.effect.loss_after == result.validation_losses[best] < last.effect.loss_after
    assert timeline[7].sha256 == last.coefficients.sha256
    card = (result.path / "README.md").read_text()
    assert f"{best} steps of 2 pictures" in card
    assert f"to {result.effect.loss_after:.4f}" in card
    shown = yaml.safe_load(card.split("---")[1]).get("widget", [])  # no picture of a later step
    assert [one["output"]["url"] for one in shown] == [f"samples/step_{best // 3 * 3:06d}_0.png"] * (best >= 3)


def test_training_ends_when_nothing_improves(run: Run) -> None:
    lines: list[str] = []
    rising = {**OVERSHOOTING, "validate_every_n_steps": 1, "early_stopping_patience": 2, "max_train_steps": 40}
    result = run(callbacks={"say": lines.append}, **rising)
    step = len(result.losses)
    assert step < 40
    assert not result.stopped  # nobody asked for it
    assert measurements_since(result.validation_losses, best_step(result.validation_losses)) == 2
    assert f"ended at step {step} of 40: no lower validation loss in 2 measurements" in lines
    impatient = run("impatient", **rising, early_stopping_threshold=10.0)
    assert len(impatient.losses) == 3  # nothing improves on the first measurement by ten


def test_a_killed_run_goes_on_to_the_same_choice(
    config: TrainConfig, tiny_base_dir: Path, tiny_pipe: StableDiffusionPipeline, tmp_path: Path
) -> None:
    """The same curve, the same best step, the same end; from the checkpoint of that end, too."""
    config = replace(
        config, pretrained_model_name_or_path=str(tiny_base_dir), max_train_steps=12, checkpointing_steps=3,
        validate_every_n_steps=2, keep_best=True, early_stopping_patience=3, early_stopping_threshold=1.0,
        validation_split=0.4, **OVERSHOOTING,
    )  # fmt: skip
    whole = train(replace(config, output_dir=str(tmp_path / "whole")), tiny_pipe)
    assert len(whole.losses) == 8  # the three measurements after the first one are not better by one
    train_and_kill(config, 4, tmp_path / "config.yaml")
    for _ in range(2):
        resumed = train(replace(config, resume_from_checkpoint="latest"), tiny_pipe)
        assert resumed.validation_losses == whole.validation_losses
        assert resumed.losses == whole.losses
        assert (resumed.effect, resumed.stopped) == (whole.effect, False)
        for name in ("coefficients.safetensors", "timeline.safetensors", "README.md"):
            assert (resumed.path / name).read_bytes() == (whole.path / name).read_bytes(), name
    patient = train(replace(config, resume_from_checkpoint="latest", early_stopping_patience=30), tiny_pipe)
    assert len(patient.losses) == 12


def test_a_stop_between_measurements_is_measured_and_leaves_no_trace_in_the_run_that_goes_on(run: Run) -> None:
    changes = {"validate_every_n_steps": 2, "keep_best": True, "checkpointing_steps": 10, "use_ema": True}
    whole = run("whole", **changes)
    steps: list[int] = []
    callbacks = {"on_step": lambda report: steps.append(report.step), "should_stop": lambda: len(steps) >= 3}
    stopped = run(callbacks=callbacks, **changes)
    assert stopped.stopped
    assert list(stopped.validation_losses) == [0, 2, 3]
    resumed = run(resume_from_checkpoint="latest", **changes)
    assert resumed.validation_losses == whole.validation_losses
    assert resumed.file.read_bytes() == whole.file.read_bytes()


def test_where_an_average_is_saved_it_is_measured(run: Run) -> None:
    plain, averaged = (
        run(name, validate_every_n_steps=2, use_ema=name == "averaged") for name in ("plain", "averaged")
    )
    assert averaged.losses == plain.losses
    assert averaged.validation_losses[0] == plain.validation_losses[0]
    assert averaged.validation_losses != plain.validation_losses
    assert averaged.effect.loss_after == averaged.validation_losses[len(averaged.losses)]


def test_a_best_step_that_is_lost_is_said(run: Run) -> None:
    changes: dict[str, Any] = {"validate_every_n_steps": 2, "keep_best": True, "checkpointing_steps": 2}
    (run(**changes).path / "timeline.safetensors").unlink()
    with pytest.raises(CheckpointError, match="does not hold the subject of step 2, which may be the best one"):
        run(resume_from_checkpoint="latest", max_train_steps=8, **changes)
    with pytest.raises(CheckpointError, match="validate_every_n_steps was 2 and is 3"):
        run(resume_from_checkpoint="latest", **{**changes, "validate_every_n_steps": 3})


# --- pictures to measure on -------------------------------------------------------------------------------------------


def test_pictures_held_out_by_number_or_share(run: Run, subject_images: Path) -> None:
    lines: list[str] = []
    by_share = run("share", callbacks={"say": lines.append}, validation_split=0.4, max_train_steps=2)
    (held,) = [line for line in lines if line.startswith("held out of training")]
    assert held.startswith("held out of training, to measure on: 2 files (")
    assert any("from 3 pictures at" in line for line in lines)
    assert any(line.startswith("loss on pictures of the subject that it was not trained on") for line in lines)
    assert "On pictures that it was not trained on" in (by_share.path / "README.md").read_text()
    by_number = run("number", validation_split=2, max_train_steps=2)
    assert by_number.validation_losses == by_share.validation_losses
    assert by_number.losses == by_share.losses
    for split, count in ((0.9, 4), (0.95, 5), (5, 5), (7, 7)):
        if count >= 5:
            with pytest.raises(DatasetError, match=rf"--validation_split {split:g} holds out {count} pictures of 5"):
                run(f"all-{split}", validation_split=split)
    for path in sorted(subject_images.iterdir()):
        (subject_images / f"copy of {path.name}").write_bytes(path.read_bytes())
    with pytest.raises(
        DatasetError, match=r"--validation_split would measure on what is trained on: the pictures hold .*\.png again"
    ):
        run("copies", validation_split=1)


def test_another_folder_with_captions_and_masks(run: Run, subject_images: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for number in range(2):
        Image.new("RGB", (24, 20), (200, 60 * number, 40)).save(other / f"{number}.png")
    changes = {"validation_data_dir": str(other), "max_train_steps": 2}
    plain = run("plain", **changes)
    assert plain.losses == run("own", max_train_steps=2).losses  # all pictures are trained on
    (other / "0.txt").write_text("a dog in the snow")
    captioned = run("captioned", **changes)
    mask = Image.new("L", (24, 20), 0)
    mask.paste(255, (0, 0, 24, 8))
    mask.save(other / "1-masklabel.png")
    masked = run("masked", **changes)
    assert plain.losses == captioned.losses == masked.losses
    assert plain.validation_losses[0] != captioned.validation_losses[0] != masked.validation_losses[0]
    (other / "2.png").write_bytes((subject_images / "0.png").read_bytes())
    with pytest.raises(DatasetError, match=r"--validation_data_dir holds what is trained on: 2\.png; give others"):
        run("both", **changes)
    with pytest.raises(DatasetError, match="--validation_data_dir holds what is trained on: 5 files"):
        run("same", validation_data_dir=str(subject_images))
    (tmp_path / "no pictures").mkdir()
    with pytest.raises(DatasetError, match="--validation_data_dir: no pictures in .*no pictures"):
        run("empty", validation_data_dir=str(tmp_path / "no pictures"))
    with pytest.raises(DatasetError, match="--validation_data_dir: no such folder of pictures"):
        run("none", validation_data_dir=str(tmp_path / "no folder"))


def test_held_out_pictures_are_part_of_a_run(run: Run, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    Image.new("RGB", (24, 20), (200, 60, 40)).save(other / "0.png")
    changes = {"validation_data_dir": str(other), "checkpointing_steps": 3}
    run(**changes)
    Image.new("RGB", (24, 20), (20, 60, 40)).save(other / "0.png")
    with pytest.raises(CheckpointError, match="another run: validation_pictures was"):
        run(resume_from_checkpoint="latest", max_train_steps=8, **changes)


def test_stable_diffusion_xl_with_prior_preservation(
    config: TrainConfig, tiny_xl_pipe: StableDiffusionXLPipeline, tmp_path: Path
) -> None:
    config = replace(
        config, with_prior_preservation=True, num_class_images=2, class_data_dir=str(tmp_path / "class"),
        validation_split=1, validate_every_n_steps=1, snr_gamma=5.0, max_train_steps=2, keep_best=True,
    )  # fmt: skip
    result = train(config, tiny_xl_pipe)
    assert list(result.validation_losses) == [0, 1, 2]
    assert result.coefficients.info.train_steps == best_step(result.validation_losses)
