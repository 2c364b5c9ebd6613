"""The folder of a run: refused when it is not free or not writable, cleared of nothing but a run's own files."""

import errno
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from coeff_diffusion.training.config import ConfigError, TrainConfig
from coeff_diffusion.training.run_folder import RunFolder


def test_names(tmp_path: Path) -> None:
    output = RunFolder(tmp_path)
    assert output.sample(100, 0) == tmp_path / "samples" / "step_000100_0.png"
    assert output.checkpoint(7) == tmp_path / "checkpoints" / "step_000007.safetensors"


def claim(output: RunFolder, **allowed: bool) -> None:
    with output.claimed(**allowed):
        pass


def test_free_or_allowed(tmp_path: Path) -> None:
    output = RunFolder(tmp_path / "deep" / "out")
    claim(output)
    claim(output)  # an empty folder is free
    assert list(output.path.iterdir()) == []
    (output.path / "x").touch()
    with pytest.raises(ConfigError, match="is not empty"):
        claim(output)
    claim(output, overwrite=True)
    claim(output, resume=True)
    assert [path.name for path in output.path.iterdir()] == ["x"]


def test_what_a_killed_run_left_half_written_is_swept(tmp_path: Path) -> None:
    """And what a system puts into every folder keeps nobody from training into one."""
    output = RunFolder(tmp_path)
    half = [
        tmp_path / ".timeline.safetensors.0a1b2c3d.tmp", tmp_path / ".config.yaml.01234567.tmp",
        output.checkpoints / ".step_000002.safetensors.deadbeef.tmp",
        output.samples / ".step_000002_0.png.00000000.tmp",
    ]  # fmt: skip
    others = [tmp_path / ".DS_Store", output.samples / ".mine.tmp", output.samples / "mine.png.12345678.tmp"]
    for path in (*half[:2], others[0], output.lock):
        path.touch()
    claim(output)
    assert list(tmp_path.iterdir()) == [others[0]]
    for path in (*half, *others):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    with pytest.raises(ConfigError, match="is not empty"):
        claim(output)
    claim(output, resume=True)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(others)


def test_one_run_at_a_time(tmp_path: Path) -> None:
    """By whatever name the folder is called, in this process or another; the lock dies with its process."""
    output = RunFolder(tmp_path / "out")
    with output.claimed():
        (tmp_path / "link").symlink_to(tmp_path / "out")
        for other in (output, RunFolder(tmp_path / "link"), RunFolder(tmp_path / "out" / ".." / "out")):
            with pytest.raises(ConfigError, match="is being trained into right now; wait for that run"):
                claim(other, overwrite=True)
    claim(output)
    hold = """if True:
        import sys, time
        from pathlib import Path
        from coeff_diffusion.training.run_folder import RunFolder
        with RunFolder(Path(sys.argv[1])).claimed():
            print("claimed", flush=True)
            time.sleep(100)
    """
    with subprocess.Popen([sys.executable, "-c", hold, str(output.path)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"claimed\n"
        with pytest.raises(ConfigError, match="is being trained into right now"):
            claim(output, resume=True)
        child.kill()
    assert output.lock.exists()
    claim(output)
    assert list(output.path.iterdir()) == []


def test_another_folder_in_its_place_keeps_its_lock(tmp_path: Path) -> None:
    output = RunFolder(tmp_path / "out")
    with output.claimed():
        place = output.place()
        output.path.rename(tmp_path / "moved")
        assert output.place() is None
        with output.claimed():
            assert output.place() not in (None, place)
    assert not output.lock.exists()


def test_not_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(ConfigError, match="--output_dir .* cannot be written"):
            claim(RunFolder(path))

    def denied(**kwargs: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", denied)  # the tests may run as root, whom no permission stops
    with pytest.raises(ConfigError, match=r"--output_dir .* cannot be written: Permission denied"):
        claim(RunFolder(tmp_path / "out"))


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


@pytest.mark.parametrize("name", ["README.md", "config.yaml"])
def test_texts_that_no_run_wrote_are_never_replaced(tmp_path: Path, name: str) -> None:
    """`--overwrite_output_dir` and resuming allow a folder that holds a run, not one that holds somebody's project."""
    output = RunFolder(tmp_path)
    (tmp_path / name).write_text("written by hand")
    for allowed in ("overwrite", "resume"):
        with pytest.raises(ConfigError, match=f"holds {name} that no training wrote and this one would replace; take"):
            claim(output, **{allowed: True})
    assert (tmp_path / name).read_text() == "written by hand"
    output.config.write_text(TrainConfig(instance_data_dir="photos", class_word="dog").resolve().to_yaml())
    output.card.write_text("---\nlibrary_name: coeff-diffusion\n---\n\nMy own words.\n")
    claim(output, overwrite=True)


def test_what_other_programs_call_alike_stays_where_no_run_was(tmp_path: Path) -> None:
    output = RunFolder(tmp_path)
    others = [tmp_path / "logs" / "events.out.tfevents.1.host", *output.adapter]
    others[0].parent.mkdir()
    for path in others:
        path.touch()
    output.clear("logs")
    assert all(path.exists() for path in others)
    output.config.touch()
    output.clear("logs")
    assert list(tmp_path.iterdir()) == []


def test_newest_samples(tmp_path: Path) -> None:
    output = RunFolder(tmp_path)
    assert output.newest_samples() == []
    output.samples.mkdir()
    output.sample(0, 0).touch()  # it shows the base
    assert output.newest_samples() == []
    for step in (100, 200):
        for number in range(12):
            output.sample(step, number).touch()
    assert output.newest_samples() == [output.sample(200, number) for number in range(12)]
    assert output.newest_samples(199) == [output.sample(100, number) for number in range(12)]
    assert output.newest_samples(99) == []
    for name in ("step_.png", "step_000300.png", "step_000300_x.png", f"step_{'9' * 200}_0.png"):
        (output.samples / name).touch()
    assert output.newest_samples()[0] == output.sample(200, 0)
