"""Opening what someone named: regular files alone, and no more of them than has its place there.

A path from outside may lead to a named pipe that nobody writes into, to a device without an end, to a folder, or to a
file far larger than what is expected. Every file that a user names is opened here.
"""

import io
import os
import re
import stat
from pathlib import Path
from typing import BinaryIO

from .errors import UserError

# Of a named pipe that takes a file's place between the look at it and its opening, nothing waits for the other end.
FLAGS = os.O_RDONLY | sum(getattr(os, flag, 0) for flag in ("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY"))
MISSING = "does not exist"
ADDRESS = re.compile(r"(https?|ftp|file):/+")  # of which a path keeps one slash
NOISE = (".ds_store", "thumbs.db", "desktop.ini")
OTHERS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def user_path(name: str | Path) -> Path:
    """The path that someone wrote, `~` as their home; a name that only begins so (`~$dog`) is as it stands."""
    try:
        return Path(name).expanduser()
    except RuntimeError:  # there is no user of that name
        return Path(name)


def is_noise(name: str) -> bool:
    """Whether a file of this name is what systems put into every folder by themselves."""
    return name.lower() in NOISE or name.startswith("._")


class FileError(UserError, OSError):
    """A file cannot be opened, or is larger than it may be.

    Attributes:
        problem: the message without the file's name in front.
    """

    def __init__(self, path: Path, problem: str) -> None:
        self.problem = problem
        super().__init__(f"{path} {problem}" if problem != MISSING else f"there is no file {path}")


def open_file(path: str | Path, most: int | None = None, error: type[Exception] = FileError) -> BinaryIO:
    """Open a regular file, or a link to one, for reading.

    Args:
        most: bytes that it may have; None sets no limit, for whoever reads only a part of it.
        error: what to raise instead of a `FileError`, made of its message.

    Raises:
        FileError: it is missing, no regular file (a folder, a named pipe, a device), larger than `most`, or may not be
            read.
    """
    try:
        return _opened(Path(path), most)
    except FileError as found:
        raise found if error is FileError else error(str(found)) from found


def read_file(path: str | Path, most: int, error: type[Exception] = FileError) -> bytes:
    """The content of a regular file of at most `most` bytes; see `open_file`."""
    with open_file(path, most, error) as file:
        data = file.read(most + 1)
    if len(data) > most:  # it grows, or does not tell its size
        found = FileError(Path(path), _too_large(len(data), most))
        raise found if error is FileError else error(str(found))
    return data


def read_text(path: str | Path, most: int, error: type[Exception] = FileError) -> str:
    """The content of a file as `read_file` takes it, as text in UTF-8, with or without a mark in front of it."""
    try:
        text = read_file(path, most, error).decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        found = FileError(Path(path), f"cannot be read as text in UTF-8 ({problem.reason} at byte {problem.start})")
        raise found if error is FileError else error(str(found)) from problem
    return io.StringIO(text, newline=None).read()  # any end of line is one


def version_of(found: os.stat_result) -> tuple[int, ...]:
    """What changes when a file is written again or another one takes its place, whatever time and size that has:
    archives give all their files one time, and subjects of one base are of one size."""
    return found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size


def check_file(path: str | Path, most: int | None = None, error: type[Exception] = FileError) -> None:
    """What `open_file` checks, before a library opens a file by its name."""
    open_file(path, most, error).close()


def _opened(path: Path, most: int | None) -> BinaryIO:
    try:
        _check(path, path.stat(), most)  # opening a device may already do something
        file = os.fdopen(os.open(path, FLAGS), "rb")
        try:
            _check(path, os.fstat(file.fileno()), most)
        except BaseException:
            file.close()
            raise
    except FileError:
        raise
    except FileNotFoundError as error:
        address = ADDRESS.match(str(path)) is not None
        problem = "is an address and no file; download what is there and give that file" if address else MISSING
        raise FileError(path, problem) from error
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # a name that no file system takes
        raise FileError(path, f"is no name that a file can have ({error})") from error
    return file


def _check(path: Path, found: os.stat_result, most: int | None) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = next((name for test, name in OTHERS if test(found.st_mode)), "something else")
        raise FileError(path, f"is not a regular file but {kind}")
    if most is not None and found.st_size > most:
        raise FileError(path, _too_large(found.st_size, most))


def _too_large(size: int, most: int) -> str:
    return f"has {size:,} bytes, expected at most {most:,}"
