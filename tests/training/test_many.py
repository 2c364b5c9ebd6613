"""Many subjects at once: each learns what it learns alone, whatever becomes of the others."""

import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image

from coeff_diffusion.cli import main
from coeff_diffusion.sources.library import Library
from coeff_diffusion.training.config import ConfigError, TrainConfig
from coeff_diffusion.training.many_config import many_settings, parse_many_config
from coeff_diffusion.training.many_reports import ManyReport, ManyResult, starting_points
from coeff_diffusion.training.many_subjects import Wanted, find_subjects
from coeff_diffusion.training.many_trainer import train_many
from coeff_diffusion.training.trainer import train

STEPS = 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three subjects: a dog, a dog called rex, and a cat with captions; of two shapes."""
    folder = tmp_path / "all"
    for number, (name, count) in enumerate({"dog": 2, "rex.dog": 3, "tom": 2}.items()):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            size = (24, 24) if i else (40, 20)
            Image.effect_noise(size, 40 + 60 * number + i).convert("RGB").save(folder / name / f"{i}.png")
    (folder / "tom" / "0.txt").write_text("a cat in the snow")
    (folder / "tom" / "subject.yaml").write_text("class_word: cat\nseed: 7\n")
    return folder


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return many_settings(
        max_train_steps=STEPS,
        train_batch_size=2,
        cached_views=2,
        checkpointing_steps=2,
        validate_every_n_steps=STEPS,  # then few pictures are measured
        output_dir=str(tmp_path / "out"),
    )


@pytest.fixture
def run(folder: Path, config: TrainConfig, tiny_pipe: StableDiffusionPipeline) -> Callable[..., ManyResult]:
    def run(to: str = "out", changes: dict[str, Any] | None = None, **options: Any) -> ManyResult:
        settings = replace(config, output_dir=str(Path(str(config.output_dir)).parent / to), **(changes or {}))
        return train_many(folder, settings, **{"pipe": tiny_pipe, "say": lambda line: None, **options})

    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def subjects(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def wanted(folder: Path, config: TrainConfig, table: Path | None = None) -> dict[str, Wanted]:
    return {one.name: one for one in find_subjects(folder, config, table)}


def check_equals_alone(result: ManyResult, folder: Path, config: TrainConfig, pipe: Any) -> None:
    assert result.failed == {}
    assert sorted(result.learned) == ["dog", "rex", "tom"]
    for name, one in wanted(folder, config).items():
        assert one.config is not None
        alone = train(replace(one.config, output_dir=str(result.path / "alone" / name)), pipe, say=lambda line: None)
        together = result.learned[name]
        assert together.losses == pytest.approx(alone.losses, rel=1e-5)
        infos = [asdict(one.coefficients.info) for one in (together, alone)]
        for key, tolerance in (("final_loss", 1e-5), ("effect", 1e-3)):
            ours, theirs = (info.pop(key) for info in infos)
            assert ours == pytest.approx(theirs, rel=tolerance)
        assert infos[0] == infos[1]
        expected = alone.coefficients.named_tensors()
        for key, value in together.coefficients.named_tensors().items():
            torch.testing.assert_close(value, expected[key], rtol=2e-3, atol=2e-3 * float(expected[key].abs().max()))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gradient_accumulation_steps": 2, "use_ema": True, "max_grad_norm": 1e-3, "num_vectors": 2},
        {"enable_bucket": True, "train": "coefficients", "validation_prompt": "[trigger] in the snow"},
        {"with_prior_preservation": True, "num_class_images": 2, "train": "token", "snr_gamma": 5.0,
         "noise_offset": 0.1, "gradient_checkpointing": True, "validate_every_n_steps": 2},
    ],
    ids=lambda changes: next(iter(changes), "defaults"),
)  # fmt: skip
def test_each_learns_what_it_learns_alone(
    changes: dict[str, Any], run: Callable[..., ManyResult], folder: Path, config: TrainConfig, tmp_path: Path,
    tiny_pipe: StableDiffusionPipeline,
) -> None:  # fmt: skip
    if changes.get("with_prior_preservation"):
        changes = {**changes, "class_data_dir": str(tmp_path / "classes")}
    result = run(changes=changes, subjects_per_batch=2)
    check_equals_alone(result, folder, replace(config, **changes), tiny_pipe)
    if "class_data_dir" in changes:
        assert sorted(path.name for path in (tmp_path / "classes").iterdir()) == ["cat", "dog"]


def test_each_learns_what_it_learns_alone_on_xl(
    folder: Path, config: TrainConfig, tiny_xl_pipe: StableDiffusionXLPipeline
) -> None:
    result = train_many(folder, config, pipe=tiny_xl_pipe, say=lambda line: None)
    assert {"text_encoder", "text_encoder_2"} == set(result.learned["tom"].coefficients.tokens)
    check_equals_alone(result, folder, config, tiny_xl_pipe)


def test_the_output_is_a_library_and_a_second_run_does_nothing(
    run: Callable[..., ManyResult], folder: Path, tmp_path: Path
) -> None:
    reports: list[ManyReport] = []
    first = run(on_step=reports.append, changes={"validation_steps": 2, "num_validation_images": 1})
    assert [(one.done, one.total) for one in reports] == [(3 * step, 3 * STEPS) for step in range(1, STEPS + 1)]
    assert reports[-1].seconds_left == 0
    assert reports[0].losses.keys() == {"dog", "rex", "tom"}
    out = tmp_path / "out"
    assert list(Library(out).find()) == ["dog", "rex", "tom"]
    assert first.files == {name: out / f"{name}.safetensors" for name in ("dog", "rex", "tom")}
    assert first.learned["tom"].file == out / "tom.safetensors"
    assert [one.coefficients.info.trigger for one in first.learned.values()] == ["sks dog", "rex dog", "tom cat"]
    before = contents(out)
    assert {name for name in before if not name.startswith(".runs")} == {f"{name}.safetensors" for name in first.files}
    assert {name for name in before if name.startswith(".runs/tom")} == {
        ".runs/tom/README.md",
        ".runs/tom/config.yaml",
        ".runs/tom/samples/step_000000_0.png",
        ".runs/tom/samples/step_000002_0.png",
        ".runs/tom/samples/step_000004_0.png",
    }
    second = run(pipe=None, changes={"pretrained_model_name_or_path": str(tmp_path / "not there")})
    assert contents(out) == before
    assert (second.skipped, second.learned, second.failed) == (first.files, {}, {})
    assert not second.stopped

    lines: list[str] = []
    run(pipe=None, say=lines.append, changes={"seed": 5, "max_train_steps": 9})
    assert [line for line in lines if line.startswith("rex: ")] == [
        "rex: is there already, but seed was 0 and is 5, max_train_steps was 4 and is 9; --overwrite_output_dir "
        "teaches it anew"
    ]
    again = run(changes={"seed": 5, "overwrite_output_dir": True, "max_train_steps": 1})
    assert again.learned.keys() == first.files.keys()
    assert subjects(out)["rex.safetensors"] != before["rex.safetensors"]


class KillError(BaseException):
    """Ends the process, as far as the code can tell."""


def test_after_a_kill_or_a_stop_it_goes_on_to_the_very_same_files(
    run: Callable[..., ManyResult], tmp_path: Path
) -> None:
    run("whole", subjects_per_batch=2)
    whole = subjects(tmp_path / "whole")
    for step in (2, 4):
        seen: list[ManyReport] = []

        def kill(report: ManyReport, seen: list[ManyReport] = seen, step: int = step) -> None:
            seen.append(report)
            if len(seen) == step:
                raise KillError

        out = tmp_path / f"killed {step}"
        with pytest.raises(KillError):
            run(out.name, on_step=kill, subjects_per_batch=2)
        assert subjects(out) == {}
        max((out / ".runs/rex/checkpoints").iterdir()).unlink()  # as if the kill had come while it was being written
        run(out.name, subjects_per_batch=2)
        assert subjects(out) == whole

    done: list[ManyReport] = []
    result = run("stopped", on_step=done.append, should_stop=lambda: len(done) == 3, subjects_per_batch=2)
    assert result.stopped
    assert (result.files, result.failed) == ({}, {})
    result = run("stopped", on_step=done.append, subjects_per_batch=2)
    assert len(done) == 2 * STEPS  # of two batches
    assert not result.stopped
    assert subjects(tmp_path / "stopped") == whole


def test_starting_points() -> None:
    assert starting_points({"a": [100, 150], "b": [50, 100]}, 50) == {"a": 100, "b": 100}  # killed between the two
    assert starting_points({"a": [50], "b": []}, 50) == {"a": 0, "b": 0}
    assert starting_points({"a": [100, 150], "b": []}, 50) == {"a": 150, "b": 0}  # b joined later
    assert starting_points({"a": [120, 150], "b": [140]}, 50) == {"a": 150, "b": 140}
    assert starting_points({}, 50) == {}


def test_what_fails_fails_alone(
    folder: Path, tiny_base_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "empty").mkdir()
    (folder / "__MACOSX").mkdir()  # comes out of archives that Macs made, and is nobody's subject
    (folder / "dog2").mkdir()
    shutil.copytree(folder / "dog", folder / "broken.dog")
    picture = folder / "broken.dog" / "0.png"
    picture.write_bytes(picture.read_bytes()[:-60])
    shutil.copytree(folder / "dog", folder / "Rex.cat")  # another rex.safetensors
    arguments = [
        *("train-many", str(folder), "--base", str(tiny_base_dir), "--output_dir", str(tmp_path / "out")),
        *("--max_train_steps", "2", "--train_batch_size", "1", "--cached_views", "1", "--class_word", "animal"),
    ]
    assert main(arguments) == 1
    said = capsys.readouterr()
    assert "coeff-diffusion: error: 4 of 7 subjects failed: dog2, empty, rex.dog/, broken" in said.err
    table = [line for line in said.out.splitlines() if "FAILED: " in line]
    assert any(line.startswith("empty     FAILED: no pictures in") for line in table)
    assert any(line.startswith("broken    FAILED: ") and "0.png" in line for line in table)
    assert "rex.dog/  FAILED: rex.safetensors is to be of the folder Rex.cat; rename one" in table
    assert sorted(subjects(tmp_path / "out")) == [f"{name}.safetensors" for name in ("Rex", "dog", "tom")]


def test_a_folder_that_is_deleted_meanwhile_ends_one_alone(run: Callable[..., ManyResult], tmp_path: Path) -> None:
    def delete(report: ManyReport) -> None:
        if report.done == 6:
            shutil.rmtree(tmp_path / "out/.runs/rex")

    reports: list[ManyReport] = []
    result = run(on_step=lambda report: (delete(report), reports.append(report)))
    assert "deleted" in result.failed["rex"]
    assert sorted(result.learned) == ["dog", "tom"]
    assert reports[-1].done == reports[-1].total
    result = run()
    assert sorted(result.learned) == ["rex"]
    assert sorted(result.skipped) == ["dog", "tom"]


# --- what is told of subjects -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("subjects.csv", "folder,class_word,trigger,seed\ndog,hound,,3\nrex.dog,,king dog,\n"),
        ("subjects.jsonl", '{"file_name": "dog", "class_word": "hound", "seed": 3}\n'
                           '{"file_name": "rex.dog", "trigger": "king dog"}\n'),
        ("subjects.json", '[{"folder": "dog", "class_word": "hound", "seed": 3},'
                          ' {"folder": "rex.dog", "trigger": "king dog"}]'),
        ("subjects.yaml", "dog: {class_word: hound, seed: 3}\nrex.dog: {trigger: king dog}\n"),
    ],
)  # fmt: skip
def test_tables(name: str, text: str, folder: Path, config: TrainConfig, tmp_path: Path) -> None:
    for place, given in ((folder / name, None), (tmp_path / name, tmp_path / name)):
        place.write_text(text)
        found = {key: one.config for key, one in wanted(folder, config, given).items()}
        place.unlink()
        assert {key: (one and (one.class_word, one.trigger, one.seed)) for key, one in found.items()} == {
            "dog": ("hound", "dog hound", 3),
            "rex": ("dog", "king dog", 0),
            "tom": ("cat", "tom cat", 7),
        }


def test_names_of_folders_and_prompts_for_all(folder: Path, config: TrainConfig) -> None:
    for name in ("lady_beetle", "p1.golden retriever", "p2"):
        shutil.copytree(folder / "dog", folder / name)
    settings = replace(config, instance_prompt="a photo of [trigger]")
    found = wanted(folder, settings)
    assert "p2 is no word" in found["p2"].problem.replace("'", "")
    assert found["lady_beetle"].config is not None
    assert found["lady_beetle"].config.trigger == "sks lady beetle"
    found = wanted(folder, replace(settings, class_word="animal"))
    triggers = {name: one.config and one.config.trigger for name, one in found.items()}
    assert triggers == {
        "dog": "dog animal",
        "lady_beetle": "lady beetle animal",
        "p1": "p1 golden retriever",
        "p2": "p2 animal",
        "rex": "rex dog",
        "tom": "tom cat",
    }
    assert {one.config and one.config.instance_prompt for one in found.values()} == {
        f"a photo of {trigger}" for trigger in triggers.values()
    }


def test_subjects_that_call_each_other_up_are_named(run: Callable[..., ManyResult], folder: Path) -> None:
    (folder / "subjects.yaml").write_text("tom: {trigger: big rex dog}\n")
    lines: list[str] = []
    run(say=lines.append, should_stop=lambda: True)
    assert lines == ["note: tom and rex cannot be loaded together: one calls up the other ('big rex dog')"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("folder,clas_word\ndog,cat\n", "line 2: nothing is called 'clas_word'; did you mean 'class_word'?"),
        ("folder,seed\ndog,many\n", "line 2: seed is 'many', expected a whole number"),
        ("folder,class_word\ndog,cat\ndog,cat\n", "line 3: 'dog' is there twice"),
        ("class_word\ncat\n", "line 2: '' is no name of a folder in it; expected a column 'folder'"),
        ("folder,class_word\n../dog,cat\n", "'../dog' is no name of a folder"),
        ("folder,class_word\ndog,cat,bird\n", "nothing is called None"),
    ],
)
def test_tables_that_cannot_be_read(text: str, message: str, folder: Path, config: TrainConfig) -> None:
    (folder / "subjects.csv").write_text(text)
    with pytest.raises(ConfigError) as caught:
        find_subjects(folder, config)
    assert message in str(caught.value)


def test_a_row_without_its_folder_and_two_tables(folder: Path, config: TrainConfig) -> None:
    (folder / "subjects.csv").write_text("folder,class_word\nfido,dog\n")
    assert "no such folder of pictures" in wanted(folder, config)["fido"].problem
    (folder / "subjects.yaml").write_text("[1, 2]")
    with pytest.raises(ConfigError, match=r"subjects.csv and subjects.yaml; keep one"):
        find_subjects(folder, config)
    with pytest.raises(ConfigError, match="expected a row for each folder"):
        find_subjects(folder, config, folder / "subjects.yaml")
    (folder / "subjects.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="cannot be read"):
        find_subjects(folder, config, folder / "subjects.yaml")


def test_what_cannot_work_is_said_before_anything_is_written(
    folder: Path, config: TrainConfig, run: Callable[..., ManyResult], tmp_path: Path
) -> None:
    for changes, message in {
        ("trigger", "sks dog"): "--trigger is of one subject; say it in a column of subjects.csv, or in subject.yaml",
        ("resume_from_checkpoint", "latest"): "--resume_from_checkpoint is of one subject; the same command goes on by",
        ("validation_data_dir", "x"): "--validation_data_dir is of one subject; leave it out, or teach that one alone",
        ("report_to", "tensorboard"): "--report_to is of a single training",
    }.items():
        with pytest.raises(ConfigError, match=message):
            run(changes=dict([changes]))
    with pytest.raises(ConfigError, match="--subjects_per_batch is 0, expected at least 1"):
        run(subjects_per_batch=0)
    with pytest.raises(ConfigError, match="exclude each other where many learn at once"):
        run(changes={"enable_bucket": True, "gradient_checkpointing": True})
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        train_many(tmp_path / "nothing", config)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no folders"):
        train_many(tmp_path / "empty", config)
    assert all(
        "--learning_rate is -1" in one.problem for one in wanted(folder, replace(config, learning_rate=-1)).values()
    )
    assert not (tmp_path / "out").exists()


def test_flags(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "all.yaml").write_text("max_train_steps: 7\ntrain_batch_size: 3\n")
    lines: list[str] = []
    arguments = [
        "--config",
        str(tmp_path / "all.yaml"),
        str(folder),
        "--subjects_per_batch",
        "2",
        "--train_batch_size=1",
    ]
    found = parse_many_config(arguments, say=lines.append)
    assert (found.folder, found.subjects_per_batch, found.subjects) == (str(folder), 2, None)
    assert found.config == many_settings(max_train_steps=7, train_batch_size=1)
    assert lines == [f"note: train_batch_size is 1 of the command line, not 3 of {tmp_path / 'all.yaml'}"]
    for wrong, message in {
        (): "no folder is given",
        (str(folder), "--subjects_per_batc", "2"): "unknown setting",
        (str(folder), "--subjects_per_batch", "two"): "--subjects_per_batch",
    }.items():
        assert main(["train-many", *wrong]) == 2
        assert message in capsys.readouterr().err
