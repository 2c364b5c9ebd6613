"""Trainings that are done once: results by what was run, one line each, so that a stopped experiment goes on."""

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

FACTOR = 10**0.5  # between the learning rates that a search tries


class Results:
    """The lines of a `.jsonl` file.

    Args:
        path: made with the first result.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, dict[str, float]] = {}
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                record = json.loads(line)
                self.found[record["run"]] = record["figures"]

    def get(self, compute: Callable[[], dict[str, float]], **what: Any) -> dict[str, float]:
        """The figures of a run, which is done now unless it was before."""
        name = json.dumps(what, sort_keys=True)
        if name not in self.found:
            self.found[name] = compute()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"run": name, "figures": self.found[name]}) + "\n")
            said = ", ".join(f"{key} {value:.4g}" for key, value in self.found[name].items())
            print(f"{' '.join(str(value) for value in what.values())}: {said}", flush=True)
        return self.found[name]


def best_rate(score: Callable[[float], float], start: float, most: int = 6) -> float:
    """The learning rate of the highest score, by climbing from `start` in steps of `FACTOR`; of equal ones the lowest.

    Args:
        most: how many rates are tried at most.
    """
    scores: dict[int, float] = {}

    def at(place: int) -> float:
        if place not in scores:
            scores[place] = score(float(f"{start * FACTOR**place:.2g}"))
        return scores[place]

    at(0)
    while len(scores) < most:
        best = min(scores, key=lambda place: (-scores[place], place))
        missing = [place for place in (best - 1, best + 1) if place not in scores]
        if not missing:
            break
        at(missing[0])
    best = min(scores, key=lambda place: (-scores[place], place))
    return float(f"{start * FACTOR**best:.2g}")


def first_rate(score: Callable[[float], float], start: float) -> float:
    """What `best_rate` begins with, for a quick look."""
    return start


def mean_and_spread(values: Sequence[float], digits: int = 1) -> str:
    """ "91.2 ± 0.4": the mean and the standard deviation."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.{digits}f} ± {spread:.{digits}f}"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
