"""Files appear whole or not at all: on a full disk, beyond a limit, and when the one who writes gives up."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from coeff_diffusion.subject.atomic_write import atomic_write, is_leftover


def give_up(path: Path, error: BaseException) -> None:
    with atomic_write(path) as file:
        file.write(b"half")
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("no"), OSError("no")])
def test_whole_or_not_at_all(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        give_up(tmp_path / "x", error)
    assert list(tmp_path.iterdir()) == []
    with atomic_write(tmp_path / "x") as file:
        file.write(b"first")
    with pytest.raises(type(error)):
        give_up(tmp_path / "x", error)
    assert (tmp_path / "x").read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def write_to_a_full_disk(path: Path) -> None:
    """The device /dev/full answers as a full disk does."""
    with atomic_write(path) as file:
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, file.fileno())
        os.close(full)
        file.write(b"after")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a system without /dev/full")
def test_a_full_disk_is_called_that_and_the_file_named(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"before")
    with pytest.raises(OSError, match="the disk is full") as error:
        write_to_a_full_disk(tmp_path / "x")
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(tmp_path / "x"))
    assert (tmp_path / "x").read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_other_errors_name_the_file(tmp_path: Path) -> None:
    missing = tmp_path / "missing" / "x"
    with pytest.raises(FileNotFoundError) as error:
        give_up(missing, ValueError())
    assert error.value.filename == str(missing)


def test_what_a_kill_leaves_is_known(tmp_path: Path) -> None:
    kill = "import os, sys\nfrom coeff_diffusion.subject.atomic_write import atomic_write\n"
    kill += "with atomic_write(sys.argv[1]) as file: os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", kill, str(tmp_path / "step_000002_0.png")], check=False)
    (left,) = tmp_path.iterdir()
    assert is_leftover(left)
    for name in ("x.tmp", ".x.tmp", ".x.1234567.tmp", ".x.1234567g.tmp", "x.12345678.tmp", ".hidden"):
        assert not is_leftover(tmp_path / name)


# Every kind of file that the project writes, in a process that may write files of a few bytes only.
WRITERS = """
import resource, sys
from pathlib import Path
from PIL import Image
from coeff_diffusion import Coefficients, CoefficientsInfo
from coeff_diffusion.cli import main
from coeff_diffusion.images.files import save_new_picture, save_picture
from coeff_diffusion.sources.shared_folder import write_folder
from coeff_diffusion.training.checkpoint import Checkpoint
from coeff_diffusion.training.timeline import save_timeline
import torch

folder = Path(sys.argv[1])
subject = Coefficients({"a.b": torch.eye(8)}, info=CoefficientsInfo(name="x", trigger="x"))
picture = Image.effect_noise((64, 64), 90).convert("RGB")
subject.save(folder / "in.safetensors")
picture.save(folder / "in.png")
state = {"optimizer": {"state": {}}, "lr_scheduler": {}, "scaler": {}}
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

def command(*words):
    if main(list(words)) == 2:
        raise OSError("said already")

writers = {
    "subject.safetensors": lambda path: subject.save(path),
    "preview.png": lambda path: save_picture(picture, path),
    "00001-7.png": lambda path: save_new_picture(picture, folder, "7"),
    "timeline.safetensors": lambda path: save_timeline(path, {1: subject}, [0.5]),
    "checkpoint.safetensors": lambda path: Checkpoint(0, {"a": torch.eye(8)}, state, []).save(Path(path)),
    "card.png": lambda path: command("card", "in.safetensors", "in.png", "-o", path),
    "converted.safetensors": lambda path: command("convert", "in.safetensors", "-o", path, "--dtype", "float32"),
    "pulled": lambda path: write_folder({"coefficients.safetensors": subject.to_bytes()}, folder / path),
}
for name, write in writers.items():
    try:
        write(name)
    except OSError as error:
        print(name, "|", error.strerror, "|", error.filename)
    else:
        print(name, "| was written")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="a system without limits on files")
def test_nothing_is_left_of_what_could_not_be_written(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WRITERS, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True,
        check=True, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.png", "in.safetensors"]
    said = dict(line.split(" | ", 1) for line in done.stdout.splitlines())
    reason = "the disk or a limit of this process takes no larger file"
    for name in ("subject.safetensors", "preview.png", "00001-7.png", "timeline.safetensors", "checkpoint.safetensors"):
        assert said[name].startswith(f"{reason} | ")
        assert said[name].endswith(name)
    assert said["pulled"] == f"{reason} | {tmp_path / 'pulled' / 'coefficients.safetensors'}"
    for name in ("card.png", "converted.safetensors"):
        assert f"coeff-diffusion: error: {reason}: {name}" in done.stderr
