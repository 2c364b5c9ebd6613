"""The subjects in a folder: files, cards, and folders of trainings, by the names they are chosen by."""

from pathlib import Path

from coeff_diffusion.sources.image_card import choose, extract, is_card
from coeff_diffusion.subject.adapter_methods import ADAPTER_FILES
from coeff_diffusion.subject.coefficients import Coefficients
from coeff_diffusion.subject.errors import CoefficientsError
from coeff_diffusion.subject.printable import printable
from coeff_diffusion.subject.safetensors_file import FILE_NAME

ENDINGS = {".safetensors", ".png"}
NO_SUBJECTS = {"timeline.safetensors", *ADAPTER_FILES}
OWN_FOLDERS = {"adapters", "checkpoints", "samples"}  # of a training


def find_subjects(folder: Path) -> dict[str, Path]:
    """What there is, by the file's name or that of the training's folder, in alphabetical order."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in inside.parts)
        if hidden or path.suffix.lower() not in ENDINGS or path.name in NO_SUBJECTS or path.parent.name in OWN_FOLDERS:
            continue
        if path.suffix.lower() == ".png" and not is_card(path):
            continue
        is_run = path.name == FILE_NAME and path.parent != folder
        name = printable((inside.parent if is_run else inside.with_suffix("")).as_posix())
        while name in found:
            name += "_"
        found[name] = path
    return found


def read_subject(folder: Path, name: str) -> Coefficients:
    """A subject by its name.

    Raises:
        CoefficientsError: none is called so, it is damaged, or a card that carries several.
    """
    found = find_subjects(folder)
    if name not in found:
        raise CoefficientsError(f"no subject {name!r} in {folder}; there is {', '.join(map(repr, found)) or 'none'}")
    path = found[name]
    return choose(extract(path), None, path) if path.suffix.lower() == ".png" else Coefficients.read(path)
