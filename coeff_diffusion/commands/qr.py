"""`coeff-diffusion qr`: a whole subject as one QR code."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ..images.files import save_picture
from ..images.photo import read_photo
from ..sources.open import open_subject
from ..sources.qr_code import make_qr, make_sheet
from ..sources.qr_payload import CAPACITY, largest_change, pack, unpack
from ..subject.user_file import user_path
from .output import check_output


@dataclass
class QrConfig:
    """Write a subject as a picture of one QR code, its numbers rounded to 8 bits. It survives what a card does not:
    JPEG, screenshots, scaling, chats that strip pictures of all but their pixels. Prompts, licence and training are
    not kept, only name, trigger, class word and which base it is for."""

    subject: str = field(metadata={"positional": True})
    """The subject: file, folder, card or Hub id."""
    output: str = field(metadata={"short": "-o"})
    """The PNG to write."""
    picture: str | None = None
    """A picture to show above the code, with the trigger between them, on one sheet."""
    overwrite: bool = False
    """Replace the output where it exists."""


def make_qr_file(config: QrConfig, say: Callable[[str], None] = print) -> Path:
    """Write the QR code that `config` asks for and return its file.

    Args:
        say: gets one line per fact the user wants to know.

    Raises:
        CoefficientsError: the subject cannot be read, or does not fit a QR code.
        DatasetError, PictureError: the picture cannot be read, or is too large for a sheet.
        OutputError, OSError: the output exists or cannot be written; what was there is as before.
    """
    path = check_output(config.output, ".png", config.overwrite, make_folder=True)
    subject = open_subject(config.subject)
    code = make_qr(subject)
    picture = None if config.picture is None else read_photo(user_path(config.picture))
    save_picture(code if picture is None else make_sheet(picture.image, subject.info.trigger, code), path)

    payload = pack(subject)
    kept = unpack(payload)
    for note in () if picture is None else picture.notes:
        say(f"{config.picture}: {note}")
    change, part = largest_change(subject, kept)
    say(f"{path}: {len(payload):,} of the {CAPACITY:,} bytes that a QR code holds")
    say(f"rounded to 8 bits: no value changes by more than {change:.2g}, or {part:.2%} of the largest in its layer")
    for what in ("name", "class_word"):
        whole, left = getattr(subject.info, what), getattr(kept.info, what)
        if left != whole:
            say(f"no room for the whole {what.replace('_', ' ')} {whole!r}: it is {left!r} in the code")
    return path
