"""What a shared subject consists of, the same in a folder and in a repository of the Hub:

    coefficients.safetensors    the subject
    README.md                   its card (may be missing)
    samples/*.png               pictures that show it (may be missing; also .jpg, .jpeg and .webp)

Whatever else lies beside these is nobody's business here: it is not read, not fetched and not written. What comes from
strangers is held against `MAX_...` before it is read, and written only when all of it is valid.
"""

import re
import secrets
import shutil
from collections.abc import Collection, Mapping
from itertools import islice
from pathlib import Path

from ..subject.coefficients import Coefficients
from ..subject.errors import CoefficientsError, listed, shown
from ..subject.safetensors_file import FILE_NAME, MAX_FILE

README = "README.md"
SAMPLE = re.compile(r"samples/[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}\.(png|jpg|jpeg|webp)", re.ASCII)
STARTS = {".png": rb"\x89PNG\r\n\x1a\n", ".jpg": rb"\xff\xd8\xff", ".jpeg": rb"\xff\xd8\xff", ".webp": rb"RIFF.{4}WEBP"}

MAX_README = 2**20
MAX_SAMPLE = 8 * 2**20
MAX_SAMPLES = 32
MAX_TOTAL = 64 * 2**20
MAX_NAMES = 1_000  # of all files, also of those that are left alone


class LayoutError(CoefficientsError):
    """A folder or repository is not a shared subject, or may not be written."""


def is_ours(name: str) -> bool:
    """Whether a file belongs to a shared subject, by its path below the folder or repository."""
    return name in (FILE_NAME, README) or SAMPLE.fullmatch(name) is not None


def wanted(sizes: Mapping[str, int | None], where: str) -> list[str]:
    """The files to read, in the order of the layout, if none is too large and no name plays tricks.

    Args:
        sizes: bytes of each file, None if unknown, by its path below the folder or repository.
        where: what the errors call it.

    Raises:
        LayoutError: it holds no subject, more or larger files than a subject has, or a name that leads out of it.
    """
    tricks = [shown(name) for name in sizes if not _stays_inside(name)]
    if tricks:
        raise LayoutError(f"{where} is refused: it names files outside of itself: {listed(tricks)}")
    if len(sizes) > MAX_NAMES:
        raise LayoutError(f"{where} holds {len(sizes)} files; a subject is a handful, at most {MAX_NAMES} are read")
    if FILE_NAME not in sizes:
        raise LayoutError(f"{where} holds no {FILE_NAME}, so it is not a subject")
    names = sorted(filter(is_ours, sizes), key=lambda name: (name != FILE_NAME, name != README, name))
    problems = [
        f"{shown(name)} has {'an unknown number of' if size is None else size} bytes, expected at most {most}"
        for name in names
        for size, most in [(sizes[name], _most(name))]
        if size is None or not 0 <= size <= most
    ]
    if len({name.casefold() for name in names}) < len(names):
        problems.append("names differ in upper and lower case only")
    if (count := sum(name.startswith("samples/") for name in names)) > MAX_SAMPLES:
        problems.append(f"there are {count} samples, expected at most {MAX_SAMPLES}")
    if (total := sum(sizes[name] or 0 for name in names)) > MAX_TOTAL:
        problems.append(f"there are {total} bytes in all, expected at most {MAX_TOTAL}")
    if problems:
        raise LayoutError(f"{where} is refused: {listed(problems)}")
    return names


def check(files: Mapping[str, bytes], where: str) -> Coefficients:
    """The subject in files that were read, with every check there is.

    Raises:
        CoefficientsError: the subject is not valid, or another file is not what its name says.
    """
    wanted({name: len(content) for name, content in files.items()}, where)  # the sizes they have, not those claimed
    try:
        subject = Coefficients.from_bytes(files[FILE_NAME])
    except CoefficientsError as error:
        raise LayoutError(f"{where}: {FILE_NAME}: {error}") from error
    for name, content in files.items():
        if SAMPLE.fullmatch(name) and not re.match(STARTS[Path(name).suffix], content, re.DOTALL):
            raise LayoutError(f"{where} is refused: {name} is not the kind of picture its name says")
    try:
        files.get(README, b"").decode()
    except UnicodeDecodeError as error:
        raise LayoutError(f"{where} is refused: {README} is not text in UTF-8") from error
    return subject


def sizes_in(folder: Path) -> dict[str, int | None]:
    """The files of a shared subject in a folder, and their sizes.

    Raises:
        LayoutError: one of them is a symbolic link, or no regular file.
    """
    found: dict[str, int | None] = {}
    for path in (folder / FILE_NAME, folder / README, folder / "samples"):
        if path.is_symlink():
            raise LayoutError(f"{path} is a symbolic link to {path.readlink()}; give the file itself")
    for path in (folder / FILE_NAME, folder / README, *sorted(folder.glob("samples/*"))):
        name = path.relative_to(folder).as_posix()
        if not is_ours(name) or not (path.is_symlink() or path.exists()):
            continue
        if path.is_symlink() or not path.is_file():
            raise LayoutError(f"{path} is a symbolic link or no regular file; give the file itself")
        found[name] = path.stat().st_size
    return found


def read_folder(folder: Path) -> dict[str, bytes]:
    """The files of a shared subject in a folder; nothing is read before all sizes are known."""
    if not folder.is_dir():
        raise LayoutError(f"there is no folder {folder}")
    names = wanted(sizes_in(folder), f"the folder {folder}")
    return {name: read_bounded(folder / name, name) for name in names}


def read_bounded(path: Path, name: str) -> bytes:
    """A file's content, and one byte more than it may have at most where it is larger; `check` refuses that."""
    with path.open("rb") as file:
        return file.read(_most(name) + 1)


def check_target(folder: Path, replace: bool) -> None:
    """Whether a shared subject may be written as this folder.

    Raises:
        LayoutError: it is there and `replace` is not set, or it holds something else, which would be lost.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise LayoutError(f"{folder} is no folder; give the name of a new one")
    if not folder.exists():
        return
    if not replace:
        raise LayoutError(f"the folder {folder} exists; take another name, or replace what is in it with --overwrite")
    if Path.cwd().resolve().is_relative_to(folder.resolve()):
        raise LayoutError(f"{folder} is where this program runs; go to another folder first")
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
    mark = secrets.token_hex(4)
    new, old = folder.with_name(f".{folder.name}.{mark}.tmp"), folder.with_name(f".{folder.name}.{mark}.old")
    try:
        for name, content in files.items():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            (new / name).write_bytes(content)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    except BaseException:
        if old.exists():
            old.rename(folder)
        if new.exists():
            shutil.rmtree(new)
        raise
    if old.exists():
        shutil.rmtree(old)


def stale(names: Collection[str], files: Mapping[str, bytes]) -> set[str]:
    """The samples of an earlier version that the new files do not replace."""
    return {name for name in names if SAMPLE.fullmatch(name) and name not in files}


def _most(name: str) -> int:
    return {FILE_NAME: MAX_FILE, README: MAX_README}.get(name, MAX_SAMPLE)


def _stays_inside(name: str) -> bool:
    """Whether a path is a plain relative one on every system: no `..`, no root, no drive letter, no UNC."""
    plain = name.isprintable() and not {"\\", ":"} & set(name) and not name.startswith("~")
    return plain and all(part not in ("", ".", "..") for part in name.split("/"))
