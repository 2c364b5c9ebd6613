"""A temporary folder of one process: nobody else can look into it, and it goes with the process, however that ends."""

import atexit
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

ROOM = 2**20  # bytes that can be written there at least


def private_folder(place: Path, name: str) -> Path:
    """Make a folder in `place`; the process takes it away when it ends. What killed ones left is taken away first.

    Args:
        name: how the folder's name begins; the rest is random.

    Raises:
        OSError: it cannot be made, or there is no room in it.
    """
    place.mkdir(parents=True, exist_ok=True)
    _sweep(place, name)
    folder, lock = _make(place, name)
    atexit.register(_remove, folder, lock, os.getpid())
    with tempfile.TemporaryFile(dir=folder) as probe:
        probe.write(bytes(ROOM))
    return folder


def _make(place: Path, name: str) -> tuple[Path, int]:
    """A new folder, and the lock that says that its process lives: the system drops it with the process."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=name, dir=place))  # for its owner alone, whatever the umask
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # another start took it for a leftover
            continue
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.is_dir():
            return folder, lock
        os.close(lock)


def _sweep(place: Path, name: str) -> None:
    """Take away the folders of this user whose processes are gone."""
    for folder in place.glob(f"{name}*"):
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:  # no folder, another user's, or gone meanwhile
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock).st_uid == os.getuid():
                shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:  # its process lives
            pass
        finally:
            os.close(lock)


def _remove(folder: Path, lock: int, process: int) -> None:
    if os.getpid() == process:  # and no fork of it
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)
