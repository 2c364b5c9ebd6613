"""Cards: a PNG picture that carries the subjects it was drawn with, each in a chunk of its own, bit by bit.

A chunk of the kind `coEf` (no part of what a viewer shows, private, may be copied by programs that do not know it)
holds exactly the bytes of a subject's file. Reading decodes no pixels, and the chunks' sizes are checked before.
"""

import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageOps

from ..images.files import check_output, find_parameters
from ..images.generation_info import PictureError, parse_parameters
from ..images.png import SIGNATURE, PngError, read_chunks, with_chunks
from ..subject.coefficients import Coefficients, CoefficientsError, shown
from ..subject.safetensors_file import atomic_write, from_bytes, to_bytes

CHUNK = b"coEf"
MAX_SUBJECTS = 16
MAX_BYTES = 4 * 2**20
"""Of all subjects of a picture. One for Stable Diffusion 1.x has 24 KB, the largest for XL less than 1 MB."""
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


@dataclass
class CardConfig:
    """Make a card: a picture (PNG) that carries a subject. Whoever gets the picture can draw with the subject."""

    subject: str = field(metadata={"positional": True})
    """The subject: file, folder, Hub id, or another card."""
    picture: str = field(metadata={"positional": True})
    """The picture, in any format; what is not a PNG becomes one, without loss. What a PNG carries already stays."""
    output: str = field(metadata={"short": "-o"})
    """Where the card goes (.png)."""
    overwrite: bool = False
    """Replace a file that is there already."""


def make_card_file(config: CardConfig, say: Callable[[str], None] = print) -> Path:
    """Write a card and return its path.

    Raises:
        CoefficientsError: the subject is damaged, or the picture carries it, or too many, already.
        PictureError: the picture cannot be read or kept without loss, was drawn with other subjects only, or the card
            would replace a file.
    """
    output = check_output(config.output, config.overwrite)
    subject = Coefficients.load(config.subject)
    png = as_png(config.picture)
    _check_drawn_with(config.picture, png, subject)
    card = embed(png, [subject])
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(output) as file:
        file.write(card)
    say(f"{output} carries {called(subject)}: {len(card) - len(png):,} bytes more than the picture alone")
    return output


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


def extract(source: Path | bytes) -> list[Coefficients]:
    """The subjects that a PNG carries; none in a picture that is no card.

    Raises:
        CoefficientsError: not a PNG, or damaged; more than 16 subjects or 4 MiB of them; one that is damaged (see
            `files.from_bytes`), or there twice.
    """
    where = "the picture" if isinstance(source, bytes) else str(source)
    try:
        found = read_chunks(source, (CHUNK,), MAX_BYTES, MAX_SUBJECTS)
    except PngError as error:
        raise CoefficientsError(f"{where} cannot be read as a card: {error}") from error
    subjects: list[Coefficients] = []
    for number, (_, content) in enumerate(found, start=1):
        try:
            subject = from_bytes(content)
        except CoefficientsError as error:
            raise CoefficientsError(f"subject {number} of {len(found)} in {where}: {error}") from error
        if subject in subjects:
            raise CoefficientsError(f"{where} carries {called(subject)} twice")
        subjects.append(subject)
    return subjects


def chunks(subjects: Sequence[Coefficients]) -> list[tuple[bytes, bytes]]:
    """The chunks that carry these subjects: kind and content.

    Raises:
        CoefficientsError: a subject twice, more than 16 of them, or more than 4 MiB: no reader would take them.
    """
    twice = [subject for number, subject in enumerate(subjects) if subject in subjects[:number]]
    if twice:
        raise CoefficientsError(f"a picture carries each subject once, but {called(twice[0])} is there twice")
    if len(subjects) > MAX_SUBJECTS:
        raise CoefficientsError(f"a picture carries at most {MAX_SUBJECTS} subjects, not {len(subjects)}")
    found = [(CHUNK, to_bytes(subject)) for subject in subjects]
    size = sum(len(content) for _, content in found)
    if size > MAX_BYTES:
        raise CoefficientsError(f"a picture carries at most {MAX_BYTES} bytes of subjects, not {size}; share the files")
    return found


def read_card(path: Path, name: str | None = None) -> Coefficients:
    """The subject in a picture: in a chunk, or else in a QR code that is to be seen in it.

    Args:
        name: which one, where there are several: its name, or the 12 digits of its hash.

    Raises:
        CoefficientsError: there is none, or several and `name` does not say which; or what is there is damaged.
    """
    subjects = extract(path) if path.suffix.lower() == ".png" else []
    if not subjects:
        from .qr_code import read_qr

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


def choose(subjects: Sequence[Coefficients], name: str | None, path: Path) -> Coefficients:
    """The one subject there is, or the one of this name or hash.

    Raises:
        CoefficientsError: none or several are meant; the message lists what there is.
    """
    fitting = list(subjects)
    if name is not None:
        fitting = [subject for subject in subjects if subject.info.name == name]
        fitting = fitting or [subject for subject in subjects if subject.sha256[:12] == name]
    if len(fitting) == 1:
        return fitting[0]
    there = ", ".join(map(called, subjects))
    if name is None:
        raise CoefficientsError(
            f'{path} carries {len(subjects)} subjects: {there}; load one of them: Coefficients.load(path, name="..."), '
            "with its name or its hash"
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
    try:
        data = Path(path).expanduser().read_bytes()
        if data.startswith(SIGNATURE):
            return data
        bombs = warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning)
        with bombs, Image.open(io.BytesIO(data)) as image:
            if image.format != "MPO" and getattr(image, "is_animated", False):
                raise PictureError(f"{path} holds several pictures; a card is one, so save one of them alone")
            image.load()
            upright = ImageOps.exif_transpose(image)
    except PictureError:
        raise
    except Exception as error:  # damaged files make Pillow's decoders raise anything
        raise PictureError(f"{path} is not a readable picture: {error}") from error
    if upright.mode not in PNG_MODES:
        raise PictureError(
            f"{path} has {upright.mode} pixels, which a PNG cannot hold without loss; convert it to RGB first"
        )
    png = io.BytesIO()
    upright.save(png, format="PNG", exif=None)
    return png.getvalue()


def _check_drawn_with(path: str | Path, png: bytes, subject: Coefficients) -> None:
    """A picture that says by which subjects it was drawn is no card of another one."""
    text = find_parameters(png)
    hashes = parse_parameters(text).hashes if text else {}
    if hashes and subject.sha256[:12] not in hashes.values():
        drawn = ", ".join(f"{shown(name)} ({digits})" for name, digits in hashes.items())
        raise PictureError(f"{path} was drawn with {drawn}, but the subject is {called(subject)}")
