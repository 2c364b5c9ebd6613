"""The fidelity benchmark on the tiny base: every method really trains, is measured and reported."""

import json
import math
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from diffusers import StableDiffusionPipeline
from PIL import Image

from coeff_diffusion import Coefficients, layer_heads
from coeff_diffusion.families.load import load_base
from coeff_diffusion.images.photo import read_image
from coeff_diffusion.method.attachment import select_layers
from coeff_diffusion.training import trainer

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from fidelity import execute, in_own_process, main, run_all  # noqa: E402
from fidelity_measure import COLOURS, grounds, mean_change, nearest_colour  # noqa: E402
from fidelity_methods import chosen, train, train_config  # noqa: E402
from fidelity_plan import Run, climb, gentlest, place_of, plan, rate_at, read_results  # noqa: E402
from fidelity_report import write_report  # noqa: E402
from fidelity_settings import METHODS, NOTHING, BenchmarkError, Settings  # noqa: E402


@pytest.fixture
def settings(tiny_base_dir: Path, subject_images: Path, tmp_path: Path) -> Settings:
    """Two subjects, the fewest steps."""
    for name, pictures in (("cat", "[0-2].*"), ("dog", "[2-4].*")):
        for parent in ("subjects", "unseen"):
            (tmp_path / parent / name).mkdir(parents=True)
            for path in subject_images.glob(pictures):
                shutil.copy(path, tmp_path / parent / name)
        (tmp_path / "subjects" / name / "subject.yaml").write_text(f"class_word: {name}\ntrigger: sks {name}\n")
    return Settings(
        base=str(tiny_base_dir),
        seeds=1,
        sweep_subjects=0,
        max_train_steps=2,
        train_batch_size=2,
        draw_steps=1,
        output_dir=str(tmp_path / "out"),
        docs_dir=str(tmp_path / "docs"),
        subjects_dir=str(tmp_path / "subjects"),
        unseen_dir=str(tmp_path / "unseen"),
    ).resolve()


def test_every_method_trains_just_what_it_says(settings: Settings, tiny_pipe: StableDiffusionPipeline) -> None:
    layers = select_layers(tiny_pipe.unet)
    projections = [layer for attn in layers.values() for layer in (attn.to_q, attn.to_k, attn.to_v, attn.to_out[0])]
    coefficients = sum(heads**2 for heads in layer_heads(tiny_pipe.unet).values())
    lora = sum(layer.in_features + layer.out_features for layer in projections)
    expected = {
        "coefficients": coefficients,
        "token": 32,
        "coefficients+token": coefficients + 32,
        "lora1": lora,
        "lora4": 4 * lora,
        "attention": sum(weight.numel() for attn in layers.values() for weight in attn.parameters()),
        "unet": sum(weight.numel() for weight in tiny_pipe.unet.parameters()),
        "unet+text": sum(
            weight.numel() for name in ("unet", "text_encoder") for weight in getattr(tiny_pipe, name).parameters()
        ),
    }
    losses = {execute(Run.make(settings, NOTHING, "cat", drawn=False), settings)["subject_loss"]}
    for method, values in expected.items():
        run = Run.make(settings, method, "cat", rates=METHODS[method].start, drawn=False)
        figures = execute(run, settings)
        assert figures["values"] == values
        assert figures["file_bytes"] >= 4 * values
        assert figures["seconds"] > 0
        assert figures["memory_mb"] > 50
        assert math.isfinite(figures["subject_loss"])
        losses.add(figures["subject_loss"])
    assert len(losses) == 9  # each acts, through its file, in its own way
    subject = Coefficients.load(next(Path(settings.output_dir).glob("files/cat_coefficients+token*.safetensors")))
    assert subject.info.trigger == "sks cat"
    assert subject.info.train_steps == 2


def test_from_nothing_to_the_table_and_on(settings: Settings) -> None:
    settings = replace(settings, subject=["cat"], method=[NOTHING, "coefficients+token", "lora4"])
    results = run_all(settings, worker=execute)
    by_method = {run.method: figures for run, figures in results.items()}
    assert list(by_method) == [NOTHING, "coefficients+token", "lora4"]
    ours = by_method["coefficients+token"]
    assert ours["drift_change"] == ours["class_change"] == 0  # gated: the base's own pictures
    assert ours["drift_loss"] == by_method[NOTHING]["drift_loss"]
    assert ours["always"]["drift_change"] > 0
    assert by_method["lora4"]["drift_change"] > 0
    assert all(0 < figures["similarity"] <= 1 for figures in results.values())

    assert run_all(settings, worker=_never) == results  # nothing is left to do
    text = write_report(settings)
    table = Path(settings.docs_dir, "fidelity-table.md").read_text()
    for part in (
        "| LoRA rank 4 | 2e-4 |",
        "| similarity | of the way |",
        "Coefficients + token as shares of LoRA rank 4",
        "- gain in subject loss: ",
        f"| {ours['subject_loss']:.4f} |",
    ):
        assert part in text
        assert part in table
    assert "missing" not in table
    assert "all attention weights" not in table
    assert read_image(Path(settings.docs_dir, "images", "fidelity.webp")).width > 32


def test_what_is_not_measured_is_not_reported(settings: Settings) -> None:
    assert write_report(settings) == "nothing is measured yet"
    done = Run.make(settings, NOTHING, "cat")
    _write(settings, done, {"subject_loss": 0.25, "similarity": 0.5, "colours": 0.5, "drift_loss": 0.2})
    assert write_report(settings) == "nothing is measured yet"  # the other subject is missing
    _write(settings, replace(done, base_digest="another base"), {"subject_loss": 0.1})
    other = Run.make(settings, NOTHING, "dog")
    _write(settings, other, {"subject_loss": 0.35, "similarity": 0.7, "colours": 0.5, "drift_loss": 0.2})
    text = write_report(settings)
    assert "| 0.3000 | 0.600 | 50% | 0.2000 |" in text
    assert "LoRA" not in text
    assert "at least 22 runs are missing" in Path(settings.docs_dir, "fidelity-table.md").read_text()


def test_one_run_in_a_process_of_its_own(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    run = Run.make(settings, "token", "dog", rates=(5e-3,), drawn=False)
    settings = replace(settings, threads=1)
    figures = in_own_process(run, settings)
    assert figures["values"] == 32
    assert figures["machine"]["threads"] == 1
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(BenchmarkError, match=r"dog_token_seed0_5e-03_\w+ failed with exit code 1: no message"):
        in_own_process(run, settings)


def test_a_training_that_breaks_up_is_a_result(settings: Settings) -> None:
    figures = execute(Run.make(settings, "lora1", "cat", rates=(1e30,), drawn=False), settings)
    assert "broke_up" in figures
    assert "subject_loss" not in figures


@pytest.mark.parametrize(("start", "best"), [((-6,), (-3,)), ((-1,), (-5,)), ((-5, -5), (-2, -8))])
def test_the_search_ends_in_a_minimum_with_neighbours(start: tuple[int, ...], best: tuple[int, ...]) -> None:
    losses: dict[tuple[int, ...], float] = {}
    while True:
        untried, found = climb(start, losses.get)
        if not untried:
            break
        for point in untried:  # too high a rate breaks training up
            broken = any(place > -1 for place in point)
            losses[point] = math.inf if broken else sum((a - b) ** 2 for a, b in zip(point, best, strict=True))
    assert found == best
    assert len(losses) < 25


def test_of_equally_good_rates_the_gentlest_is_taken() -> None:
    losses = {(-8, -6): 0.5001, (-7, -6): 0.5, (-6, -6): 0.5, (-9, -6): 0.503, (-8, -5): 0.5002}
    assert gentlest(losses, base=0.51) == (-8, -6)
    assert gentlest(losses, base=0.5) == (-7, -6)  # nothing was gained: only the very best counts
    assert gentlest(losses, base=0.9) == (-9, -6)


def test_rates_are_a_series() -> None:
    assert [rate_at(place) for place in (-8, -7, -6, -5, 0)] == [2e-3, 5e-3, 1e-2, 2e-2, 1]
    assert all(rate_at(place_of(rate)) == rate for method in METHODS.values() for rate in method.start)


def test_the_search_comes_before_the_runs_that_count(settings: Settings) -> None:
    settings = replace(settings, method=[NOTHING, "lora1"], sweep_subjects=2, seeds=2)

    def worker(run: Run, settings: Settings) -> dict[str, Any]:
        searching.append(not run.drawn)
        shown = {"similarity": 0.5} if run.drawn else {}
        loss = 0.2 if not run.rates else 0.2 + abs(place_of(run.rates[0]) - best)
        return {"subject_loss": loss, "wall_seconds": 1.0, **shown}

    best, searching = place_of(METHODS["lora1"].start[0]) + 1, list[bool]()
    now, later = plan(settings, {})
    assert ([run.method for run in now], len(later)) == ([NOTHING] * 2 + ["lora1"] * 6, 4)
    results = run_all(settings, worker)
    assert searching == [False] * 2 + [True] * 8 + [False] * 4
    assert {run.rates for run in results if run.drawn and run.rates} == {(rate_at(best),)}


def test_what_train_does_has_no_rates_to_search(settings: Settings) -> None:
    """Its rates are the defaults of `train`, so that it runs where others are searched first."""
    now, later = plan(replace(settings, method=["all", "lora1"], sweep_subjects=2), {})
    assert {(run.method, run.drawn) for run in now} == {(NOTHING, True), ("lora1", False)}
    assert {run.rates for run in later if run.method == "all"} == {(1e-3, 1e-3, 3e-2)}
    embedded = Run.make(replace(settings, base="embedded"), "all", "cat")
    assert embedded.rates == (1e-3, 4e-2, 1e-1)
    assert chosen(embedded)["stage_token_learning_rate"] == 1e-1


def test_what_is_measured_is_what_train_saves(settings: Settings, tmp_path: Path) -> None:
    """The mean of the last steps, as long as that is the default."""
    run = Run.make(settings, "all", "cat")
    measured = Coefficients.load(train(run, settings, load_base(run.base)).file)
    config = train_config(run, settings, str(tmp_path / "own"), **chosen(run))
    own = trainer.train(config, load_base(run.base), say=lambda line: None)
    assert measured.sha256 == own.coefficients.sha256


def test_a_rate_may_be_given_instead_of_a_search(settings: Settings) -> None:
    asked = replace(settings, method=["coefficients+token", "lora1"], sweep_subjects=2, learning_rate=3e-3)
    now, later = plan(asked, {})
    assert {(run.method, run.drawn) for run in now} == {(NOTHING, True), ("coefficients+token", False)}
    assert {run.rates for run in later if run.method == "lora1"} == {(3e-3,)}
    with pytest.raises(BenchmarkError, match="--learning_rate is 0.0, expected a number above 0"):
        replace(settings, learning_rate=0.0).resolve()


def test_an_interrupted_benchmark_goes_on(settings: Settings) -> None:
    settings = replace(settings, method=[NOTHING])

    def worker(run: Run, settings: Settings) -> dict[str, Any]:
        if run.subject == "dog":
            raise BenchmarkError("the disk is full")
        return {"subject_loss": 0.2, "similarity": 0.5, "wall_seconds": 1.0}

    with pytest.raises(BenchmarkError, match="disk"):
        run_all(settings, worker)
    path = Path(settings.output_dir) / "results.jsonl"
    with path.open("a") as file:
        file.write('{"method": "nothing", "subj')  # killed while it wrote
    figures = {"subject_loss": 0.3, "similarity": 0.5, "wall_seconds": 1.0}
    results = run_all(settings, lambda run, settings: figures)
    assert {run.subject: figures["subject_loss"] for run, figures in results.items()} == {"cat": 0.2, "dog": 0.3}
    assert read_results(path) == results


def test_settings_that_cannot_work(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BenchmarkError, match=r"no method 'dora'.*no subject 'fox'.*--jobs is 0"):
        replace(settings, method=["dora"], subject=["fox"], jobs=0).resolve()
    quick = replace(settings, quick=True).resolve()
    assert (quick.subject, quick.seeds, quick.search_subjects()) == (["cat"], 1, [])
    assert Path(quick.output_dir).name == "quick"
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "--sweep_subjects" in capsys.readouterr().out


def test_colours_and_change(tmp_path: Path) -> None:
    assert len(grounds()) == 20
    for name, colour in COLOURS.items():
        picture = Image.new("RGB", (64, 64), colour)
        picture.paste((0, 255, 0), (8, 8, 56, 56))
        assert nearest_colour(picture) == name
    picture.save(tmp_path / "one.png")
    assert mean_change([picture], [tmp_path / "one.png"]) == 0
    assert mean_change([Image.new("RGB", (64, 64))], [tmp_path / "one.png"]) > 50


def _never(run: Run, settings: Settings) -> dict[str, Any]:
    raise AssertionError(f"{run} was done already")


def _write(settings: Settings, run: Run, figures: dict[str, Any]) -> None:
    path = Path(settings.output_dir) / "results.jsonl"
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps({**asdict(run), "figures": figures}) + "\n")
