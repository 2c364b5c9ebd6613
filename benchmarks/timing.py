"""Times things side by side: in turns, so that what slows the machine slows all of them, and compared turn by turn."""

import ctypes
import gc
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass
class Timing:
    """Seconds of every turn, and the turn-by-turn ratio to the baseline."""

    seconds: list[float]
    ratios: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def ratio(self) -> float:
        """Median of the ratios of each turn."""
        return statistics.median(self.ratios)


def in_turns(ways: Mapping[str, Callable[[], object]], repeats: int, warm_up: int = 1) -> dict[str, Timing]:
    """Run every way once a turn. The first one is the baseline."""
    names = list(ways)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(warm_up + repeats):
        for name in names:
            _settle()
            started = time.perf_counter()
            ways[name]()
            _settle()
            if turn >= warm_up:
                seconds[name].append(time.perf_counter() - started)
    base = seconds[names[0]]
    return {
        name: Timing(taken, [one / other for one, other in zip(taken, base, strict=True)])
        for name, taken in seconds.items()
    }


def _settle() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """MiB that the block needs at most beyond what was there before: of the GPU, else of the process (Linux)."""
    found = [0.0]
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        allocated = torch.cuda.memory_allocated()
        yield found
        found[0] = (torch.cuda.max_memory_allocated() - allocated) / 2**20
        return
    done = threading.Event()
    _give_back()
    before = most = _resident()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.01):
            most = max(most, _resident())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        done.set()
        watcher.join()
        found[0] = max(0.0, max(most, _resident()) - before)


def _give_back() -> None:
    """Return what the C library keeps of freed memory, which would hide what is needed next."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def machine() -> str:
    """What the figures were measured on, in a line."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return f"{model}, {torch.get_num_threads()} threads, torch {torch.__version__}"
