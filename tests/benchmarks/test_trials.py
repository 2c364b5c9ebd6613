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
from trial_parts import NoisyDropout  # noqa: E402
from trial_trainers import WithClass  # noqa: E402
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


def test_dropout_rises_with_the_noise() -> None:
    part, coeff = NoisyDropout(), torch.ones(1, 50, 50)
    part.noise = torch.tensor([0.0, 0.5, 1.0])
    changed = part.changed("a layer", coeff)
    assert torch.equal(changed[0], coeff[0])
    for row, rate in ((changed[1], 0.2), (changed[2], 0.4)):
        assert float((row == 0).float().mean()) == pytest.approx(rate, abs=0.04)
        assert float(row.max()) == pytest.approx(1 / (1 - rate))
    part.training = False
    assert part.changed("a layer", coeff) is coeff


def test_keys_are_locked_to_the_word(settings: Settings, tiny_pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    trainer = trained(Run.make(settings, "locked_keys", "cat"), settings, tiny_pipe, tmp_path)
    read: dict[str, torch.Tensor] = {}
    layer = trainer.learner.denoiser.get_submodule("up_blocks.1.attentions.0.transformer_blocks.0.attn2")
    for name in ("to_k", "to_v"):
        getattr(layer, name).register_forward_pre_hook(lambda module, args, name=name: read.update({name: args[0]}))
    part = trainer.noised(0).parts[0]
    trainer.learner.denoise(part.noised, part.timesteps, part.condition)
    torch.testing.assert_close(read["to_k"], part.condition["prompt_embeds"])
    assert not torch.allclose(read["to_v"], read["to_k"])


def test_the_base_is_asked_for_the_class_on_the_same_ground(
    settings: Settings, tiny_pipe: StableDiffusionPipeline, tmp_path: Path
) -> None:
    prompts = trained(Run.make(settings, "preserving", "cat"), settings, tiny_pipe, tmp_path).data.prompts
    assert isinstance(prompts, WithClass)
    pairs = set(zip(prompts.texts, prompts.of_class.texts, strict=True))
    assert ("a sks cat", "a cat") in pairs
    assert all(own.replace("sks cat", "cat") == of_class for own, of_class in pairs)


def test_from_pictures_to_the_table(settings: Settings) -> None:
    assert measured(Run.make(settings, "temperature", "cat"), settings).keys() == {
        "values", "subject_loss", "colours", "similarity", "wall_seconds"
    }  # fmt: skip
    run = Run.make(settings, NOTHING, "cat")
    results = {run: {"similarity": 0.5, "ceiling": 0.75}}
    with pytest.raises(BenchmarkError, match="all is not there for each of cat; run fidelity.py first"):
        table(results, settings, list(TRIALS))
    figures = {"values": 1000, "subject_loss": 0.2, "colours": 1.0}
    results[Run.make(settings, USUAL, "cat")] = {**figures, "similarity": 0.6}
    results[Run.make(settings, "timed", "cat")] = {**figures, "similarity": 0.625}
    assert table(results, settings, list(TRIALS)).splitlines()[2:] == [
        f"| {TRIALS['timed'].label} | 1,000 | 0.2000 | 0.625 | 100% | 50% | 50% |",
        "| **what `train` does** | 1,000 | 0.2000 | 0.600 | 100% | 40% | 40% |",
    ]
    slow = (1e-3, 1e-3, 1e-2)
    assert len(table(results, settings, list(TRIALS), rates=slow).splitlines()) == 3  # nothing was tried at these
    results[Run.make(settings, "usual", "cat", rates=slow)] = {**figures, "similarity": 0.55}
    lines = table(results, settings, list(TRIALS), rates=slow).splitlines()
    assert lines[3] == "| nothing more | 1,000 | 0.2000 | 0.550 | 100% | 20% | 20% |"
    with pytest.raises(BenchmarkError, match="all is not there"):
        table(results, settings, list(TRIALS), seed=1)


def test_pictures_that_are_not_there(settings: Settings, tiny_pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    shutil.rmtree(CUT_OUT)
    with pytest.raises(BenchmarkError, match=r"no .work/cut-out/masked/cat; tools/base/make_subjects.py makes it"):
        trained(Run.make(settings, "masked", "cat"), settings, tiny_pipe, tmp_path)
