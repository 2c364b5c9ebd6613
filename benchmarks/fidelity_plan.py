"""What the fidelity benchmark runs: the identity of one run, the search for learning rates, the order of everything.

Everything here is a function of the settings and of the results so far, so an interrupted benchmark simply goes on.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from fidelity_settings import METHODS, NOTHING, WITH_STAGE_TOKENS, Settings

from coeff_diffusion import __version__
from coeff_diffusion.base import embedded_path
from coeff_diffusion.families.load import short_name
from coeff_diffusion.training.config import TrainConfig
from coeff_diffusion.training.picture_folder import find_pictures
from coeff_diffusion.training.rates import usual_word_rates

# Part of every run's identity: count it up when what is measured changes, and old results no longer count.
MEASURES = 2


@dataclass(frozen=True)
class Run:
    """One training with its measurements. Equal runs have equal results; everything they depend on is in here.

    Attributes:
        rates: learning rates, in the order of `Method.start`; those of `train` where a method has them as they are.
        drawn: measure everything; else only the loss on unseen pictures, which is all that the search needs.
        base_digest, subject_digest: of the weights and of the pictures, so that new ones are measured anew.
    """

    method: str
    subject: str
    seed: int
    rates: tuple[float, ...]
    drawn: bool
    steps: int
    batch: int
    draw_steps: int
    guidance_scale: float
    scheduler: str
    base: str
    base_digest: str
    subject_digest: str
    measures: int = MEASURES
    version: str = __version__

    @classmethod
    def make(
        cls,
        settings: Settings,
        method: str,
        subject: str,
        *,
        seed: int = 0,
        rates: tuple[float, ...] = (),
        drawn: bool = True,
    ) -> "Run":
        """The run of resolved settings."""
        return cls(
            method,
            subject,
            seed,
            rates or usual_rates(method, settings.base),
            drawn,
            settings.max_train_steps,
            settings.train_batch_size,
            settings.draw_steps,
            settings.guidance_scale,
            settings.scheduler,
            settings.base,
            base_digest(settings.base),
            subject_digest(settings.subjects_dir, settings.unseen_dir, subject),
        )

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Run":
        """The run of a line of the results."""
        known = {item.name: record[item.name] for item in fields(cls)}
        return cls(**{**known, "rates": tuple(record["rates"])})

    @property
    def stem(self) -> str:
        """What its trained file and its pictures are called; the same for a run of the search."""
        trained = {name: value for name, value in asdict(self).items() if name != "drawn"}
        digest = hashlib.sha256(json.dumps(trained, sort_keys=True).encode()).hexdigest()[:8]
        rates = "-".join(f"{rate:.0e}" for rate in self.rates)
        return "_".join(part for part in (self.subject, self.method, f"seed{self.seed}", rates, digest) if part)

    @property
    def reference(self) -> "Run":
        """The run of the base alone that this one is compared with."""
        return replace(self, method=NOTHING, seed=0, rates=(), drawn=True)


def usual_rates(method: str, base: str) -> tuple[float, ...]:
    """The rates of `train`, so that results are no longer taken for its own when these change; empty for the others.

    Args:
        method: one of `METHODS`, or what else is learned as `train` does it (a trial).
    """
    if method in METHODS and method not in WITH_STAGE_TOKENS:
        return ()
    return TrainConfig.learning_rate, *usual_word_rates(short_name(base))


Results = dict[Run, dict[str, Any]]


def read_results(path: Path) -> Results:
    """All results so far; a line that was cut off when the benchmark was killed does not count."""
    results: Results = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            record = json.loads(line)
            results[Run.from_record(record)] = record["figures"]
        except (ValueError, KeyError):  # cut off, or of a version with other fields
            continue
    return results


def append_result(path: Path, run: Run, figures: Mapping[str, Any]) -> None:
    """Write one more line, on a line of its own also behind one that was cut off."""
    with path.open("a", encoding="utf-8") as file:
        whole = not file.tell() or path.read_bytes().endswith(b"\n")
        file.write(("" if whole else "\n") + json.dumps({**asdict(run), "figures": figures}) + "\n")


@cache
def base_digest(base: str) -> str:
    """Changes when the base's weights change. A Hub id stands for itself."""
    path = embedded_path() if base == "embedded" else Path(base).expanduser()
    return _digest(sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]) if path.exists() else ""


@cache
def subject_digest(subjects_dir: str, unseen_dir: str, subject: str) -> str:
    """Changes when the pictures of a subject or its words change."""
    folder = Path(subjects_dir) / subject
    pictures = [path for one in (folder, Path(unseen_dir) / subject) for path in find_pictures(one).paths]
    return _digest([folder / "subject.yaml", *pictures])


def _digest(paths: list[Path]) -> str:
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:16]


# --- the search for learning rates ------------------------------------------------------------------------------------

Point = tuple[int, ...]  # places in the series ..., 1e-3, 2e-3, 5e-3, 1e-2, ... of each rate


def rate_at(place: int) -> float:
    """The learning rate at a place in the 1-2-5 series; place 0 is 1."""
    return float(f"{(1, 2, 5)[place % 3]}e{place // 3}")


def place_of(rate: float) -> int:
    """The inverse of `rate_at`."""
    return next(place for place in range(-24, 1) if rate_at(place) == rate)


def climb(start: Point, loss_at: Callable[[Point], float | None], most_moves: int = 8) -> tuple[list[Point], Point]:
    """Search the lowest loss: try a point and its neighbours, move to the best of them, until the centre is the best.

    So the result never lies at the edge of what was tried (short of `most_moves`).

    Args:
        loss_at: the loss at a point; infinite where training broke up, None where it was not tried.

    Returns:
        The points to try next, and the best so far; the search is over when there is nothing to try.
    """
    centre = start
    for _ in range(most_moves):
        around = [centre]
        for axis in range(len(centre)):
            around += [(*centre[:axis], centre[axis] + step, *centre[axis + 1 :]) for step in (-1, 1)]
        losses = {point: loss for point in around if (loss := loss_at(point)) is not None}
        if len(losses) < len(around):
            return [point for point in around if point not in losses], centre
        best = min(around, key=lambda point: (losses[point], point))  # all infinite: towards lower rates
        if best == centre:
            break
        centre = best
    return [], centre


EQUAL = 0.02  # of the best point's gain over the base: less is within what another seed changes


def gentlest(losses: Mapping[Point, float], base: float) -> Point:
    """Of the points that are as good as the best one, the one with the lowest first rate: it drifts least.

    Args:
        losses: at all points that were tried.
        base: the loss of the base alone.
    """
    best = min(losses.values())
    equal = [point for point, loss in losses.items() if loss <= best + EQUAL * max(0.0, base - best)]
    return min(equal, key=lambda point: (point[0], losses[point], point))


def search(settings: Settings, method: str, results: Results) -> tuple[list[Run], tuple[float, ...] | None]:
    """The runs that the search for a method's learning rates needs next, or the rates it found (see `gentlest`).

    Without any runs and rates it waits for the losses of the base.
    """
    start, subjects = METHODS[method].start, settings.search_subjects()
    if settings.learning_rate is not None and len(start) == 1:
        return [], (settings.learning_rate,)
    if not subjects or not start:
        return [], start

    def runs_at(point: Point) -> list[Run]:
        rates = tuple(map(rate_at, point))
        return [Run.make(settings, method, subject, rates=rates, drawn=False) for subject in subjects]

    losses: dict[Point, float] = {}

    def total(runs: list[Run]) -> float | None:
        return sum(loss_of(results[run]) for run in runs) if all(run in results for run in runs) else None

    def loss_at(point: Point) -> float | None:
        loss = total(runs_at(point))
        if loss is not None:
            losses[point] = loss
        return loss

    untried, _ = climb(tuple(map(place_of, start)), loss_at)
    if untried:
        return [run for point in untried for run in runs_at(point) if run not in results], None
    base = total([Run.make(settings, NOTHING, subject) for subject in subjects])
    return [], None if base is None else tuple(map(rate_at, gentlest(losses, base)))


def loss_of(figures: Mapping[str, Any]) -> float:
    """The loss on unseen pictures; infinite where training broke up."""
    loss = figures.get("subject_loss")
    return math.inf if loss is None else float(loss)


# --- the order --------------------------------------------------------------------------------------------------------


def final_runs(settings: Settings, method: str, rates: tuple[float, ...]) -> list[Run]:
    """The runs that count for the table: all subjects, all seeds (the base alone has no seeds)."""
    seeds = range(settings.seeds) if method != NOTHING else range(1)
    return [
        Run.make(settings, method, subject, seed=seed, rates=rates) for seed in seeds for subject in settings.subject
    ]


def plan(settings: Settings, results: Results) -> tuple[list[Run], list[Run]]:
    """What can run now, most urgent first, and what will come after it as far as known (for an estimate of the time).

    First the base alone, which the others are compared with, then the search for learning rates, then the rest.
    """
    now = [run for run in final_runs(settings, NOTHING, ()) if run not in results]
    finals: list[Run] = []
    later: list[Run] = []
    for method in settings.trained_methods():
        runs, rates = search(settings, method, results)
        now += runs
        counting = final_runs(settings, method, METHODS[method].start if rates is None else rates)
        for run in counting:
            if run not in results:
                ready = rates is not None and run.reference in results
                (finals if ready else later).append(run)
    return now + finals, later
