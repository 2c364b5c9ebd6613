"""Open a subject, wherever it is: a file, a folder, a card, a QR code in a picture, the Hub."""

from pathlib import Path

from ..subject.coefficients import Coefficients
from ..subject.errors import CoefficientsError
from ..subject.hub_id import HUB_ID
from ..subject.safetensors_file import FILE_NAME
from .image_card import CHUNK, choose, extract
from .qr_code import read_qr
from .shared_folder import fetch_coefficients

PICTURES = (".png", ".jpg", ".jpeg", ".webp")  # a subject is in a chunk of a PNG, or in a QR code in any of them


def open_subject(source: str | Path, name: str | None = None) -> Coefficients:
    """Read a file, a card (a picture that carries a subject), a folder that holds `coefficients.safetensors`, or a Hub
    id ("user/repo"). This is what `Coefficients.load` does.

    Args:
        name: which subject, where a picture carries several; any other file has to be of this name.

    Raises:
        CoefficientsError: it is missing, no regular file, too large, damaged, not of this format, or its values make no
            sense. The message names the first offenders and what was expected.
    """
    return read(locate(source), name)


Coefficients.opener = staticmethod(open_subject)


def locate(source: str | Path) -> Path:
    """The file that `source` means: a file, a folder that holds `coefficients.safetensors`, or a Hub id ("user/repo").

    A file is a subject's own, or a picture that carries one (see `image_card`). An id may name a branch, tag or commit
    ("user/repo@v1").

    Raises:
        CoefficientsError: there is no such file, or the Hub does not give it.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / FILE_NAME).is_file():
            raise CoefficientsError(f"the folder {path} holds no {FILE_NAME}")
        return path / FILE_NAME
    names_a_file = path.suffix.lower() in (".safetensors", *PICTURES)
    if isinstance(source, str) and not path.exists() and not names_a_file and HUB_ID.fullmatch(source):
        return fetch_coefficients(source)
    return path


def read(path: str | Path, name: str | None = None) -> Coefficients:
    """Read a `.safetensors` file, or the subject that a picture carries; see `open_subject`."""
    path = Path(path)
    if path.suffix.lower() not in PICTURES:
        return choose([Coefficients.read(path)], name, path)
    if path.is_symlink() or not path.is_file():
        return Coefficients.read(path)  # which says what is wrong with it
    return read_card(path, name)


def read_card(path: Path, name: str | None = None) -> Coefficients:
    """The subject in a picture: in a chunk, or else in a QR code that is to be seen in it.

    Args:
        name: which one, where there are several: its name, or the 12 digits of its hash.

    Raises:
        CoefficientsError: there is none, or several and `name` does not say which; or what is there is damaged.
    """
    subjects = extract(path) if path.suffix.lower() == ".png" else []
    if not subjects:
        try:
            found = read_qr(path)
        except CoefficientsError as error:
            raise CoefficientsError(f"{path} carries no subject in a {CHUNK.decode()} chunk; {error}") from error
        if found is None:
            raise CoefficientsError(
                f"{path} carries no subject, neither in a {CHUNK.decode()} chunk nor in a QR code; programs that save "
                "or shrink a picture drop its chunks, so send the card as a file"
            )
        subjects = [found]
    return choose(subjects, name, path)
