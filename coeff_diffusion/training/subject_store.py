"""Where many subjects go: a folder of this machine, or a bucket that fsspec reaches (s3://, gs://, memory://, ...)."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from ..sources.library import SUFFIX
from ..subject.atomic_write import atomic_write
from ..subject.coefficients import Coefficients
from ..subject.errors import CoefficientsError, UserError
from ..subject.user_file import user_path


class StoreError(UserError, OSError):
    """The place where subjects go cannot be reached, read or written."""


def is_address(place: str) -> bool:
    """Whether a place is written as an address, not as a folder."""
    return "://" in place


def inside(place: str, path: str) -> str:
    """What lies in a folder or at an address."""
    return f"{place}{'' if place.endswith('/') else '/'}{path}"


class SubjectStore:
    """Subjects by name, `<name>.safetensors` each, and other files beside them. Files appear whole or not at all.

    Args:
        place: a folder, or an address for fsspec. It need not exist.

    Raises:
        StoreError: nothing is known that reaches such an address.
    """

    def __init__(self, place: str | Path) -> None:
        address = str(place) if is_address(str(place)) else str(user_path(place).absolute())
        with _named(address):
            self.files, self.root = fsspec.url_to_fs(address)
            self.files.invalidate_cache()  # who asks wants to know what is there now
        self.is_here = isinstance(self.files, LocalFileSystem)
        self.place: Path | str = user_path(self.root if is_address(str(place)) else place) if self.is_here else address

    def place_of(self, name: str) -> Path | str:
        """Where a subject is or would be."""
        file = f"{name}{SUFFIX}"
        return inside(self.place, file) if isinstance(self.place, str) else self.place / file

    def has(self, name: str) -> bool:
        """Whether a subject is there."""
        with _named(self.place_of(name)):
            return bool(self.files.isfile(inside(self.root, f"{name}{SUFFIX}")))

    def read(self, name: str) -> Coefficients:
        """A subject that is there.

        Raises:
            CoefficientsError: it is damaged.
        """
        place = self.place_of(name)
        if isinstance(place, Path):
            return Coefficients.read(place)
        with _named(place):
            data = self.files.cat_file(inside(self.root, f"{name}{SUFFIX}"))
        try:
            return Coefficients.from_bytes(data)
        except CoefficientsError as error:
            raise CoefficientsError(f"{place}: {error}") from error

    def write(self, path: str, data: bytes) -> None:
        """Write a file.

        Args:
            path: from the store's root on ("rex.safetensors", ".runs/rex/README.md").

        Raises:
            StoreError: it cannot be written.
        """
        place = inside(self.root, path)
        with _named(inside(str(self.place), path)):
            self.files.makedirs(place.rpartition("/")[0], exist_ok=True)
            if self.is_here:
                with atomic_write(place) as file:
                    file.write(data)
            else:
                self.files.pipe_file(place, data)


@contextmanager
def _named(place: Path | str) -> Iterator[None]:
    """Whatever goes wrong in one of fsspec's many file systems names the place, on one line."""
    try:
        yield
    except StoreError:
        raise
    except Exception as error:  # each file system has errors of its own
        why = (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())
        raise StoreError(f"{place} cannot be reached: {why or type(error).__name__}") from error
