"""The subjects in a folder: what there is, where it lies, how a new one joins, and how one is renamed or thrown away.

A subject is asked for by the name it is listed under, never by a path, so no text from outside becomes one.
"""

import re
import threading
import unicodedata
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ..subject.adapter_methods import ADAPTER_FILES
from ..subject.coefficients import Coefficients
from ..subject.errors import CoefficientsError, listed, shown
from ..subject.printable import printable
from ..subject.safetensors_file import FILE_NAME
from ..subject.user_file import user_path
from .open import open_subject
from .shared_folder import name_for

SUFFIX = ".safetensors"
TRASH = ".trash"
STAMP = "%Y%m%d-%H%M%S-%f"  # of a deletion, local time
MAX_NAME = 80  # characters
MAX_NAME_BYTES = 200  # a file system takes 255, and a file that is being written has a longer name for a moment
# Files and folders of these names are not listed, or mean something else in a folder of subjects.
NO_SUBJECTS = {f"timeline{SUFFIX}", *ADAPTER_FILES}
NO_FOLDERS = {"checkpoints", "adapters"}
OWN_NAMES = {"coefficients", "samples", "pictures", *NO_FOLDERS, *(name.removesuffix(SUFFIX) for name in NO_SUBJECTS)}
DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}  # of Windows


class LibraryError(CoefficientsError):
    """A subject cannot be renamed, deleted or put back as asked. Nothing has changed."""


@dataclass(frozen=True)
class Deleted:
    """A subject in the trash.

    Attributes:
        key: tells it from all others in there.
        name: what it was listed under.
        path: the file or the run's folder, where it lies now.
    """

    key: str
    name: str
    when: datetime
    path: Path


class Library:
    """The subjects in `folder` and below it.

    A file `my-dog.safetensors` is listed as "my-dog"; the folder of a training run, which holds
    `coefficients.safetensors`, under its own name. A run's timeline, checkpoints and adapters are not subjects. Safe to
    call from several threads.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = user_path(folder)
        self._lock = threading.RLock()

    def find(self) -> dict[str, Path]:
        """The files by the names they are listed under, in alphabetical order. Looks at the disk every time.

        See `listed_name` for how names are written.
        """
        found: dict[str, Path] = {}
        for path in sorted(self.folder.glob(f"**/*{SUFFIX}")):
            inside = path.relative_to(self.folder)
            if path.name in NO_SUBJECTS or inside.parent.name in NO_FOLDERS:
                continue
            if any(part.startswith(".") for part in inside.parts):
                continue
            name = listed_name(inside.parent if self._is_run(path) else inside.with_suffix(""))
            while name in found:
                name += "_"
            found[name] = path
        return dict(sorted(found.items()))

    def path(self, name: str) -> Path:
        """The file listed under `name`.

        Raises:
            CoefficientsError: none is; the message lists what there is.
        """
        found, name = self.find(), _whole(name)
        if name not in found:
            names = ", ".join(map(repr, found)) or "none"
            raise CoefficientsError(f"no subject {name!r} in {self.folder}; there is {names}")
        return found[name]

    def unit(self, name: str) -> Path:
        """What moves when a subject moves: the folder of a run, with its pictures and its timeline, or the lone file.

        Raises:
            CoefficientsError: there is no such subject.
        """
        return self.unit_of(self.path(name))

    def unit_of(self, path: Path) -> Path:
        """The same by a file that is listed."""
        return path.parent if self._is_run(path) else path

    def add(self, file: str | Path) -> str:
        """Check a file and let its subject join (see `join`) under a name that is like the file's (see `name_for`).

        Raises:
            CoefficientsError: it is not a subject's file.
        """
        subject = open_subject(file)
        return self.join(subject, name_for(Path(file), subject))

    def join(self, subject: Coefficients, name: str) -> str:
        """`put`, unless the very same subject is there already; returns what it is listed under."""
        with self._lock:
            return self.name_of(subject) or self.put(subject, name)

    def subjects(self) -> dict[str, Coefficients]:
        """The subjects by the names they are listed under, without those that cannot be read."""
        found = {}
        for name, path in self.find().items():
            try:
                found[name] = open_subject(path)
            except CoefficientsError:
                continue
        return found

    def name_of(self, subject: Coefficients) -> str | None:
        """What the very same numbers with the same trigger are listed under; None where they are not there."""
        same = (subject.sha256, subject.info.trigger)
        found = self.subjects().items()
        return next((name for name, other in found if (other.sha256, other.info.trigger) == same), None)

    def put(self, subject: Coefficients, name: str) -> str:
        """Write a subject into the folder under a free name that is like `name`; returns what it is listed under."""
        with self._lock:
            self.folder.mkdir(parents=True, exist_ok=True)
            name = self.free_name(name)
            file = self.folder / f"{name}{SUFFIX}"
            if subject.info.adapter:  # which lies beside it
                file = self.folder / name / FILE_NAME
                file.parent.mkdir()
            subject.save(file)
        return name

    def free_name(self, name: str) -> str:
        """`name` with what a file's name should not have replaced by dashes, and a number where it is taken."""
        stem, number = plain_name(name), 1
        taken = _taken(self.folder) | OWN_NAMES
        name = stem
        while name.casefold() in taken or _is_device(name):
            number += 1
            name = f"{stem}-{number}"
        return name

    def rename(self, name: str, new: str) -> str:
        """Give a subject another name, in the folder where it is; returns what it is listed under now.

        What its file itself says (name, trigger) stays as it is: its hash is that of the pictures drawn with it.

        Raises:
            CoefficientsError: there is no such subject, `new` is no name (see `check_name`) or is taken.
        """
        new = check_name(new)
        with self._lock:
            unit = self._movable(name)
            if new.casefold() in _taken(unit.parent, but=unit):
                raise LibraryError(f"there is something called {new!r} beside it already; take another name")
            unit.rename(unit.with_name(f"{new}{SUFFIX}" if self.path(name) == unit else new))
        return (Path(name).parent / new).as_posix()

    def delete(self, name: str) -> Deleted:
        """Move a subject into the trash, a folder in this one, from where `put_back` brings it back.

        Raises:
            CoefficientsError: there is no such subject, or it cannot be moved alone.
        """
        with self._lock:
            unit, now = self._movable(name), datetime.now()
            if self._trash.is_symlink():
                raise LibraryError(
                    f"{TRASH} is a link that leads elsewhere; make it a folder, so that nothing gets lost"
                )
            there = self._trash / now.strftime(STAMP) / unit.relative_to(self.folder)
            there.parent.mkdir(parents=True)
            unit.rename(there)
        return Deleted(f"{now.strftime(STAMP)}/{name}", name, now, there)

    def deleted(self) -> list[Deleted]:
        """What is in the trash, the latest first."""
        found = []
        for folder in self._trash.glob("*") if not self._trash.is_symlink() else ():
            if folder.is_symlink():
                continue
            try:
                when = datetime.strptime(folder.name, STAMP)
            except ValueError:
                continue  # not from here
            inside = Library(folder)
            found += [Deleted(f"{folder.name}/{name}", name, when, inside.unit(name)) for name in inside.find()]
        return sorted(found, key=lambda one: (one.when, one.name), reverse=True)

    def put_back(self, key: str) -> str:
        """Undo a deletion; returns the name the subject is listed under again.

        Args:
            key: of one of `deleted()`.

        Raises:
            LibraryError: it is not in the trash (any more), or its name is taken by now.
        """
        with self._lock:
            one = next((one for one in self.deleted() if one.key == key), None)
            if one is None:
                raise LibraryError("it is not in the trash any more; open the trash again to see what is")
            stamp = self._trash / key.partition("/")[0]
            place = self.folder / one.path.relative_to(stamp)
            self._check_inside(place, one.name)
            if place.parent.is_dir() and _whole(place.name.removesuffix(SUFFIX)).casefold() in _taken(place.parent):
                raise LibraryError(
                    f"there is another {one.name!r} by now; rename that one first, then put this one back"
                )
            place.parent.mkdir(parents=True, exist_ok=True)
            one.path.rename(place)
            for folder in one.path.parents:
                if folder == self._trash or any(folder.iterdir()):
                    break
                folder.rmdir()
        return one.name

    @property
    def _trash(self) -> Path:
        return self.folder / TRASH

    def _is_run(self, path: Path) -> bool:
        return path.name == FILE_NAME and path.parent != self.folder

    def _movable(self, name: str) -> Path:
        """What is to be moved, once it is certain that nothing else goes with it and that it lies in the library.

        A link that is listed is moved itself; what it leads to stays where it is.
        """
        unit = self.unit(name)
        others = [shown(other) for other, path in self.find().items() if other != name and path.is_relative_to(unit)]
        if others:
            raise LibraryError(f"the folder of {name!r} also holds {listed(others)}; rename or delete these first")
        self._check_inside(unit, name)
        return unit

    def _check_inside(self, unit: Path, name: str) -> None:
        if not unit.parent.resolve().is_relative_to(self.folder.resolve()):
            raise LibraryError(f"a link leads from the place of {name!r} out of the library; nothing is moved there")


def check_name(text: str) -> str:
    """A name for a subject as users may give it, which then is the name of a file or folder.

    Raises:
        LibraryError: it is empty, too long, starts with a dot, holds more than letters and digits of any language,
            space, dot, dash and underscore, or is reserved.
    """
    name = unicodedata.normalize("NFC", text).strip()
    if not name:
        raise LibraryError("the name is empty; give the subject one")
    if len(name) > MAX_NAME or len(name.encode(errors="replace")) > MAX_NAME_BYTES:
        raise LibraryError(
            f"the name has {len(name):,} characters, expected at most {MAX_NAME} ({MAX_NAME_BYTES} bytes)"
        )
    strange = sorted({letter for letter in name if not _is_plain(letter)})
    if strange:
        raise LibraryError(
            f"the name holds {', '.join(map(repr, strange[:5]))}; expected letters, digits, space, dot, dash and "
            "underscore"
        )
    if name.startswith("."):
        raise LibraryError(f"the name {name!r} starts with a dot, which hides it; leave the dot out")
    if name.endswith(".") or name.casefold().endswith(SUFFIX):
        raise LibraryError(f"the name {name!r} ends with a dot or {SUFFIX}; leave that out")
    if name.casefold() in OWN_NAMES or _is_device(name):
        raise LibraryError(f"the name {name!r} is reserved; take another one")
    return name


def _taken(folder: Path, but: Path | None = None) -> set[str]:
    """The names in a folder, of files and folders alike, as a file system that ignores case compares them."""
    return {_whole(path.name.removesuffix(SUFFIX)).casefold() for path in folder.iterdir() if path != but}


def listed_name(inside: Path) -> str:
    """What a file or folder is listed under, by its path in the library.

    Names may be of strangers, or in no encoding: what does not print is its escape. Letters are whole, as people type
    them; some systems keep them in parts.
    """
    return _whole(printable(inside.as_posix()))


def _whole(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def plain_name(text: str) -> str:
    """A text of any origin as a name."""
    text = unicodedata.normalize("NFC", text)
    dashed = re.sub(r"-+", "-", "".join(letter if _is_plain(letter) and letter != " " else "-" for letter in text))
    short = dashed.strip(".-")[:MAX_NAME].encode()[:MAX_NAME_BYTES].decode(errors="ignore")
    return short.rstrip(".-").removesuffix(SUFFIX) or "subject"


def _is_plain(letter: str) -> bool:
    """Letters, their marks (without which many languages cannot be written) and digits, and four signs."""
    return letter in " .-_" or unicodedata.category(letter)[0] in "LMN"


def _is_device(name: str) -> bool:
    return name.partition(".")[0].strip().casefold() in DEVICES
