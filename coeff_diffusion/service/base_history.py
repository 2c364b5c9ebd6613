"""Which bases were used on this computer, kept in a small file beside the subjects."""

import json
import threading
from collections.abc import Mapping
from pathlib import Path

from ..inference.request import StudioError
from ..subject.atomic_write import atomic_write
from ..subject.user_file import read_text

FILE_NAME = ".bases.json"  # the library lists nothing that begins with a dot
MAX_FILE = 2**16  # bytes
MAX_BASES = 12
MAX_NAME = 1_000  # characters
OWN = ("config", "vae")
"""What a base may have beside its name (see `load_base`): where its configs come from, and another autoencoder."""
Parts = Mapping[str, str]


class BaseHistory:
    """The names of bases, the latest first, each with what else it was loaded with.

    In the file a base is its name alone, or an object with its `name` and what of `OWN` it has.

    Args:
        folder: of the subjects.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME
        self._lock = threading.Lock()

    def read(self) -> dict[str, Parts]:
        """What each was loaded with, by its name.

        Raises:
            StudioError: the file is there and is no such list. OSError: it cannot be read.
        """
        if not self.path.exists():
            return {}
        try:
            found = json.loads(read_text(self.path, MAX_FILE))
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, list) or not all(_is_name(one) or _is_described(one) for one in found):
            raise StudioError(
                f"{self.path} is not the list of bases that this page keeps there; mend it, or move it out of the way"
            )
        known: dict[str, Parts] = {}
        for one in found[:MAX_BASES]:
            name, parts = (one, {}) if isinstance(one, str) else (one["name"], one)
            known.setdefault(name, {part: parts[part] for part in OWN if part in parts})
        return known

    def add(self, name: str, parts: Parts) -> None:
        """Put a base in front. Raises as `read`."""
        with self._lock:
            known = {name: parts, **{other: its for other, its in self.read().items() if other != name}}
            listed = [{"name": one, **its} if its else one for one, its in known.items()][:MAX_BASES]
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self.path) as file:
                file.write(json.dumps(listed, indent=1, ensure_ascii=False).encode())


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME and value.isprintable()


def _is_described(value: object) -> bool:
    return (
        isinstance(value, dict)
        and "name" in value
        and {*value} <= {"name", *OWN}
        and all(map(_is_name, value.values()))
    )
