"""Many subjects on a cluster: what one machine teaches, whatever becomes of the workers."""

import os
import shutil
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import psutil
import pytest
from PIL import Image

from coeff_diffusion.cli import main
from coeff_diffusion.sources.library import Library
from coeff_diffusion.training.config import ConfigError, TrainConfig
from coeff_diffusion.training.many_config import many_settings
from coeff_diffusion.training.many_ray import train_many_on_ray
from coeff_diffusion.training.many_trainer import train_many

STEPS = 8
NAMES = ["dog", "rex", "tom"]


@pytest.fixture(scope="module")
def workplace() -> Iterator[Path]:
    """Where the workers keep what they are at; its name is short, as those of sockets have to be."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def ray(workplace: Path) -> Iterator[Any]:
    """A cluster of two workers in processes of this machine."""
    ray = pytest.importorskip("ray", reason='needs pip install "coeff-diffusion[ray]"')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(workplace))
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        patch.setenv("RAY_TMPDIR", str(workplace))
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init("local", num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        yield ray
        ray.shutdown()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "all"
    for number, name in enumerate(("dog", "rex.dog", "tom.cat")):
        (folder / name).mkdir(parents=True)
        for i in range(2):
            noise = Image.effect_noise((24, 24), 40 + 60 * number + i).convert("RGB")
            noise.save(folder / name / f"{i}.png")
    (folder / "tom.cat" / "0.txt").write_text("a cat in the snow")
    (folder / "subjects.csv").write_text("folder,seed\ndog,3\n")
    return folder


@pytest.fixture
def config(tiny_base_dir: Path) -> TrainConfig:
    return many_settings(
        pretrained_model_name_or_path=str(tiny_base_dir),
        max_train_steps=STEPS,
        train_batch_size=2,
        cached_views=2,
        checkpointing_steps=2,
        validate_every_n_steps=STEPS,  # then few pictures are measured
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def kill_a_worker(workplace: Path, killed: list[Path]) -> None:
    """Kill the first worker that has come to a checkpoint, as a machine that goes off does."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        if found := list(workplace.glob("coeff-diffusion-*/subjects/.runs/rex/checkpoints/*")):
            for process in psutil.Process().children(recursive=True):
                if process.name().startswith("ray::teach") and holds(process, found[0].parents[1] / ".lock"):
                    process.kill()
                    killed.extend(found)
                    return
        time.sleep(0.005)


def holds(process: psutil.Process, file: Path) -> bool:
    return any(one.path == str(file) for one in process.open_files())


@pytest.mark.slow
def test_a_worker_is_killed_and_everything_arrives_once(
    ray: Any, workplace: Path, folder: Path, config: TrainConfig, tmp_path: Path
) -> None:
    lines, killed = list[str](), list[Path]()
    killer = threading.Thread(target=kill_a_worker, args=(workplace, killed))
    killer.start()
    settings = replace(config, output_dir=str(tmp_path / "out"))
    result = train_many_on_ray(folder, settings, address="local", subjects_per_batch=2, say=lines.append)
    killer.join()
    assert killed
    assert (result.failed, result.stopped) == ({}, False)
    assert sorted(result.learned) == NAMES
    arrived = [line.partition(": ")[2].split(", ") for line in lines if " of 3: " in line]
    assert sorted(name for names in arrived for name in names) == NAMES
    assert list(Library(tmp_path / "out").find()) == NAMES

    here = train_many(folder, replace(config, output_dir=str(tmp_path / "here")), subjects_per_batch=2)
    ours, theirs = contents(tmp_path / "out"), contents(tmp_path / "here")
    assert ours.keys() == theirs.keys()
    for name, learned in result.learned.items():
        assert learned.coefficients == here.learned[name].coefficients
        assert learned.losses == here.learned[name].losses
        assert learned.file == tmp_path / "out" / f"{name}.safetensors"
        assert ours[f".runs/{name}/config.yaml"] == theirs[f".runs/{name}/config.yaml"].replace(
            str(tmp_path / "here").encode(), str(tmp_path / "out").encode()
        )
    assert not list(workplace.glob("coeff-diffusion-*"))

    said: list[str] = []
    again = train_many_on_ray(folder, settings, address="nobody is asked", say=said.append)
    assert (again.skipped, again.learned, again.failed, said) == (result.files, {}, {}, [])
    assert contents(tmp_path / "out") == ours


def test_a_bucket_takes_them_and_what_fails_fails_alone(ray: Any, folder: Path, config: TrainConfig) -> None:
    broken = folder / "tom.cat" / "1.png"
    broken.write_bytes(broken.read_bytes()[:-60])
    bucket = f"memory://{uuid.uuid4()}"
    settings = replace(config, output_dir=bucket, max_train_steps=1)
    result = train_many_on_ray(folder, settings, address="local", say=lambda line: None)
    assert sorted(result.learned) == ["dog", "rex"]
    assert "1.png" in result.failed["tom"]
    files, root = fsspec.url_to_fs(bucket)
    found = sorted(path.removeprefix(f"{root}/") for path in files.find(root))
    assert found == [
        *(f".runs/{name}/{file}" for name in ("dog", "rex") for file in ("README.md", "config.yaml")),
        "dog.safetensors",
        "rex.safetensors",
    ]
    assert result.files == {name: f"{bucket}/{name}.safetensors" for name in ("dog", "rex")}
    assert result.table()[0].split()[:5] == ["dog", "'sks", "dog',", "1", "steps,"]

    Image.new("RGB", (24, 24)).save(broken)
    result = train_many_on_ray(folder, settings, address="local", say=lambda line: None)
    assert (list(result.skipped), list(result.learned)) == (["dog", "rex"], ["tom"])
    assert "is there already: dog.safetensors" in result.table()[0]


def test_a_batch_that_no_worker_can_teach(
    ray: Any, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train-many", str(folder), "--ray", "local", "--output_dir", str(tmp_path / "out")]
    assert main([*arguments, "--base", str(tmp_path / "no base")]) == 1
    said = capsys.readouterr()
    assert "error: 3 of 3 subjects failed: dog, rex, tom" in said.err
    assert said.out.count("no base") == 6  # as it comes, and in the table
    assert not (tmp_path / "out").exists()


def test_workers_of_less_than_nothing(folder: Path, config: TrainConfig, tmp_path: Path) -> None:
    settings = replace(config, output_dir=str(tmp_path / "out"))
    with pytest.raises(ConfigError, match=r"(?s)--cpus_per_batch is -1, expected 0 or more.*--gpus_per_batch is nan"):
        train_many_on_ray(folder, settings, address="nobody is asked", cpus_per_batch=-1, gpus_per_batch=float("nan"))


def test_without_ray(folder: Path, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r'--ray needs ray; pip install "coeff-diffusion\[ray\]"'):
        train_many_on_ray(folder, replace(config, output_dir=str(tmp_path / "out")), address="local")
    with pytest.raises(ConfigError, match="memory://lib, which is no folder; --ray writes to addresses"):
        train_many(folder, replace(config, output_dir="memory://lib"))
    assert not (tmp_path / "out").exists()
