"""The table and the picture grid of what was measured. What was not measured is not there."""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fidelity_measure import SubjectPictures, grounds, picture_path, with_article
from fidelity_plan import Results, Run, final_runs, plan, read_results, search
from fidelity_settings import METHODS, NOTHING, Settings
from PIL import Image

from coeff_diffusion.images.grid import labelled_grid
from coeff_diffusion.images.photo import read_image
from coeff_diffusion.subject.atomic_write import atomic_write
from coeff_diffusion.training.picture_folder import find_pictures

PAIR, RIVAL = "coefficients+token", "lora4"  # what the bars compare
Figures = Mapping[str, Any]
Read = Callable[[Figures], float | None]
MISSING = "–"


@dataclass(frozen=True)
class Column:
    """One figure of the table."""

    title: str
    read: Read
    show: Callable[[float], str]
    spread: bool = True


def _always(name: str) -> Read:
    """A figure of drift with the gate open, as LoRA has it."""
    return lambda figures: figures.get("always", figures).get(name)


COLUMNS = (
    Column("values", lambda f: f.get("values"), lambda v: f"{v:,.0f}", spread=False),
    Column("file, KB", lambda f: f["file_bytes"] / 1000 if "file_bytes" in f else None, lambda v: f"{v:,.1f}", False),
    Column("training, s", lambda f: f.get("seconds"), lambda v: f"{v:.0f}", False),
    Column("memory, MB", lambda f: f.get("memory_mb"), lambda v: f"{v:.0f}", False),
    Column("GPU memory, MB", lambda f: f.get("gpu_memory_mb"), lambda v: f"{v:.0f}", False),
    Column("subject loss", lambda f: f["subject_loss"], lambda v: f"{v:.4f}"),
    Column("similarity", lambda f: f["similarity"], lambda v: f"{v:.3f}"),
    Column("background right", lambda f: f["colours"], lambda v: f"{v:.0%}"),
    Column("drift: loss", _always("drift_loss"), lambda v: f"{v:.4f}"),
    Column("drift: pixels", _always("drift_change"), lambda v: f"{v:.1f}"),
    Column("class: pixels", _always("class_change"), lambda v: f"{v:.1f}"),
    Column("drift: pixels, gated", lambda f: f.get("drift_change") if "always" in f else None, lambda v: f"{v:.2g}"),
)


@dataclass(frozen=True)
class Row:
    """A method and its figures, by seed and subject: only seeds for which every subject was measured."""

    method: str
    rates: tuple[float, ...]
    seeds: list[dict[str, Figures]]

    def per_seed(self, read: Read) -> list[float]:
        """A figure's mean over the subjects for each seed; empty where it does not apply."""
        each = [[value for f in seed.values() if (value := read(f)) is not None] for seed in self.seeds]
        return [
            statistics.fmean(found) for found, seed in zip(each, self.seeds, strict=True) if len(found) == len(seed)
        ]

    def mean(self, read: Read) -> float | None:
        values = self.per_seed(read)
        return statistics.fmean(values) if values else None

    def text(self, column: Column) -> str:
        """The cell: the mean, and the standard deviation over the seeds."""
        values = self.per_seed(column.read)
        if not values:
            return MISSING
        shown = column.show(statistics.fmean(values))
        return f"{shown} ± {column.show(statistics.stdev(values))}" if column.spread and len(values) > 1 else shown


def rows_of(settings: Settings, results: Results) -> list[Row]:
    """The methods that are measured, in the order of the table. A training that broke up leaves its seed out."""
    rows = []
    for method in settings.method:
        rates = () if method == NOTHING else search(settings, method, results)[1]
        if rates is None:
            continue
        by_seed: dict[int, dict[str, Figures]] = {}
        for run in final_runs(settings, method, rates):
            if "subject_loss" in (figures := results.get(run, {})):
                by_seed.setdefault(run.seed, {})[run.subject] = figures
        whole = [by_seed[seed] for seed in sorted(by_seed) if len(by_seed[seed]) == len(settings.subject)]
        if whole:
            rows.append(Row(method, rates, whole))
    return rows


def write_report(settings: Settings) -> str:
    """Write `fidelity-table.md` and `images/fidelity.webp`; returns what to print."""
    results = read_results(Path(settings.output_dir) / "results.jsonl")
    rows = rows_of(settings, results)
    if not rows:
        return "nothing is measured yet"
    now, later = plan(settings, results)
    parts = [_preface(settings, rows, len(now) + len(later)), _table(rows), "\n".join(verdicts(rows)), _subjects(rows)]
    docs = Path(settings.docs_dir)
    with atomic_write(_made(docs / "fidelity-table.md")) as file:
        file.write(("# Fidelity: the figures\n\n" + "\n\n".join(part for part in parts if part) + "\n").encode())
    grid = picture_grid(settings, results, rows)
    if grid is not None:
        grid.convert("RGB").save(_made(docs / "images" / "fidelity.webp"), quality=85, method=6)
    return "\n\n".join([_table(rows), "\n".join(verdicts(rows)), f"in {docs / 'fidelity-table.md'}"])


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


# --- words ------------------------------------------------------------------------------------------------------------


def _preface(settings: Settings, rows: list[Row], missing: int) -> str:
    machines = {
        tuple(figures.get("machine", {}).items()) for row in rows for seed in row.seeds for figures in seed.values()
    }
    where = "; ".join(sorted(", ".join(f"{name} {value}" for name, value in machine) for machine in machines))
    chosen = ", ".join(settings.search_subjects())
    lines = [
        "Made by `python benchmarks/fidelity.py report` from `results.jsonl`; do not edit. What the columns mean and "
        "what follows from them: `fidelity.md`.",
        f"Base: `{settings.base}`. Subjects: {', '.join(settings.subject)}. {settings.max_train_steps} steps of "
        f"{settings.train_batch_size} pictures, {settings.seeds} seeds; pictures drawn in {settings.draw_steps} steps "
        f"by {settings.scheduler} at guidance {settings.guidance_scale:g}. "
        + (f"Learning rates chosen on {chosen} with seed 0." if chosen else "Learning rates not searched."),
        f"Means over the subjects, ± the standard deviation over the seeds. Run on: {where}.",
    ]
    if missing:
        lines.append(f"**Not complete: at least {missing} runs are missing.**")
    return "\n\n".join(lines)


def _table(rows: list[Row]) -> str:
    columns = [column for column in COLUMNS if any(row.per_seed(column.read) for row in rows)]
    base = next((row for row in rows if row.method == NOTHING), None)
    start = None if base is None else base.mean(lambda f: f["similarity"])
    ceiling = None if base is None else base.mean(lambda f: f.get("ceiling"))
    if start is not None and ceiling is not None:
        at = next(number for number, column in enumerate(columns) if column.title == "similarity") + 1
        columns.insert(at, way_column(start, ceiling))
    lines = ["| method | learning rate | " + " | ".join(column.title for column in columns) + " |"]
    lines.append("| --- " * (len(columns) + 2) + "|")
    for row in rows:
        rates = " + ".join(f"{rate:.0e}".replace("e-0", "e-") for rate in row.rates) or MISSING
        cells = " | ".join(row.text(column) for column in columns)
        lines.append(f"| {METHODS[row.method].label} | {rates} | {cells} |")
    if ceiling is not None:
        lines.append(f"\nSimilarity of the unseen pictures among themselves: {ceiling:.3f}.")
    return "\n".join(lines)


def way_column(start: float, ceiling: float) -> Column:
    """How much of the way is gone from the base's own pictures of the class to the subject's among themselves.

    Args:
        start, ceiling: their similarities.
    """
    return Column("of the way", lambda f: (f["similarity"] - start) / (ceiling - start), lambda v: f"{v:.0%}")


def verdicts(rows: list[Row]) -> list[str]:
    """Coefficients + token beside LoRA rank 4: shares of its gains, values, drift. Empty where one is not measured."""
    by_method = {row.method: row for row in rows}
    if not {NOTHING, PAIR, RIVAL} <= by_method.keys():
        return []
    base, ours, theirs = by_method[NOTHING], by_method[PAIR], by_method[RIVAL]

    def change(row: Row, read: Read, start: float | None) -> float | None:
        end = row.mean(read)
        return None if end is None or start is None else end - start

    lines = []
    for what, read, sign, bar in (
        ("gain in subject loss", lambda f: f.get("subject_loss"), -1, 0.85),
        ("gain in similarity", lambda f: f.get("similarity"), 1, 0.85),
        ("drift in loss, gate open", _always("drift_loss"), 1, None),
    ):
        start = base.mean(read)
        mine, other = change(ours, read, start), change(theirs, read, start)
        if mine is not None and other is not None:
            lines.append(f"- {what}: {_share(mine, other, sign, bar)} ({mine:+.4f} against {other:+.4f})")
    for what, read in (("drift in pixels, gate open", _always("drift_change")), ("values", lambda f: f.get("values"))):
        mine, other = ours.mean(read), theirs.mean(read)
        if mine is not None and other is not None:
            bar = 1 / 50 if what == "values" else None
            lines.append(f"- {what}: {_share(mine, other, 1, bar, most=True)} ({mine:,.6g} against {other:,.6g})")
    gated = ours.mean(lambda f: f.get("drift_change"))
    if gated is not None:
        lines.append(f"- drift in pixels as shipped, gated by the trigger: {gated:g}")
    return ["Coefficients + token as shares of LoRA rank 4:\n", *lines]


def _share(mine: float, other: float, sign: int, bar: float | None, most: bool = False) -> str:
    """Our change as a share of theirs, and whether it reaches the bar (`most`: stays below it; none: below theirs)."""
    if sign * other <= 0:
        return "no share, LoRA rank 4 does not change that way"
    share = mine / other
    if bar is None:
        return f"{share:.0%} (bar: below 100%, {'reached' if share < 1 else 'missed'})"
    reached = share < bar if most else share >= bar
    return f"{share:.2%} (bar: {'below' if most else 'at least'} {bar:.0%}, {'reached' if reached else 'missed'})"


def _subjects(rows: list[Row]) -> str:
    """Loss and similarity subject by subject, means over the seeds."""
    parts = []
    for title, name, digits in (("Subject loss", "subject_loss", 4), ("Similarity", "similarity", 3)):
        subjects = list(rows[0].seeds[0])
        lines = [f"## {title}, subject by subject", "", f"| method | {' | '.join(subjects)} |"]
        lines.append("| --- " * (len(subjects) + 1) + "|")
        for row in rows:
            cells = [
                f"{statistics.fmean(seed[subject][name] for seed in row.seeds):.{digits}f}" for subject in subjects
            ]
            lines.append(f"| {METHODS[row.method].label} | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


# --- pictures ---------------------------------------------------------------------------------------------------------

SHOWN = ("on a blue background", "in the snow")


def picture_grid(settings: Settings, results: Results, rows: list[Row]) -> Image.Image | None:
    """Rows: training pictures and methods; columns: subjects and prompts. One noise per column, training seed 0."""
    numbers = [grounds().index(ground) for ground in SHOWN]
    pictures, labels = [], ["training pictures"]
    columns = [(subject, number) for subject in settings.subject for number in numbers]
    seen = {subject: find_pictures(Path(settings.subjects_dir) / subject).paths for subject in settings.subject}
    size = None
    for row in rows:
        runs = {s: Run.make(settings, row.method, s, seed=0, rates=row.rates) for s in settings.subject}
        paths = [picture_path(settings, runs[subject], "subject", number) for subject, number in columns]
        if all(path.is_file() for path in paths):
            pictures.append([read_image(path) for path in paths])
            labels.append(METHODS[row.method].label)
            size = pictures[-1][0].size
    if size is None:
        return None
    first = [read_image(seen[s][numbers.index(n) % len(seen[s])]).resize(size) for s, n in columns]
    words = [f"{with_article(SubjectPictures.find(settings, s).trigger)} {SHOWN[numbers.index(n)]}" for s, n in columns]
    return labelled_grid([first, *pictures], labels, words)
