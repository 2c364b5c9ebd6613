"""Which subjects are loaded in the studio: exactly those that the drawing at hand needs."""

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ..inference.request import StudioError
from ..inference.studio import Studio
from ..sources.library import Library
from ..subject.coefficients import Coefficients
from ..subject.user_file import version_of

PATIENCE = 5.0  # seconds that something short, such as a look at dropped pictures, may take to end


class SubjectLoader:
    """Loads subjects into the studio as drawings ask for them, and takes out those that the last drawing asked for."""

    def __init__(self, studio: Studio, library: Library) -> None:
        self.studio, self.library = studio, library
        self._loaded: dict[str, object] = {}  # name -> what tells whether it is still the same subject
        self._users = 0  # how many use the studio or wait for it
        self._resting = ""  # why nobody may
        self._changed = threading.Condition()

    @contextmanager
    def using(self, names: Iterable[str], others: Mapping[str, Coefficients] | None = None) -> Iterator[Studio]:
        """The studio with exactly these subjects loaded, for this thread alone as long as the block runs.

        Two files of one trigger can so take turns. A file that was written again since it was loaded is read again.

        Args:
            names: of subjects of the library.
            others: subjects that lie in no file of the library, by the names they are to have in the studio.

        Raises:
            CoefficientsError: a subject is not there, is damaged or does not fit the base.
            StudioError: the studio rests, see `resting`.
        """
        paths = {name: self.library.path(name) for name in names}
        wanted: dict[str, tuple[object, Path | Coefficients]] = {
            name: ((path, version_of(path.stat())), path) for name, path in paths.items()
        }
        wanted |= {name: (subject, subject) for name, subject in (others or {}).items()}
        with self._counted(), self.studio.exclusive():
            for name in list(self._loaded):
                if name not in wanted or self._loaded[name] != wanted[name][0]:
                    self.studio.unload(name)
                    del self._loaded[name]
            for name, (stamp, source) in wanted.items():
                if name not in self._loaded:
                    self.studio.load(source, name=name)
                    self._loaded[name] = stamp
            yield self.studio

    @contextmanager
    def resting(self, why: str) -> Iterator[None]:
        """Nobody uses the studio while the block runs, and nothing is loaded in it; who asks meanwhile is told why.

        Raises:
            StudioError: it is in use, and stays so.
        """
        with self._changed:
            if self._resting or not self._changed.wait_for(lambda: not self._users, PATIENCE):
                raise StudioError(self._resting or "something is being drawn; try again when it is done")
            self._resting = why
        try:
            for name in list(self._loaded):
                self.studio.unload(name)
                del self._loaded[name]
            yield
        finally:
            self._resting = ""

    @contextmanager
    def _counted(self) -> Iterator[None]:
        with self._changed:
            if self._resting:
                raise StudioError(self._resting)
            self._users += 1
        try:
            yield
        finally:
            with self._changed:
                self._users -= 1
                self._changed.notify_all()
