"""Which bases were used on this computer, kept in a small file beside the subjects."""

import json
import threading
from pathlib import Path

from ..inference.request import StudioError
from ..subject.atomic_write import atomic_write
from ..subject.user_file import read_text

FILE_NAME = ".bases.json"  # the library lists nothing that begins with a dot
MAX_FILE = 2**16  # bytes
MAX_BASES = 12
MAX_NAME = 1_000  # characters


class BaseHistory:
    """The names of bases, the latest first.

    Args:
        folder: of the subjects.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME
        self._lock = threading.Lock()

    def read(self) -> list[str]:
        """The names.

        Raises:
            StudioError: the file is there and is no such list. OSError: it cannot be read.
        """
        if not self.path.exists():
            return []
        try:
            found = json.loads(read_text(self.path, MAX_FILE))
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, list) or not all(_is_name(one) for one in found):
            raise StudioError(
                f"{self.path} is not the list of bases that this page keeps there; mend it, or move it out of the way"
            )
        return list(dict.fromkeys(found))[:MAX_BASES]

    def add(self, name: str) -> None:
        """Put a name in front. Raises as `read`."""
        with self._lock:
            names = list(dict.fromkeys([name, *self.read()]))[:MAX_BASES]
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self.path) as file:
                file.write(json.dumps(names, indent=1, ensure_ascii=False).encode())


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME and value.isprintable()
