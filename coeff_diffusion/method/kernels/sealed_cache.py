"""Compiled kernels in the user's cache (`$XDG_CACHE_HOME` or `~/.cache`, folder `coeff-diffusion`).

Loading a damaged library ends a process, and no `except` helps. So files are sealed: a hash of all of it and of its
name stands behind a file's last byte, in the same file, which appears whole or not at all.
"""

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ...subject.atomic_write import atomic_write
from ...subject.user_file import read_file
from .build_error import BuildError

SEAL = hashlib.sha256().digest_size  # bytes


def folder() -> Path:
    """Where the files lie; made where it is missing.

    Raises:
        BuildError: others may write there.
        OSError: it cannot be made.
    """
    found = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "coeff-diffusion"
    found.mkdir(mode=0o700, parents=True, exist_ok=True)
    state = found.stat()
    if state.st_uid != os.getuid() or state.st_mode & 0o022:
        raise BuildError(f"others than you may write to {found}: code is not loaded from there")
    return found


def read(path: Path, most: int) -> bytes | None:
    """What was stored under this name, to the last bit, of at most `most` bytes; None where that is not there."""
    try:
        data = read_file(path, most)
    except OSError:
        return None
    return data[:-SEAL] if data[-SEAL:] == _seal(path, data[:-SEAL]) else None


def write(path: Path, data: bytes) -> None:
    """Store `data`, sealed, so that others see all of it or nothing."""
    with atomic_write(path) as file:
        file.write(data + _seal(path, data))


def kept(name: str, most: int, make: Callable[[], bytes]) -> bytes:
    """What lies in the cache under a name, of at most `most` bytes; else what `make` gives, stored where it can be."""
    try:
        path = folder() / name
    except (BuildError, OSError, RuntimeError, AttributeError):  # no home, or no owners of files (Windows)
        return make()
    data = read(path, most)
    if data is None:
        data = make()
        with suppress(OSError):  # a full disk: it is made again next time
            write(path, data)
    return data


def _seal(path: Path, data: bytes) -> bytes:
    return hashlib.sha256(os.fsencode(path.name) + b"\0" + data).digest()
