"""Trainings that are ended in the middle, by four signals at file operations spread over the run, and then go on.

What is there in the end has to equal, byte for byte, what an uninterrupted run leaves: subject, timeline, previews,
card and settings, and no other file beside the checkpoints. A run that was asked to end, and did not just vanish, has
to have kept what it learned. Linux and macOS; each run is a process of its own, forked with everything imported.

python benchmarks/kills.py
python benchmarks/kills.py --kills 8
"""

import argparse
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timing import machine

from coeff_diffusion.cli import main as coeff_diffusion
from coeff_diffusion.families.load import load_base
from coeff_diffusion.training.trainer import train  # noqa: F401 - imported once, before all forks

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PICTURES = [str(Path(__file__).parent / "unseen" / "dog" / f"0{number}.png") for number in range(2)]
OUT = "out"  # relative, so that the settings of all runs are the same to the byte
SETTINGS: dict[str, object] = {
    "instance_data_dir": PICTURES, "class_word": "dog", "output_dir": OUT, "resolution": 32, "train_batch_size": 1,
    "cached_views": 1, "max_train_steps": 6, "timeline_steps": 2, "checkpointing_steps": 2, "validation_steps": 3,
    "checkpoints_total_limit": 2, "lr_scheduler": "cosine", "validate_every_n_steps": 1, "keep_best": True,
}  # fmt: skip
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="in all, the four signals together")
    parser.add_argument("--base", default="embedded", help="a diffusers folder instead")
    args = parser.parse_args()
    SETTINGS["base"] = args.base if args.base == "embedded" else str(Path(args.base).resolve())
    torch.set_num_threads(1)
    load_base(args.base)  # which imports what the forks would each import for themselves
    started, home = time.monotonic(), Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            wrong, codes, operations = kill_all(args.kills)
        finally:
            os.chdir(home)
    for signal_number in SIGNALS:
        ended = ", ".join(f"{count} with exit code {code}" for code, count in sorted(codes[signal_number].items()))
        print(f"{signal.Signals(signal_number).name}: {ended}")
    for line in wrong:
        print(line)
    print(
        f"{args.kills} kills at {operations} file operations: {args.kills - len(wrong)} resumed equal, "
        f"{len(wrong)} did not; {time.monotonic() - started:.0f} s on {machine()}"
    )
    return 1 if wrong else 0


def kill_all(kills: int) -> tuple[list[str], dict[int, Counter[int]], int]:
    """What went wrong, a line each; how the processes ended, by signal; how many operations a run has."""
    settings = [f"--{name}={value}" for name, value in SETTINGS.items()]
    with tempfile.TemporaryFile() as seen:
        code = in_child(lambda: run(settings, Path("whole"), lambda: os.write(seen.fileno(), b".")))
        assert code == 0, Path("log").read_text()
        operations = os.fstat(seen.fileno()).st_size
    expected, points = left(Path("whole", OUT)), -(-kills // len(SIGNALS))
    wrong: list[str] = []
    codes: dict[int, Counter[int]] = {number: Counter() for number in SIGNALS}
    for point in range(points):
        operation = 1 + (2 * point + 1) * operations // (2 * points)
        for number in SIGNALS[: kills - point * len(SIGNALS)]:
            problem, code = killed_and_resumed(settings, number, operation, expected)
            codes[number][code] += 1
            if problem:
                wrong.append(f"{signal.Signals(number).name} before operation {operation}: {problem}")
    return wrong, codes, operations


def killed_and_resumed(settings: list[str], number: int, operation: int, expected: dict[str, bytes]) -> tuple[str, int]:
    """What went wrong, or nothing; and how the process ended that was killed.

    Args:
        number: of the signal.
        operation: before which of the changes to the run's folder it comes.
        expected: what an uninterrupted run left.
    """
    place, out = Path("killed"), Path("killed", OUT)
    shutil.rmtree(place, ignore_errors=True)
    left_to_do = iter(range(operation - 1, -1, -1))

    def at() -> None:
        if next(left_to_do, None) == 0:
            os.kill(os.getpid(), number)

    code = in_child(lambda: run(settings, place, at))
    asked = number != signal.SIGKILL
    if asked and (out / "timeline.safetensors").exists() and not (out / "coefficients.safetensors").exists():
        return f"what was learned is lost: {Path('log').read_text()[-300:]!r}", code
    resumable = any(out.glob("checkpoints/step_*.safetensors"))
    again = ["--resume_from_checkpoint=latest"] if resumable else ["--overwrite_output_dir"]
    if in_child(lambda: run([*settings, *again], place)) != 0:
        return f"it did not go on: {Path('log').read_text()[-300:]!r}", code
    found = left(out)
    names = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
    return f"differs in {', '.join(names)}" if names else "", code


def run(settings: list[str], place: Path, at: Callable[[], object] | None = None) -> int:
    """Train as the command line does; `at` is called before every change to the output folder."""
    place.mkdir(exist_ok=True)
    os.chdir(place)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started this may have switched signals off
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if at is not None:
        watch(Path(OUT).absolute(), at)
    return coeff_diffusion(["train", *settings])


def watch(folder: Path, at: Callable[[], object]) -> None:
    """Call `at` before this process opens a file below the folder to write it, renames, deletes or makes something."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES
        named = (writes or event in CHANGES) and isinstance(arguments[0], str | os.PathLike)
        if named and folder in [(path := Path.cwd() / arguments[0]), *path.parents]:
            at()

    sys.addaudithook(hook)


def in_child(work: Callable[[], int]) -> int:
    """Do it in a forked process; its exit code, or minus the signal that ended it. What it says goes to `log`."""
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        code = 3
        try:
            with Path("log").open("w") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
                code = work()
                with contextlib.suppress(OSError):
                    sys.stdout.flush()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def left(out: Path) -> dict[str, bytes]:
    """All that a run left but its checkpoints, which are for going on alone."""
    files = [path for path in out.rglob("*") if path.is_file() and path.parent.name != "checkpoints"]
    stray = [path for path in out.glob("checkpoints/*") if not path.name.startswith("step_")]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in [*files, *stray]}


if __name__ == "__main__":
    sys.exit(main())
