"""Exploring: one grid of pictures of the same seed, drawn in batches that mix subjects and strengths."""

import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ..images.files import save_new_picture
from ..images.generation_info import format_parameters, parse_parameters
from ..images.grid import labelled_grid
from ..inference.request import MAX_SEED, DrawCancelled, DrawProgress, Picture
from ..sources.open import open_subject
from ..subject.errors import CoefficientsError
from .grid_cells import Actor, Cell, GridRequest, labels, lay_out, notes
from .loading import SubjectLoader
from .timelines import Timelines

BATCH = 8  # cells drawn at once, where they are small
MAX_PIXELS = 2**20  # of the cells drawn at once: one of SDXL's own size, four of SD 1.5's
GLIMPSE = 192  # pixels of a cell's longer side while the grid forms: enough to see, quick to send
EMPTY = "#e4e4e4"  # a cell that is not drawn yet; the sheet is white on any page


@dataclass
class Exploration:
    """A grid: what is to be drawn, and how far it is.

    Attributes:
        cells: each cell's number in `distinct`, row by row: cells that would be the same picture are drawn once.
        distinct: what to draw.
        size: of each picture, in pixels.
        notes: sentences for the user about what was probably not meant.
        pictures: what is drawn: the first of `distinct`.
        files: where they were saved.
        file: where the whole grid was saved, once it is done or ended early.
        cancelled: whether it ended early.
    """

    request: GridRequest
    actors: list[Actor]
    cells: list[list[int]]
    distinct: list[Cell]
    size: tuple[int, int]
    notes: list[str]
    pictures: list[Picture] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    file: Path | None = None
    cancelled: bool = False

    @property
    def at_once(self) -> int:
        """How many cells are drawn together."""
        return max(1, min(BATCH, MAX_PIXELS // (self.size[0] * self.size[1])))

    def glimpse(self, step: int = 0, total: int = 1, forming: Sequence[Image.Image] = ()) -> Image.Image:
        """The grid as it is, in small.

        Args:
            step: of `Glimpse`, as are `total` and its pictures `forming`: they tell which cells these are.
        """
        per_picture = total // len(self.distinct)
        first = (step - 1) // (self.at_once * per_picture) * self.at_once if step else 0
        images = dict(enumerate(forming, start=first)) | dict(enumerate(picture.image for picture in self.pictures))
        scale = min(1, GLIMPSE / max(self.size))
        width, height = (max(1, round(side * scale)) for side in self.size)
        return self._sheet({number: image.resize((width, height)) for number, image in images.items()}, (width, height))

    def captioned(self) -> list[tuple[Path, str]]:
        """The files of the cells with what they show."""
        return [(file, cell.label) for file, cell in zip(self.files, self.distinct, strict=False)]

    def whole(self) -> Image.Image:
        """The grid in full size."""
        return self._sheet({number: picture.image for number, picture in enumerate(self.pictures)}, self.size)

    def parameters(self) -> str:
        """The text of the whole grid: prompt, seed, and what lies along its sides, as other grids of this form say."""
        (down, rows), (across, columns) = self.request.axes
        base = ["base"] * self.request.with_base
        axes = {
            "X Type": across.capitalize(),
            "X Values": ", ".join(base + columns),
            "Y Type": down.capitalize(),
            "Y Values": " | ".join(rows) if down == "prompt" else ", ".join(rows),
        }
        if self.request.kind == "steps":
            axes["Subject"] = self.request.subjects[0]
        if self.request.kind == "prompts":
            axes["Strength"] = f"{self.request.strengths[0]:g}"
        of_one = parse_parameters(self.pictures[0].parameters)
        return format_parameters(
            replace(
                of_one,
                prompt="\n".join(self.request.prompts),
                batch_size=1,
                batch_position=None,
                subjects={},
                hashes={},
                extra=axes,
            )
        )

    def add_notes(self, notes: Iterable[str]) -> None:
        """What turned out while drawing."""
        self.notes += [note for note in dict.fromkeys(notes) if note not in self.notes]

    def _sheet(self, images: dict[int, Image.Image], size: tuple[int, int]) -> Image.Image:
        empty = Image.new("RGB", size, EMPTY)
        rows = [[images.get(number, empty) for number in row] for row in self.cells]
        return labelled_grid(rows, *labels(self.request, self.actors))


class Explorer:
    """Draws grids of subjects, strengths, training steps and prompts.

    Args:
        loader: the studio that draws, and the subjects by the names they are listed under.
        timelines: the training steps that were kept.
        output_dir: where the cells and the grid are saved.
    """

    def __init__(self, loader: SubjectLoader, timelines: Timelines, output_dir: Path) -> None:
        self.loader, self.timelines, self.output_dir = loader, timelines, output_dir

    def plan(self, request: GridRequest) -> Exploration:
        """Read what takes part and lay out the grid; nothing is drawn yet.

        Raises:
            StudioError: nothing, or too much, in a row or column.
            CoefficientsError: a subject or training step is not there or damaged.
            PictureError: the whole grid would be too large a picture.
        """
        request.check()
        seed = secrets.randbelow(MAX_SEED) if request.settings.seed is None else request.settings.seed
        request = replace(request, settings=replace(request.settings, seed=seed))
        actors = self._actors(request)
        distinct: list[Cell] = []
        known: dict[str, int] = {}
        numbers = []
        for row in lay_out(request, actors):
            for cell in row:
                if known.setdefault(repr(cell.inner), len(distinct)) == len(distinct):
                    distinct.append(cell)
            numbers.append([known[repr(cell.inner)] for cell in row])
        width, height = self.loader.studio.size
        size = (request.settings.width or width, request.settings.height or height)
        exploration = Exploration(request, actors, numbers, distinct, size, notes(request, actors))
        exploration.whole()  # too large a sheet is refused now, not when all is drawn
        return exploration

    def draw(
        self,
        exploration: Exploration,
        on_step: Callable[[DrawProgress], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Exploration:
        """Draw the cells, batch by batch, and save each; then save the whole.

        When cancelled, what is finished is kept, and so it is after an error.

        Args:
            on_step: `step` and `total` count the denoising steps of every picture.

        Raises:
            StudioError, SchedulerError, CoefficientsError, OSError: with a message for the user.
        """
        others = {actor.key: actor.loaded for actor in exploration.actors}
        report = on_step and _overall(on_step, exploration)
        try:
            while batch := exploration.distinct[len(exploration.pictures) :][: exploration.at_once]:
                with self.loader.using((), others) as studio:
                    exploration.add_notes(
                        cell.in_words(note) for cell in batch for note in studio.unread_notes(cell.inner)
                    )
                    drawn = studio.draw_batch([cell.inner for cell in batch], report, should_stop)
                pictures = [_told(picture, cell) for picture, cell in zip(drawn, batch, strict=True)]
                for picture in pictures:
                    exploration.files.append(self._save(picture.image, f"{picture.seed}-cell", picture.parameters))
                exploration.pictures += pictures
        except DrawCancelled:
            exploration.cancelled = True
        finally:  # also after an error: what is drawn was waited for
            if exploration.pictures:
                self._save_whole(exploration)
        return exploration

    def _save_whole(self, exploration: Exploration) -> None:
        sheet, text = exploration.whole(), exploration.parameters()
        exploration.file = self._save(sheet, f"{exploration.pictures[0].seed}-grid", text)

    def _actors(self, request: GridRequest) -> list[Actor]:
        if request.kind != "steps":
            files = {name: self.loader.library.path(name) for name in request.subjects}
            return [Actor(name, open_subject(file), i) for i, (name, file) in enumerate(files.items())]
        (name,) = request.subjects
        steps = self.timelines.read(name).subjects
        unknown = [step for step in request.steps if step not in steps]
        if unknown:
            raise CoefficientsError(
                f"the timeline of {name!r} does not hold step {', '.join(map(str, unknown))}; it holds "
                f"{', '.join(map(str, steps))}"
            )
        return [Actor(name, steps[step], i, step) for i, step in enumerate(request.steps)]

    def _save(self, image: Image.Image, stem: str, parameters: str) -> Path:
        return save_new_picture(image, self.output_dir, stem, parameters)


def _told(picture: Picture, cell: Cell) -> Picture:
    """A picture as drawn alone with the subject under its own name and trigger: what the user asked for, not how."""
    asked, actor, found = cell.request, cell.actor, parse_parameters(picture.parameters)
    subjects = {} if actor is None else {actor.name: actor.subject}
    step = {} if actor is None or actor.step is None else {"Training step": str(actor.step)}
    words: dict[str, Any] = {
        "prompt": asked.prompt, "negative_prompt": asked.negative_prompt, "subjects": asked.subjects
    }  # fmt: skip
    hashes = {name: subject.sha256[:12] for name, subject in subjects.items()}
    told = replace(found, **words, hashes=hashes, extra={**found.extra, **step})
    return replace(
        picture, request=replace(picture.request, **words), parameters=format_parameters(told), subjects=subjects
    )


def _overall(on_step: Callable[[DrawProgress], None], exploration: Exploration) -> Callable[[DrawProgress], None]:
    """Report each batch as a part of the whole; a step of a batch counts as one of each picture in it."""
    started: float | None = None

    def report(progress: DrawProgress) -> None:
        nonlocal started
        if started is None:  # only now: it may have waited its turn
            started = time.monotonic() - progress.step * progress.seconds_per_step
        step = len(exploration.pictures) * progress.total + progress.step * len(progress.latents)
        total = len(exploration.distinct) * progress.total
        seconds = (time.monotonic() - started) / step
        on_step(replace(progress, step=step, total=total, seconds_per_step=seconds))

    return report
