"""What the page calls: the studio, the library of subjects and the folder of pictures behind one lock."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..coefficients import Coefficients
from ..drawing import DrawProgress, DrawRequest, Picture
from ..library import Library
from ..pictures import free_path, save_picture
from ..studio import Studio


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


class StudioService:
    """Draws what the page asks for, with subjects of the library by the names they are listed under."""

    def __init__(self, studio: Studio, library: Library, output_dir: Path) -> None:
        self.studio = studio
        self.library = library
        self.output_dir = output_dir
        self._loaded: dict[str, tuple[Path, int]] = {}

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
        with self.studio.exclusive():
            self._use(request.subjects)
            notes = self.studio.notes(request)
            base: list[Picture] = []
            if compare and request.subjects:
                base, pictures = self.studio.compare(request, on_step=on_step, should_stop=should_stop)
            else:
                pictures = self.studio.draw(request, on_step, should_stop)
        files = [
            save_picture(picture.image, free_path(self.output_dir, f"{picture.seed}{tag}"), picture.parameters)
            for tag, group in (("-base", base), ("", pictures))
            for picture in group
        ]
        return Drawing(base, pictures, notes, files)

    def describe(self, name: str) -> str:
        """One line about a subject of the library: the words that call it up."""
        info = Coefficients.load(self.library.path(name)).info
        return f"{name}: write “{info.trigger}”" if info.trigger else f"{name}: acts on every prompt"

    def _use(self, wanted: Mapping[str, float]) -> None:
        """Have exactly these subjects loaded: two files of one trigger can then take turns.

        A file that was written again since it was loaded is read again.
        """
        paths = {name: self.library.path(name) for name in wanted}
        stamps = {name: (path, path.stat().st_mtime_ns) for name, path in paths.items()}
        for name in list(self._loaded):
            if self._loaded[name] != stamps.get(name):
                self.studio.unload(name)
                del self._loaded[name]
        for name in stamps:
            if name not in self._loaded:
                self.studio.load(paths[name], name=name)
                self._loaded[name] = stamps[name]
