"""The services behind the page, put together."""

from pathlib import Path

from ..library import Library
from ..studio import Studio
from .drawings import Drawings
from .loading import SubjectLoader


class StudioService:
    """Everything the page can do, one attribute for each part of it.

    Args:
        studio: draws.
        library: the subjects on disk.
        output_dir: where drawn pictures are saved.
    """

    def __init__(self, studio: Studio, library: Library, output_dir: Path) -> None:
        self.studio, self.library, self.output_dir = studio, library, output_dir
        loader = SubjectLoader(studio, library)
        self.drawings = Drawings(loader, output_dir)
