"""Files that appear whole or not at all."""

import errno
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

# What a full disk answers, in words that say what to do about it. (A quota is no error of Windows.)
FULL = {
    errno.ENOSPC: "the disk is full",
    getattr(errno, "EDQUOT", -1): "the disk quota is used up",
    errno.EFBIG: "the disk or a limit of this process takes no larger file",
}
LEFTOVER = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.tmp")  # what a process that was killed leaves of a file


@contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """A file that appears under `path` complete when the block ends well, and not at all when it does not.

    Whatever fails, the file that was there before is left as it was and nothing else stays behind.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full; it names `path`.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with errors_named(path):
        try:
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise


@contextmanager
def errors_named(path: Path) -> Iterator[None]:
    """The system's errors name the file that was to be written, and a full disk is called that."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, FULL.get(error.errno, error.strerror), str(path)) from error


def is_leftover(path: Path) -> bool:
    """Whether a file is what `atomic_write` leaves when its process is killed."""
    return LEFTOVER.fullmatch(path.name) is not None
