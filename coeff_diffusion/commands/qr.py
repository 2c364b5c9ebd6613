"""`coeff-diffusion qr`: a whole subject as one QR code."""

from collections.abc import Callable
from pathlib import Path

from ..images.files import save_picture
from ..images.photo import read_photo
from ..sources.open import open_subject
from ..sources.qr_code import make_qr, make_sheet
from ..sources.qr_payload import CAPACITY, largest_change, pack, unpack
from ..subject.user_file import user_path
from .config import QrConfig
from .output import check_output


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
