"""The folder of a run: refused when it is not free or not writable, cleared of nothing but a run's own files."""

import errno
import tempfile
from pathlib import Path
from typing import Any

import pytest

from coeff_diffusion.training.config import ConfigError
from coeff_diffusion.training.run_folder import RunFolder


def test_names(tmp_path: Path) -> None:
    output = RunFolder(tmp_path)
    assert output.sample(100, 0) == tmp_path / "samples" / "step_000100_0.png"
    assert output.checkpoint(7) == tmp_path / "checkpoints" / "step_000007.safetensors"


def test_free_or_allowed(tmp_path: Path) -> None:
    output = RunFolder(tmp_path / "deep" / "out")
    output.prepare()
    output.prepare()  # an empty folder is free
    assert list(output.path.iterdir()) == []
    (output.path / "x").touch()
    with pytest.raises(ConfigError, match="is not empty"):
        output.prepare()
    output.prepare(overwrite=True)
    output.prepare(resume=True)


def test_not_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(ConfigError, match="--output_dir .* cannot be written"):
            RunFolder(path).prepare()

    def denied(**kwargs: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", denied)  # the tests may run as root, whom no permission stops
    with pytest.raises(ConfigError, match=r"--output_dir .* cannot be written: Permission denied"):
        RunFolder(tmp_path / "out").prepare()


def test_clearing_takes_a_runs_own_files_only(tmp_path: Path) -> None:
    output = RunFolder(tmp_path)
    own = [
        output.coefficients, output.timeline, output.config, output.card, output.sample(10, 1), output.checkpoint(20),
        tmp_path / "logs" / "run" / "events.out.tfevents.1.host",
    ]  # fmt: skip
    others = [tmp_path / "notes.txt", tmp_path / "samples" / "mine.png", tmp_path / "photos" / "step_000001_0.png"]
    for path in (*own, *others):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    output.clear("logs")
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(others)
    assert not (tmp_path / "logs").exists()
    assert not (tmp_path / "checkpoints").exists()


def test_newest_samples(tmp_path: Path) -> None:
    output = RunFolder(tmp_path)
    assert output.newest_samples() == []
    output.samples.mkdir()
    for step in (100, 200):
        for number in range(12):
            output.sample(step, number).touch()
    assert output.newest_samples() == [output.sample(200, number) for number in range(12)]
