"""The picture that a ControlNet holds a drawing to, taken as it is: edges, depths, poses that others made.

What is drawn so carries it like a picture to start from (see `start_picture`), in a chunk of the kind `coEc`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ..subject.user_file import user_path
from .photo import read_photo
from .start_picture import StartPicture


@dataclass(frozen=True)
class ControlPicture(StartPicture):
    """What a drawing is held to.

    Attributes:
        net: the ControlNet: its folder, file or Hub id, and in a drawing the short name that it goes by.
        net_digits: 12 hex digits that tell its weights from any other's; empty before it is loaded.
    """

    net: str = ""
    net_digits: str = ""

    chunk: ClassVar[bytes] = b"coEc"
    called: ClassVar[str] = "a control picture"
    carried: ClassVar[str] = "its control picture"

    def __hash__(self) -> int:
        return hash((self.digits, self.net, self.net_digits))


def read_control(image: str | Path, net: str) -> tuple[ControlPicture, list[str]]:
    """A control picture, of any kind that is read here, and notes for the user.

    Raises:
        DatasetError: it cannot be read.
    """
    photo = read_photo(user_path(image))
    return ControlPicture(photo.image, net=net), [f"{image}: {note}" for note in photo.notes]
