"""Messages for users of the page."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..images.generation_info import PictureError
from ..images.photo import DatasetError
from ..subject.errors import CoefficientsError


@contextmanager
def by_name(*files: str | Path) -> Iterator[None]:
    """Errors about these files call them by their names: where they lie on this computer tells the user nothing."""
    paths = [Path(file) for file in files]
    try:
        yield
    except (CoefficientsError, PictureError, DatasetError) as error:
        text = str(error)
        for path in paths:
            text = text.replace(str(path), path.name)
        raise type(error)(text) from error
