"""Drawing: one picture or a few, with the subjects of the library, beside the base."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..coefficients import Coefficients
from ..drawing import DrawProgress, DrawRequest, Picture
from ..pictures import free_path, save_picture
from .loading import SubjectLoader


@dataclass(frozen=True)
class Drawing:
    """The outcome of one press of the button.

    Attributes:
        base: what the base alone draws from the same noise; empty when no comparison was asked for.
        notes: sentences for the user about what was probably not meant.
        files: where the pictures were saved, the base's first.
    """

    base: list[Picture]
    pictures: list[Picture]
    notes: list[str]
    files: list[Path]


class Drawings:
    """Draws what the page asks for, with subjects of the library by the names they are listed under."""

    def __init__(self, loader: SubjectLoader, output_dir: Path) -> None:
        self.loader, self.output_dir = loader, output_dir

    def draw(
        self,
        request: DrawRequest,
        compare: bool = True,
        on_step: Callable[[DrawProgress], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Drawing:
        """Draw and save. `request.subjects` names subjects of the library; they are loaded as needed.

        Raises:
            StudioError, SchedulerError, CoefficientsError, OSError: with a message for the user.
        """
        with self.loader.using(request.subjects) as studio:
            notes = studio.notes(request)
            base: list[Picture] = []
            if compare and request.subjects:
                base, pictures = studio.compare(request, on_step=on_step, should_stop=should_stop)
            else:
                pictures = studio.draw(request, on_step, should_stop)
        files = [
            save_picture(picture.image, free_path(self.output_dir, f"{picture.seed}{tag}"), picture.parameters)
            for tag, group in (("-base", base), ("", pictures))
            for picture in group
        ]
        return Drawing(base, pictures, notes, files)

    def describe(self, name: str) -> str:
        """One line about a subject of the library: the words that call it up."""
        info = Coefficients.load(self.loader.library.path(name)).info
        return f"{name}: write “{info.trigger}”" if info.trigger else f"{name}: acts on every prompt"
