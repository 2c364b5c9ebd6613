"""Real processes that have a folder each, end, or are killed."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

START = (
    "import pathlib, sys; from coeff_diffusion.subject.private_folder import private_folder\n"
    "print(private_folder(pathlib.Path(sys.argv[1]), 'ours-'), flush=True)\n"
)
WAIT = "sys.stdin.read()\n"
FULL = (
    "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
)


@contextmanager
def process(place: Path, script: str = START + WAIT) -> Iterator[subprocess.Popen[str]]:
    """A Python that runs a script; it is killed at the end, if it still lives."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", script, str(place)],
        cwd=Path(__file__).parents[2],
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        text=True,
    ) as running:
        try:
            yield running
        finally:
            running.kill()


def folder_of(running: subprocess.Popen[str]) -> Path:
    assert running.stdout is not None
    return Path(running.stdout.readline().strip())


def test_it_is_private_and_goes_with_its_process(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        with process(tmp_path / "new") as one, process(tmp_path / "new") as other:
            folder, kept = folder_of(one), folder_of(other)
            assert folder != kept
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            (folder / "upload").mkdir()
            (folder / "upload" / "picture.png").write_bytes(b"x")
            assert one.communicate("", timeout=30)[1] == ""
            assert list((tmp_path / "new").iterdir()) == [kept]
    finally:
        os.umask(old)


def test_leftovers_of_killed_processes_are_swept_and_nothing_else(tmp_path: Path) -> None:
    with process(tmp_path) as killed, process(tmp_path) as living:
        left, kept = folder_of(killed), folder_of(living)
        (left / "upload").mkdir()
        killed.kill()
        killed.wait()
        others = [tmp_path / "ours-file", tmp_path / "ours-link", tmp_path / "theirs"]
        others[0].write_text("no folder")
        others[1].symlink_to(kept)
        others[2].mkdir()
        with process(tmp_path) as new:
            folder = folder_of(new)
            assert set(tmp_path.iterdir()) == {kept, folder, *others}


def test_many_that_start_at_once_take_nothing_from_one_another(tmp_path: Path) -> None:
    script = (
        START.replace("print(", "folder = (").replace(", flush=True", "")
        + "(folder / 'x').write_text('x'); sys.stdin.readline(); assert (folder / 'x').exists()\n"
    )
    with ExitStack() as stack:
        running = [stack.enter_context(process(tmp_path, script)) for _ in range(16)]
        for number, one in enumerate(running):
            if number % 3 == 0:
                one.kill()
        for number, one in enumerate(running):
            errors = one.communicate("\n", timeout=60)[1]
            assert number % 3 == 0 or (one.returncode, errors) == (0, "")


def test_a_place_that_cannot_be_had_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    with process(tmp_path, FULL + START) as running:
        assert "File too large" in running.communicate(timeout=30)[1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("below", ["file", "file/new"])
def test_a_file_is_no_place(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    with process(tmp_path / below, START) as running:
        assert "Error: [Errno" in running.communicate(timeout=30)[1]
    assert running.returncode == 1
