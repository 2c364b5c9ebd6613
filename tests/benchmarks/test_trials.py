"""Every trial on the tiny base: what it adds learns, acts, and is measured; the others stay comparable."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from fidelity_plan import Run  # noqa: E402
from fidelity_settings import NOTHING, BenchmarkError, Settings  # noqa: E402
from trials import CUT_OUT, TRIALS, USUAL, measured, table, trained  # noqa: E402


@pytest.fixture
def settings(tiny_base_dir: Path, subject_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """One subject, the fewest steps, the same pictures wherever some are asked for."""
    monkeypatch.chdir(tmp_path)
    for folder in ("subjects/cat", "unseen/cat", CUT_OUT / "masked/cat", CUT_OUT / "grounds/cat"):
        shutil.copytree(subject_images, tmp_path / folder)
    (tmp_path / "subjects/cat/subject.yaml").write_text("class_word: cat\ntrigger: sks cat\n")
    return Settings(
        base=str(tiny_base_dir),
        max_train_steps=3,
        train_batch_size=2,
        draw_steps=1,
        output_dir=str(tmp_path / "out"),
        subjects_dir=str(tmp_path / "subjects"),
        unseen_dir=str(tmp_path / "unseen"),
    ).resolve()


@pytest.mark.parametrize("name", TRIALS)
def test_a_trial_learns_and_acts(
    name: str, settings: Settings, tiny_pipe: StableDiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {"num_class_images": 2, "max_train_steps": 3}
    trial = TRIALS[name]
    kept = {**trial.settings, **{setting: few[setting] for setting in trial.settings if setting in few}}
    monkeypatch.setitem(TRIALS, name, replace(trial, settings=kept))
    trainer = trained(Run.make(settings, name, "cat"), settings, tiny_pipe, tmp_path)
    assert trainer.step == 3
    learned = {**trainer.learner.parameters, **trainer.part.parameters}
    assert all(bool(parameter.any()) for parameter in learned.values())
    part = trainer.part
    if not part.parameters:
        return
    batch = trainer.noised(7)
    trainer.learner.train(False)

    def predicted() -> torch.Tensor:
        with torch.no_grad():
            return torch.cat([trainer.learner.denoise(p.noised, p.timesteps, p.condition) for p in batch.parts])

    whole = predicted()
    with torch.no_grad():
        for parameter in part.parameters.values():
            parameter.zero_()
    assert not torch.equal(whole, predicted())


def test_from_pictures_to_the_table(settings: Settings) -> None:
    assert measured(Run.make(settings, "temperature", "cat"), settings).keys() == {
        "values", "subject_loss", "colours", "similarity", "wall_seconds"
    }  # fmt: skip
    run = Run.make(settings, NOTHING, "cat")
    results = {run: {"similarity": 0.5, "ceiling": 0.75}}
    with pytest.raises(BenchmarkError, match="all is not there for each of cat; run fidelity.py first"):
        table(results, settings, list(TRIALS))
    figures = {"values": 1000, "subject_loss": 0.2, "colours": 1.0}
    results[replace(run, method=USUAL)] = {**figures, "similarity": 0.6}
    results[replace(run, method="timed")] = {**figures, "similarity": 0.625}
    assert table(results, settings, list(TRIALS)).splitlines()[2:] == [
        f"| {TRIALS['timed'].label} | 1,000 | 0.2000 | 0.625 | 100% | 50% | 50% |",
        "| **what `train` does** | 1,000 | 0.2000 | 0.600 | 100% | 40% | 40% |",
    ]
    with pytest.raises(BenchmarkError, match="all is not there"):
        table(results, settings, list(TRIALS), seed=1)


def test_pictures_that_are_not_there(settings: Settings, tiny_pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    shutil.rmtree(CUT_OUT)
    with pytest.raises(BenchmarkError, match=r"no .work/cut-out/masked/cat; tools/base/make_subjects.py makes it"):
        trained(Run.make(settings, "masked", "cat"), settings, tiny_pipe, tmp_path)
