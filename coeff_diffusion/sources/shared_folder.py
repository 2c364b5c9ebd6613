"""What a shared subject consists of, the same in a folder and in a repository of the Hub:

    coefficients.safetensors    the subject
    README.md                   its card (may be missing)
    samples/*.png               pictures that show it (may be missing; also .jpg, .jpeg and .webp)

Whatever else lies beside these is not read, not fetched and not written. What comes from strangers is held against
`MAX_...` before it is read, and written only when all of it is valid.
"""

import re
import tempfile
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

from ..subject.atomic_write import errors_named
from ..subject.coefficients import Coefficients
from ..subject.errors import CoefficientsError, listed, shown
from ..subject.safetensors_file import FILE_NAME, MAX_FILE

README = "README.md"
SAMPLE = re.compile(r"samples/[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}\.(png|jpg|jpeg|webp)", re.ASCII)
STARTS = {"png": rb"\x89PNG\r\n\x1a\n", "jpg": rb"\xff\xd8\xff", "jpeg": rb"\xff\xd8\xff", "webp": rb"RIFF.{4}WEBP"}

MAX_SAMPLE = 8 * 2**20
MAX_BYTES = {FILE_NAME: MAX_FILE, README: 2**20}  # and `MAX_SAMPLE` of each picture
MAX_SAMPLES = 32
MAX_TOTAL = 64 * 2**20


class LayoutError(CoefficientsError):
    """A folder or repository is not a shared subject, or may not be written."""


def is_ours(name: str) -> bool:
    """Whether a file belongs to a shared subject, by its path below the folder or repository."""
    return name in (FILE_NAME, README) or SAMPLE.fullmatch(name) is not None


def wanted(sizes: Mapping[str, int | None], where: str) -> list[str]:
    """The files to read, the subject first, if none is too large and no name plays tricks.

    Args:
        sizes: bytes of each file, None if unknown, by its path below the folder or repository.
        where: what the errors call it.

    Raises:
        LayoutError: it holds no subject, more or larger files than a subject has, or a name that leads out of it.
    """
    names = sorted(filter(is_ours, sizes), key=lambda name: (name != FILE_NAME, name != README, name))
    problems = [f"{shown(name)} leads out of it" for name in sizes if not _stays_inside(name)]
    problems += [
        f"{shown(name)} has {'an unknown number of' if size is None else size} bytes, expected at most {most}"
        for name in names
        for size, most in [(sizes[name], MAX_BYTES.get(name, MAX_SAMPLE))]
        if size is None or not 0 <= size <= most
    ]
    if (count := len(set(names) - set(MAX_BYTES))) > MAX_SAMPLES:
        problems.append(f"there are {count} samples, expected at most {MAX_SAMPLES}")
    if (total := sum(sizes[name] or 0 for name in names)) > MAX_TOTAL:
        problems.append(f"there are {total} bytes in all, expected at most {MAX_TOTAL}")
    if problems:
        raise LayoutError(f"{where} is refused: {listed(problems)}")
    if FILE_NAME not in names:
        raise LayoutError(f"{where} holds no {FILE_NAME}, so it is not a subject")
    return names


def _stays_inside(name: str) -> bool:
    """Whether a path is a plain relative one on every system: no `..`, no root, no drive letter, no UNC."""
    plain = name.isprintable() and not {"\\", ":"} & set(name) and not name.startswith("~")
    return plain and not {"", ".", ".."} & set(name.split("/"))


def check(files: Mapping[str, bytes], where: str) -> Coefficients:
    """The subject in files that were read, with every check there is.

    Raises:
        LayoutError: the subject is not valid, or another file is not what its name says.
    """
    wanted({name: len(content) for name, content in files.items()}, where)  # the sizes they have, not those claimed
    for name, content in files.items():
        if (sample := SAMPLE.fullmatch(name)) and not re.match(STARTS[sample[1]], content, re.DOTALL):
            raise LayoutError(f"{where} is refused: {name} is not the kind of picture its name says")
    try:
        files.get(README, b"").decode()
        return Coefficients.from_bytes(files[FILE_NAME])
    except UnicodeDecodeError as error:
        raise LayoutError(f"{where} is refused: {README} is not text in UTF-8") from error
    except CoefficientsError as error:
        raise LayoutError(f"{where}: {FILE_NAME}: {error}") from error


def read_folder(folder: Path) -> dict[str, bytes]:
    """The files of a shared subject in a folder; nothing is read before all sizes are known.

    Raises:
        LayoutError: see `wanted`; or one of the files is a symbolic link, which may lead anywhere.
    """
    if not folder.is_dir():
        raise LayoutError(f"there is no folder {folder}")
    paths = [folder / FILE_NAME, folder / README, folder / "samples", *sorted(folder.glob("samples/*"))]
    found = {path.relative_to(folder).as_posix(): path for path in paths}
    if links := [shown(name) for name, path in found.items() if path.is_symlink()]:
        raise LayoutError(f"the folder {folder} is refused: {listed(links)} is a symbolic link; give the file itself")
    sizes: dict[str, int | None] = {name: path.stat().st_size for name, path in found.items() if path.is_file()}
    return {name: read_bounded(found[name], name) for name in wanted(sizes, f"the folder {folder}")}


def read_bounded(path: Path, name: str) -> bytes:
    """A file's content, and one byte more than it may have at most where it is larger; `check` refuses that."""
    with path.open("rb") as file:
        return file.read(MAX_BYTES.get(name, MAX_SAMPLE) + 1)


def check_target(folder: Path, replace: bool) -> None:
    """Whether a shared subject may be written as this folder.

    Raises:
        LayoutError: it is there and `replace` is not set, or it holds something else, which would be lost.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise LayoutError(f"{folder} is no folder; give the name of a new one")
    if folder.exists() and not replace:
        raise LayoutError(f"the folder {folder} exists; take another name, or replace what is in it with --overwrite")
    present = (path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    foreign = (shown(name) for name in present if name != "samples" and not is_ours(name))
    if first := list(islice(foreign, 3)):
        raise LayoutError(f"the folder {folder} holds more than a subject, which would be lost: {listed(first)}")


def write_folder(files: Mapping[str, bytes], folder: Path, replace: bool = False) -> None:
    """Write a shared subject as a folder, which appears complete or not at all.

    Args:
        replace: take the place of a subject that is there.

    Raises:
        LayoutError: see `check_target`. OSError: it cannot be written; what was there is as before.
    """
    check_target(folder, replace)
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as staging:
        new, old = Path(staging, "new"), Path(staging, "old")
        for name, content in files.items():
            with errors_named(folder / name):
                (new / name).parent.mkdir(parents=True, exist_ok=True)
                (new / name).write_bytes(content)
        try:
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
        except BaseException:
            if old.exists():
                old.rename(folder)
            raise
