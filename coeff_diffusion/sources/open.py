"""Open a subject, wherever it is: a file, a folder, a card, a QR code in a picture, the Hub."""

import re
from pathlib import Path

from ..subject.coefficients import Coefficients
from ..subject.errors import CoefficientsError, listed, shown
from ..subject.file_kind import Kind, kind_of_file
from ..subject.hub_id import HUB_ID
from ..subject.safetensors_file import FILE_NAME
from ..subject.user_file import user_path
from .image_card import CHUNK, choose, extract
from .qr_code import read_qr
from .shared_folder import fetch_file

SUFFIXES = re.compile(r"(?i)\.(safetensors|png|jpe?g|jfif|webp|gif|bmp|tiff?|avif|hei[cf]|ckpt|pth?|bin|zip)")
"""How files are called; what is in one is told by its bytes alone."""
ON_PAGE = re.compile(
    r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/(?!datasets/|spaces/)([A-Za-z0-9][\w.-]*/[\w.-]+)"
)


def open_subject(source: str | Path, name: str | None = None) -> Coefficients:
    """Read a file, a card (a picture that carries a subject), a folder that holds `coefficients.safetensors`, or a Hub
    id ("user/repo"). This is what `Coefficients.load` does.

    Args:
        name: which subject, where a picture carries several; any other file has to be of this name.

    Raises:
        CoefficientsError: it is missing, no regular file, too large, damaged, not of this format, or its values make no
            sense. The message names the first offenders and what was expected.
    """
    return with_adapter_from_hub(read(locate(source), name), source)


Coefficients.opener = staticmethod(open_subject)


def locate(source: str | Path) -> Path:
    """The file that `source` means: a file, a folder that holds `coefficients.safetensors`, or a Hub id ("user/repo").

    A file is a subject's own, or a picture that carries one (see `image_card`). An id may name a branch, tag or commit
    ("user/repo@v1").

    Raises:
        CoefficientsError: there is no such file, or the Hub does not give it.
    """
    path = user_path(source)
    if path.is_dir():
        if not (path / FILE_NAME).is_file():
            others = [shown(other.name) for other in sorted(path.iterdir()) if SUFFIXES.fullmatch(other.suffix)]
            there = f"; it holds {listed(others)}: give the file itself" if others else ""
            raise CoefficientsError(f"the folder {path} holds no {FILE_NAME}{there}")
        return path / FILE_NAME
    if (page := ON_PAGE.match(str(source))) and not path.exists():
        raise CoefficientsError(f"{source} is an address on the Hub; give the id alone: {page[1]}")
    return fetch_file(str(source), FILE_NAME) if is_on_hub(source) else path


def is_on_hub(source: str | Path) -> bool:
    """Whether a subject is meant that lies on the Hub."""
    if not isinstance(source, str) or not HUB_ID.fullmatch(source):
        return False
    path = user_path(source)
    return not SUFFIXES.fullmatch(path.suffix) and not path.exists()


def with_adapter_from_hub(subject: Coefficients, source: str | Path) -> Coefficients:
    """A subject with its adapter, where both lie on the Hub; any other just as it is.

    Raises:
        CoefficientsError: the adapter is another one, or the Hub does not give it.
    """
    if not subject.info.adapter or subject.adapter is not None or not is_on_hub(source):
        return subject
    return subject.with_adapter_of(fetch_file(str(source), subject.info.adapter_file))


def read(path: str | Path, name: str | None = None) -> Coefficients:
    """Read a subject's own file, or the subject that a picture carries, whatever it is called; see `open_subject`."""
    path = Path(path)
    if not path.is_symlink() and (kind := picture_kind(path)):
        return _read_card(path, kind, name)
    return choose([Coefficients.read(path)], name, path)  # which says what is wrong with it


def picture_kind(path: Path) -> Kind | None:
    """The kind of a picture; None of any other file.

    Raises:
        CoefficientsError: there is no such file, or no regular one.
    """
    kind = kind_of_file(path, CoefficientsError)
    return kind if kind.picture else None


def extract_any(path: Path) -> list[Coefficients]:
    """The subjects in the chunks of a picture: only a PNG has some."""
    kind = picture_kind(path)
    return extract(path) if kind and kind.picture == "PNG" else []


def _read_card(path: Path, kind: Kind, name: str | None) -> Coefficients:
    """The subject in a picture: in a chunk, or else in a QR code that is to be seen in it.

    Args:
        name: which one, where there are several: its name, or the 12 digits of its hash.

    Raises:
        CoefficientsError: there is none, or several and `name` does not say which; or what is there is damaged.
    """
    subjects = extract_any(path)
    if not subjects:
        why = f"{path} carries no subject in a {CHUNK.decode()} chunk"
        why = why if kind.picture == "PNG" else f"{path} is {kind.name}, which carries no subject in itself"
        try:
            found = read_qr(path)
        except CoefficientsError as error:
            raise CoefficientsError(f"{why}; {error}") from error
        if found is None:
            raise CoefficientsError(
                f"{why}, and no QR code of one is to be seen; programs that save or shrink a picture drop its chunks, "
                "so send the card as a file"
            )
        subjects = [found]
    return choose(subjects, name, path)
