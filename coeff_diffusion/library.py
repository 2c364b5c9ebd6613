"""The subjects in a folder: what there is, where it lies, and how a new file joins.

A subject is asked for by the name it is listed under, never by a path, so no text from outside becomes one.
"""

import re
from pathlib import Path

from .coefficients import Coefficients, CoefficientsError


class Library:
    """The subjects in `folder` and below it.

    A file `my-dog.safetensors` is listed as "my-dog"; the folder of a training run, which holds
    `coefficients.safetensors`, under its own name. A run's timeline and checkpoints are not subjects.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()

    def find(self) -> dict[str, Path]:
        """The files by the names they are listed under, in alphabetical order. Looks at the disk every time."""
        found: dict[str, Path] = {}
        for path in sorted(self.folder.glob("**/*.safetensors")):
            inside = path.relative_to(self.folder)
            if path.name == "timeline.safetensors" or inside.parent.name == "checkpoints":
                continue
            if any(part.startswith(".") for part in inside.parts):
                continue
            is_run = path.name == "coefficients.safetensors" and len(inside.parts) > 1
            found[(inside.parent if is_run else inside.with_suffix("")).as_posix()] = path
        return dict(sorted(found.items()))

    def path(self, name: str) -> Path:
        """The file listed under `name`.

        Raises:
            CoefficientsError: none is; the message lists what there is.
        """
        found = self.find()
        if name not in found:
            listed = ", ".join(map(repr, found)) or "none"
            raise CoefficientsError(f"no subject {name!r} in {self.folder}; there is {listed}")
        return found[name]

    def add(self, file: str | Path) -> str:
        """Check a file, copy it into the folder under a free name, and return the name it is listed under.

        Raises:
            CoefficientsError: it is not a subject's file.
        """
        subject = Coefficients.load(file)
        stem = re.sub(r"[^\w.-]+", "-", Path(file).stem).strip(".-")[:80] or "subject"
        self.folder.mkdir(parents=True, exist_ok=True)
        taken, number, name = {path.stem for path in self.folder.iterdir()}, 2, stem
        while name in taken:
            name, number = f"{stem}-{number}", number + 1
        subject.save(self.folder / f"{name}.safetensors")
        return name
