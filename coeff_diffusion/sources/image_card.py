"""Cards: a PNG picture that carries the subjects it was drawn with, each in a chunk of its own, bit by bit.

A chunk of the kind `coEf` (no part of what a viewer shows, private, may be copied by programs that do not know it)
holds exactly the bytes of a subject's file. Reading decodes no pixels, and the chunks' sizes are checked before.
"""

import io
import warnings
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageOps

from ..images.generation_info import PictureError
from ..images.photo import why_unreadable
from ..images.photo_formats import register_readers
from ..images.png import SIGNATURE, PngError, read_chunks, with_chunks
from ..subject.coefficients import Coefficients
from ..subject.errors import CoefficientsError, shown
from ..subject.file_kind import kind_of_file
from ..subject.user_file import FileError, read_file, user_path

CHUNK = b"coEf"
MAX_SUBJECTS = 16
MAX_BYTES = 4 * 2**20
"""Of all subjects of a picture. One for Stable Diffusion 1.x has 24 KB, the largest for XL less than 1 MB."""
MAX_PICTURE = 64 * 2**20
"""Bytes of a picture that is to become a card: it is sent to people."""
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


def embed(png: bytes, subjects: Sequence[Coefficients]) -> bytes:
    """A PNG that carries these subjects beside those that it carries already. All else in it stays, bit by bit.

    Raises:
        CoefficientsError: not a PNG or a damaged one, a subject twice, more than 16 of them, or more than 4 MiB.
    """
    if not subjects:
        return png
    added = chunks([*extract(png), *subjects])[-len(subjects) :]
    try:
        return with_chunks(png, added)
    except PngError as error:
        raise CoefficientsError(f"the picture cannot carry a subject: {error}") from error


def extract(source: Path | bytes, *, old_names: bool = False) -> list[Coefficients]:
    """The subjects that a PNG carries; none in a picture that is no card.

    Args:
        old_names: see `Coefficients.from_bytes`.

    Raises:
        CoefficientsError: not a PNG, or damaged; more than 16 subjects or 4 MiB of them; one that is damaged (see
            `Coefficients.from_bytes`), or there twice.
    """
    where = "the picture" if isinstance(source, bytes) else str(source)
    try:
        found = read_chunks(source, (CHUNK,), MAX_BYTES, MAX_SUBJECTS)
    except PngError as error:
        raise CoefficientsError(f"{where} cannot be read as a card: {error}") from error
    subjects: list[Coefficients] = []
    for number, (_, content) in enumerate(found, start=1):
        try:
            subject = Coefficients.from_bytes(content, old_names=old_names)
        except CoefficientsError as error:
            raise CoefficientsError(f"subject {number} of {len(found)} in {where}: {error}") from error
        if subject in subjects:
            raise CoefficientsError(f"{where} carries {called(subject)} twice")
        subjects.append(subject)
    return subjects


def is_card(path: Path) -> bool:
    """Whether a picture carries subjects; also of a damaged PNG, for reading it says what is wrong.

    A preview beside a subject's file, as other programs put it there, is none.
    """
    try:
        return bool(read_chunks(path, (CHUNK,), MAX_BYTES, MAX_SUBJECTS))
    except PngError:
        try:
            return kind_of_file(path).picture == "PNG"
        except FileError:  # a folder, or gone by now
            return False


def chunks(subjects: Sequence[Coefficients]) -> list[tuple[bytes, bytes]]:
    """The chunks that carry these subjects: kind and content.

    Raises:
        CoefficientsError: a subject twice, more than 16 of them, or more than 4 MiB: no reader would take them; or one
            that learned with an adapter.
    """
    twice = [subject for number, subject in enumerate(subjects) if subject in subjects[:number]]
    if twice:
        raise CoefficientsError(f"a picture carries each subject once, but {called(twice[0])} is there twice")
    if len(subjects) > MAX_SUBJECTS:
        raise CoefficientsError(f"a picture carries at most {MAX_SUBJECTS} subjects, not {len(subjects)}")
    if joined := [subject for subject in subjects if subject.info.adapter]:
        raise CoefficientsError(
            f"a picture has no room for the adapter that {called(joined[0])} learned with ({joined[0].info.adapter}); "
            "share its folder, as push does"
        )
    found = [(CHUNK, subject.to_bytes()) for subject in subjects]
    size = sum(len(content) for _, content in found)
    if size > MAX_BYTES:
        raise CoefficientsError(f"a picture carries at most {MAX_BYTES} bytes of subjects, not {size}; share the files")
    return found


def choose(subjects: Sequence[Coefficients], name: str | None, path: Path) -> Coefficients:
    """The one subject there is, or the one of this name or hash.

    Raises:
        CoefficientsError: none or several are meant; the message lists what there is.
    """
    if not subjects:
        raise CoefficientsError(
            f"{path} carries no subject; programs that save or shrink a picture drop it, so send the card as a file"
        )
    fitting = list(subjects)
    if name is not None:
        fitting = [subject for subject in subjects if subject.info.name == name]
        fitting = fitting or [subject for subject in subjects if subject.sha256[:12] == name]
    if len(fitting) == 1:
        return fitting[0]
    there = ", ".join(map(called, subjects))
    if name is None:
        raise CoefficientsError(
            f"{path} carries {len(subjects)} subjects: {there}; take one by its name or its hash, in Python by "
            'Coefficients.load(path, name="...").save("one.safetensors"), or import the picture on the page, which '
            "makes a file of each"
        )
    problem = "several" if fitting else "no"
    raise CoefficientsError(f"{path} carries {problem} subjects called {shown(name)}; there is {there}")


def called(subject: Coefficients) -> str:
    """A subject as messages call it: its name and the beginning of its hash."""
    return f"{shown(subject.info.name or subject.info.trigger or 'a subject without a name')} ({subject.sha256[:12]})"


def as_png(path: str | Path) -> bytes:
    """A picture as a PNG: a PNG just as it is, any other with the very same pixels, turned upright.

    What other formats carry beside the pixels and the colour profile (EXIF with place and camera, comments) stays out.

    Raises:
        PictureError: not a readable picture, several in one file, or colours that a PNG cannot hold.
    """
    path = user_path(path)
    try:
        data = read_file(path, MAX_PICTURE)
        if data.startswith(SIGNATURE):
            return data
        register_readers()
        bombs = warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning)
        with bombs, Image.open(io.BytesIO(data)) as image:
            if image.format != "MPO" and getattr(image, "is_animated", False):
                raise PictureError(f"{path} holds several pictures; a card is one, so save one of them alone")
            image.load()
            upright = ImageOps.exif_transpose(image)
    except PictureError:
        raise
    except Exception as error:  # damaged files make Pillow's decoders raise anything
        raise PictureError(f"{path} is not a readable picture: {why_unreadable(path, error)}") from error
    if upright.mode not in PNG_MODES:
        raise PictureError(
            f"{path} has {upright.mode} pixels, which a PNG cannot hold without loss; convert it to RGB first"
        )
    png = io.BytesIO()
    upright.save(png, format="PNG", exif=None)
    return png.getvalue()
