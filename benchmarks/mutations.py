"""Damaged files by the thousand: each is read or refused in one line, soon and in little memory.

    python benchmarks/mutations.py                    every kind, as many files as docs/reliability.md states
    python benchmarks/mutations.py cards codes        these kinds alone
    python benchmarks/mutations.py cards --count 100  fewer files of each

The files are those of the tests (`tests/mutated_*.py`), the same in every run. What is counted is the reading: seconds
of the processor, and the peak of memory above what was taken before. Anything but a load or an error made for users
ends the run. A further kind is a strategy there, and an entry in `KINDS`. Linux only: the peak is the kernel's.
"""

import argparse
import ctypes
import gc
import importlib
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings

from coeff_diffusion import Coefficients
from coeff_diffusion.commands.info import collect_facts
from coeff_diffusion.images.files import read_parameters
from coeff_diffusion.inference.replay import Replay
from coeff_diffusion.sources.image_card import extract
from coeff_diffusion.sources.qr_code import read_qr
from coeff_diffusion.subject.errors import UserError

TESTS = Path(__file__).resolve().parents[1] / "tests"
MOST_SECONDS, MOST_MEMORY, MOST_WORDS = 1.0, 200 * 10**6, 2_000


def replayed(path: Path) -> None:
    """What `generate --from` reads of a picture."""
    replay = Replay.read(path)
    replay.request()
    replay.parts([])


@dataclass(frozen=True)
class Kind:
    """A kind of file that strangers give.

    Attributes:
        count: of files in a full run.
        strategy: module and function in `tests/` that damages one.
        readers: what the program does with such a file; each is tried.
    """

    count: int
    strategy: str
    readers: tuple[Callable[[Path], Any], ...]


def of_tests(name: str) -> Callable[..., Any]:
    """A function of `tests/`, by module and name, found when it is called first."""

    def call(*arguments: Any) -> Any:
        module, _, function = name.partition(":")
        return getattr(importlib.import_module(module), function)(*arguments)

    return call


OF_A_CARD = (Coefficients.load, extract, read_parameters, replayed, collect_facts)
KINDS = {
    "subjects": Kind(10_000, "mutated_files:files", (Coefficients.load,)),
    "cards": Kind(2_000, "mutated_pictures:cards", OF_A_CARD),
    "drawings": Kind(2_000, "mutated_drawings:drawings", (read_parameters, replayed, collect_facts)),
    "timelines": Kind(1_000, "mutated_runs:timelines", (of_tests("mutated_runs:play"),)),
    "checkpoints": Kind(1_000, "mutated_runs:checkpoints", (of_tests("mutated_runs:resume"),)),
    "codes": Kind(500, "mutated_pictures:codes", (Coefficients.load, read_qr, collect_facts)),
}


@dataclass
class Found:
    """What became of the files of a kind."""

    read: int = 0
    refused: int = 0
    slowest: float = 0.0
    largest: int = 0

    def note(self, data: bytes, path: Path, readers: tuple[Callable[[Path], Any], ...]) -> None:
        """Try every reader on a file."""
        path.write_bytes(data)
        outcomes = [self._measured(reader, path) for reader in readers]
        self.read += any(outcomes)
        self.refused += not any(outcomes)

    def _measured(self, reader: Callable[[Path], Any], path: Path) -> bool:
        gc.disable()  # a sweep of all that hypothesis remembers is no part of reading
        ctypes.CDLL(None).malloc_trim(0)  # what is free already would be used without being seen
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        before, start = memory("VmRSS"), time.process_time()
        try:
            reader(path)
            return True
        except UserError as error:
            if "\n" in str(error) or len(str(error)) > MOST_WORDS:
                raise RuntimeError("this is no message for people") from error
            return False
        finally:
            gc.enable()
            self.slowest = max(self.slowest, time.process_time() - start)
            self.largest = max(self.largest, memory("VmHWM") - before)


def memory(key: str) -> int:
    """`VmRSS`, or `VmHWM`, its highest value since the last reset."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{key}:")) * 1024


def tried(kind: Kind, count: int) -> Found:
    """Read `count` different damaged files of a kind."""
    strategy, found, seen = of_tests(kind.strategy)(), Found(), set[bytes]()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file")

        @settings(max_examples=3 * count, phases=[Phase.generate], deadline=None, derandomize=True, database=None,
                  suppress_health_check=list(HealthCheck))  # fmt: skip
        @given(strategy)
        def one(data: bytes) -> None:
            if len(seen) < count and data not in seen:  # it draws some twice
                seen.add(data)
                found.note(data, path, kind.readers)

        Found().note(b"x", path, kind.readers)  # what is imported late counts for no file
        one()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", choices=[*KINDS, []], help=", ".join(KINDS))
    parser.add_argument("--count", type=int, help="of files of each kind")
    arguments = parser.parse_args()
    sys.path.insert(0, str(TESTS))
    print("| kind | files | read | refused | slowest, s | most memory, MB |\n| --- | --- | --- | --- | --- | --- |")
    failed = False
    for name in arguments.kinds or KINDS:
        found = tried(KINDS[name], arguments.count or KINDS[name].count)
        counts = " | ".join(f"{number:,}" for number in (found.read + found.refused, found.read, found.refused))
        print(f"| {name} | {counts} | {found.slowest:.3f} | {found.largest / 1e6:.1f} |", flush=True)
        failed |= found.slowest > MOST_SECONDS or found.largest > MOST_MEMORY
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
