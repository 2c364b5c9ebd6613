"""The services behind the page, put together."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..base import ready_cards
from ..families.load import EMBEDDED
from ..inference.request import StudioError
from ..inference.studio import Studio
from ..sources.library import Library
from .caption_writer import CaptionWriter
from .drawings import Drawings
from .explorer import Explorer
from .history import History
from .import_export import ImportExport
from .inspector import Inspector
from .jobs import Jobs
from .library_view import LibraryView
from .loading import SubjectLoader
from .timelines import Timelines
from .training_job import TrainingJob
from .training_queue import TrainingQueue


class StudioService:
    """Everything the page can do, one attribute for each part of it.

    Args:
        studio: draws.
        library: the subjects on disk.
        output_dir: where drawn pictures are saved.
        earlier: trainings that are over, on this base or another.
    """

    def __init__(self, studio: Studio, library: Library, output_dir: Path, earlier: Iterable[TrainingJob] = ()) -> None:
        self.studio, self.library, self.output_dir = studio, library, output_dir
        self.jobs = Jobs(studio.preview)
        self.loader = loader = SubjectLoader(studio, library)
        self.drawings = Drawings(loader, output_dir)
        self.history = History(output_dir)
        self.training_queue = TrainingQueue(loader, earlier)
        self.caption_writer = CaptionWriter(None, studio.pipe.device)
        self.library_view = LibraryView(studio, library, self.training_queue.writing)
        self.import_export = ImportExport(self.library_view)
        self.timelines = Timelines(loader, self.training_queue)
        self.explorer = Explorer(loader, self.timelines, output_dir)
        self.inspector = Inspector(loader)

    @property
    def ready_cards(self) -> list[Path]:
        """Cards of subjects that ship with the base that is loaded; only the embedded one has some."""
        return ready_cards() if self.studio.base == EMBEDDED else []

    @contextmanager
    def resting(self, why: str) -> Iterator[None]:
        """Nothing is drawn or trained while the block runs; who asks for it meanwhile is told why.

        Raises:
            StudioError: something is drawn or trained, or waits for its turn.
        """
        if self.jobs.busy:
            raise StudioError(
                "something is being drawn, or waits in line; try again when all of it is done, or cancel it and take "
                "the rest out"
            )
        with self.training_queue.resting(why), self.loader.resting(why):
            yield

    def close(self) -> None:
        """End what goes on by itself: drawings without a word, trainings after their step, saving what they have."""
        self.jobs.close()
        self.training_queue.close()
