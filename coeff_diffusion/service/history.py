"""All that was drawn: the pictures of one folder, newest first, those somebody likes, and those thrown away."""

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from PIL import Image

from ..images.drawing_facts import drawing_facts, in_words
from ..images.files import find_drawing
from ..images.generation_info import PictureError
from ..inference.request import StudioError
from ..subject.atomic_write import atomic_write
from ..subject.errors import cut
from ..subject.printable import printable
from ..subject.user_file import read_file
from .thumbnails import small, stand_in

SUFFIX = ".png"
TRASH, FAVOURITES = ".trash", ".favourites.json"
STAMP = "%Y%m%d-%H%M%S-%f"  # of a deletion, local time
MOST_WORDS = 60  # of a prompt below a picture
MAX_FAVOURITES = 4 * 2**20  # bytes


@dataclass(frozen=True)
class Drawn:
    """A picture of the history.

    Attributes:
        name: of its file; tells it from all others.
    """

    name: str
    path: Path
    is_favourite: bool

    @property
    def caption(self) -> str:
        """What it shows, as far as its file says so."""
        try:
            found = find_drawing(self.path)
        except PictureError:
            found = None
        words = self.name if found is None or not found.prompt.strip() else " ".join(found.prompt.split())
        return f"{'★ ' if self.is_favourite else ''}{cut(words, MOST_WORDS)}"

    @property
    def facts(self) -> str:
        """All that its file says of how it was drawn, as text; empty where it says nothing.

        Raises:
            PictureError: the file is damaged.
        """
        found = find_drawing(self.path)
        if found is None:
            return ""
        words = {**in_words(drawing_facts(found)), "file": self.name}
        return "\n".join(f"{key}: {printable(str(value))}" for key, value in words.items() if value not in (None, ""))

    @property
    def thumbnail(self) -> Image.Image:
        """A small square of it."""
        return small(self.path) or stand_in()


class History:
    """The pictures in `folder`. Safe to call from several threads.

    A picture is asked for by its file's name, and only those that are listed can be: no text from outside becomes a
    path.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()

    def find(self, only_favourites: bool = False) -> list[Drawn]:
        """The newest first: by number, as they were saved. Looks at the disk every time."""
        if not self.folder.is_dir():
            return []
        liked = self._favourites()
        files = [
            path
            for path in self.folder.iterdir()
            if path.suffix == SUFFIX and not path.name.startswith(".") and path.is_file() and not path.is_symlink()
        ]
        found = (Drawn(path.name, path, path.name in liked) for path in sorted(files, key=_age, reverse=True))
        return [one for one in found if one.is_favourite or not only_favourites]

    def get(self, name: str) -> Drawn:
        """The picture of this name.

        Raises:
            StudioError: there is none (any more).
        """
        found = next((one for one in self.find() if one.name == name), None)
        if found is None:
            raise StudioError(f"there is no picture {cut(name, 80)!r} in {self.folder} any more")
        return found

    def like(self, name: str, liked: bool) -> None:
        """Make a picture a favourite, or no longer one.

        Raises:
            StudioError: there is no such picture.
        """
        self.get(name)
        with self._lock:
            names = self._favourites()
            kept = names | {name} if liked else names - {name}
            with atomic_write(self.folder / FAVOURITES) as file:
                file.write(json.dumps(sorted(kept), ensure_ascii=False).encode())

    def delete(self, name: str) -> str:
        """Move a picture into the trash, a folder in this one; returns the key by which `put_back` undoes that.

        Raises:
            StudioError: there is no such picture, or the trash is a link that leads elsewhere.
        """
        with self._lock:
            picture, trash = self.get(name), self.folder / TRASH
            if trash.is_symlink():
                raise StudioError(
                    f"{TRASH} is a link that leads elsewhere; make it a folder, so that nothing gets lost"
                )
            there = trash / datetime.now().strftime(STAMP)
            there.mkdir(parents=True)
            picture.path.rename(there / name)
        return f"{there.name}/{name}"

    def put_back(self, key: str) -> str:
        """Undo a deletion; returns the picture's name.

        Raises:
            StudioError: it is not in the trash, or there is another of its name by now.
        """
        with self._lock:
            trash = self.folder / TRASH
            there = (
                {} if trash.is_symlink() else {f"{one.parent.name}/{one.name}": one for one in trash.glob("*/*.png")}
            )
            if key not in there or there[key].is_symlink():
                raise StudioError("it is not in the trash any more")
            place = self.folder / there[key].name
            if place.exists():
                raise StudioError(f"there is another {place.name} by now; rename that one first")
            there[key].rename(place)
            if not any(there[key].parent.iterdir()):
                there[key].parent.rmdir()
        return place.name

    def _favourites(self) -> set[str]:
        """Names; none where the file cannot be read, as somebody else may have written it."""
        try:
            found = json.loads(read_file(self.folder / FAVOURITES, MAX_FAVOURITES))
            return {name for name in found if isinstance(name, str)} if isinstance(found, Sequence) else set()
        except (OSError, ValueError, RecursionError):
            return set()


def _age(path: Path) -> tuple[int, str]:
    """Files without a number are the oldest."""
    number = path.name.partition("-")[0]
    return (int(number) if number.isascii() and number.isdigit() else -1), path.name
