"""The library as it is looked at: every subject on disk with what it is, its picture, and whether it fits the base."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from ..families.fingerprint import other_weights, weight_sample
from ..families.layout import layout_of
from ..families.registry import denoiser_of
from ..inference.studio import Studio
from ..sources.library import Deleted, Library, LibraryError
from ..sources.open import open_subject
from ..subject.adapter_methods import ADAPTER_FILES
from ..subject.errors import CoefficientsError, cut
from ..subject.info import CoefficientsInfo, not_learned
from ..subject.user_file import version_of
from .thumbnails import best_sample, greyed, stand_in, thumbnail

MOST_SHOWN = 300  # characters of any one fact
REMEMBERED = 4_096  # files whose content is not read again while they stay as they are


@dataclass(frozen=True)
class Entry:
    """A subject of the library.

    Attributes:
        name: what it is listed under.
        info: what its file says; nothing where the file is damaged.
        sha256: of its numbers; empty where the file is damaged.
        size: of the file, in bytes.
        beside: the bytes of its adapter, which lies beside it; 0 without.
        modified: when the file was written, local time.
        damaged: why it cannot be read; empty where it can.
        misfit: why it cannot be used with the base that is loaded; empty where it can.
        difference: why it may look different with the base that is loaded; empty where it does not.
    """

    name: str
    path: Path
    info: CoefficientsInfo
    sha256: str
    size: int
    modified: datetime
    damaged: str = ""
    misfit: str = ""
    difference: str = ""
    beside: int = 0

    @property
    def problem(self) -> str:
        """Why it cannot be drawn with, as a sentence; empty where it can."""
        if self.damaged:
            return f"The file cannot be read: {self.damaged}"
        return f"It does not fit the base that is loaded: {self.misfit}" if self.misfit else ""

    @property
    def remark(self) -> str:
        """What to know before drawing with it, as a sentence: its problem, else what is different."""
        failed = not_learned(self.info.strangeness)
        return self.problem or (f"It was not learned: {failed}" if failed else "") or _capital(self.difference)

    @property
    def caption(self) -> str:
        """The line below its picture."""
        state = "cannot be read" if self.damaged else "for another base" if self.misfit else cut(self.info.trigger, 40)
        return f"{self.name} · {state}" if state else self.name

    def facts(self) -> dict[str, str]:
        """What there is to know about it, in the words of the page."""
        info = self.info
        strength = info.extra.get("strength")
        family = f" ({info.base_architecture})" if info.base_architecture else ""
        facts = {
            "Called up by": info.trigger or ("" if self.damaged else "acts on every prompt"),
            "Class word": info.class_word,
            "Named by its maker": info.name if info.name != self.name else "",
            "Base": f"{info.base_model or 'unknown'}{family}" if not self.damaged else "",
            "Adapter": info.adapter,
            "Strength": f"{strength:g}" if type(strength) in (int, float) else "",
            "Training": f"{info.train_steps:,} steps" if info.train_steps else "",
            "Licence": info.license,
            "Date": info.created[:10] or f"{self.modified:%Y-%m-%d}",
            "Size": f"{self.size:,} bytes" + (f", and {self.beside:,} of its adapter" if self.beside else ""),
        }
        return {what: cut(value, MOST_SHOWN) for what, value in facts.items() if value}


class LibraryView:
    """Lists the subjects of a library and moves them about. Reads a file once, and again only when it has changed.

    Args:
        studio: its base decides which subjects can be used. It may draw meanwhile.
        writing: whether a training is going to write the subject of a name, so that it has to stay where it is.
    """

    def __init__(self, studio: Studio, library: Library, writing: Callable[[str], object] = lambda name: None) -> None:
        self.library, self._writing = library, writing
        self._layout = layout_of(studio.pipe).apart()  # the studio's own structure changes while it draws
        self._sample = weight_sample(denoiser_of(studio.pipe))
        self._look = lru_cache(REMEMBERED)(self._look_at)

    def entries(self, search: str = "") -> list[Entry]:
        """The subjects whose name, trigger or class word hold every word of `search`, in alphabetical order."""
        words = search.casefold().split()
        found = [entry for name, path in self.library.find().items() if (entry := self._entry(name, path))]
        return [entry for entry in found if all(word in _words(entry) for word in words)]

    def entry(self, name: str) -> Entry:
        """One subject.

        Raises:
            CoefficientsError: there is none of this name.
        """
        entry = self._entry(name, self.library.path(name))
        if entry is None:
            raise LibraryError(f"{name!r} was just deleted or renamed; look at the library again")
        return entry

    def picture(self, entry: Entry) -> Image.Image:
        """A small square picture of a subject, greyed where it cannot be used."""
        try:
            image = thumbnail(entry.path, self.sample(entry))
        except OSError:  # it went away a moment ago
            return greyed(stand_in())
        return greyed(image) if entry.problem else image

    def sample(self, entry: Entry) -> Path | None:
        """The preview of its training that shows the subject best; None for a lone file, and where that is noise."""
        if not_learned(entry.info.strangeness):
            return None
        unit = self.library.unit_of(entry.path)
        return best_sample(unit, entry.sha256) if unit != entry.path else None

    def rename(self, name: str, new: str) -> str:
        """See `Library.rename`."""
        self._check_free(name)
        return self.library.rename(name, new)

    def delete(self, name: str) -> Deleted:
        """See `Library.delete`."""
        self._check_free(name)
        return self.library.delete(name)

    def _check_free(self, name: str) -> None:
        if self._writing(name):
            raise LibraryError(f"{name!r} is being trained; stop its training first, or wait until it is over")

    def _entry(self, name: str, path: Path) -> Entry | None:
        """None where the file has gone since it was found."""
        try:
            stat = path.lstat()
        except OSError:
            return None
        beside = [path.with_name(name) for name in ADAPTER_FILES]
        adapter = sum(file.lstat().st_mtime_ns for file in beside if file.exists())
        content = self._look(path, version_of(stat), adapter)
        modified = datetime.fromtimestamp(stat.st_mtime)
        return Entry(name, path, size=stat.st_size, modified=modified, **content)

    def _look_at(self, path: Path, version: tuple[int, ...], adapter: int) -> dict[str, Any]:
        """The fields of `Entry` that only the content of a file tells. The checks take a few milliseconds each."""
        try:
            subject = open_subject(path)
        except (CoefficientsError, OSError) as error:
            damage = str(error).removeprefix(f"{path}: ").replace(str(path), path.name)
            return {"info": CoefficientsInfo(), "sha256": "", "damaged": damage}
        beside = len(subject.adapter.data) if subject.adapter else 0
        found = {"info": subject.info, "sha256": subject.sha256, "beside": beside}
        try:
            self._layout.check_fits(subject)
        except CoefficientsError as error:
            return {**found, "misfit": str(error)}
        return {**found, "difference": other_weights(subject.info, self._sample)}


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _words(entry: Entry) -> str:
    return " ".join((entry.name, entry.info.trigger, entry.info.class_word)).casefold()
