"""`coeff-diffusion card`: a picture that carries a subject."""

from collections.abc import Callable
from pathlib import Path

from ..images.files import find_drawing
from ..images.generation_info import PictureError
from ..sources.image_card import as_png, called, embed
from ..sources.open import open_subject
from ..subject.atomic_write import atomic_write
from ..subject.coefficients import Coefficients
from ..subject.errors import shown
from .config import CardConfig
from .output import check_output


def make_card_file(config: CardConfig, say: Callable[[str], None] = print) -> Path:
    """Write a card and return its path.

    Raises:
        CoefficientsError: the subject is damaged, or the picture carries it, or too many, already.
        PictureError: the picture cannot be read or kept without loss, or was drawn with other subjects only.
        OutputError, OSError: the output exists or cannot be written; what was there is as before.
    """
    output = check_output(config.output, ".png", config.overwrite, make_folder=True)
    subject = open_subject(config.subject)
    png = as_png(config.picture)
    _check_drawn_with(config.picture, png, subject)
    card = embed(png, [subject])
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(output) as file:
        file.write(card)
    say(f"{output} carries {called(subject)}: {len(card) - len(png):,} bytes more than the picture alone")
    return output


def _check_drawn_with(path: str | Path, png: bytes, subject: Coefficients) -> None:
    """A picture that says by which subjects it was drawn is no card of another one."""
    drawn = find_drawing(png)
    hashes = drawn.hashes if drawn else {}
    if hashes and subject.sha256[:12] not in hashes.values():
        subjects = ", ".join(f"{shown(name)} ({digits})" for name, digits in hashes.items())
        raise PictureError(f"{path} was drawn with {subjects}, but the subject is {called(subject)}")
