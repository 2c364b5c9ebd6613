"""The small pictures of the library: a sample of the subject's run, the thumbnail in its file, or a drawn stand-in."""

import base64
import io
import json
import warnings
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps

from ..images.files import find_drawing
from ..images.generation_info import PictureError
from ..subject.safetensors_file import MAX_HEADER
from ..subject.user_file import open_file, version_of
from ..training.run_folder import OF_THE_BASE

SIDE = 192  # pixels
MOST_SAMPLES = 64  # that are looked at to find the one to show
MAX_THUMBNAIL = 2**20  # characters of one in a file
MAX_PIXELS = 4_096 * 4_096
FORMATS = ("PNG", "JPEG", "WEBP")  # other decoders need not meet a stranger's file
KINDS = ("data:image/jpeg;base64,", "data:image/png;base64,", "data:image/webp;base64,")


def thumbnail(subject: Path, sample: Path | None) -> Image.Image:
    """A square picture of a subject, `SIDE` pixels wide.

    Args:
        subject: its file; asked where there is no sample.
        sample: see `best_sample`.
    """
    for path, read in ((sample, _sample_thumbnail), (subject, _own_thumbnail)):
        if path is not None:
            found = read(path, version_of(path.stat()))
            if found is not None:
                return found
    return stand_in()


def small(picture: Path) -> Image.Image | None:
    """A square of a picture, `SIDE` pixels wide; None where it cannot be read."""
    return _sample_thumbnail(picture, version_of(picture.stat()))


def best_sample(run: Path, sha256: str) -> Path | None:
    """The latest preview of a run that was drawn with the subject as it is now, else the latest one; None without any.

    That of step 0 is none of the subject.

    Args:
        run: its folder.
        sha256: of the subject.
    """
    folder = run / "samples"
    if folder.is_symlink():
        return None
    named = [path for path in folder.glob("*.png") if not path.name.startswith(OF_THE_BASE)]
    found = sorted(path for path in named if path.is_file() and not path.is_symlink())
    latest_first = sorted(found, key=lambda path: path.name.rpartition("_")[0], reverse=True)[:MOST_SAMPLES]
    drawn_with_it = (path for path in latest_first if sha256[:12] in _hashes(path))
    return next(drawn_with_it, next(iter(latest_first), None))


def greyed(image: Image.Image) -> Image.Image:
    """A picture as that of something that cannot be used."""
    return Image.blend(ImageOps.grayscale(image), Image.new("L", image.size, 128), 0.6).convert("RGB")


@lru_cache
def stand_in() -> Image.Image:
    """Shown where there is no picture: the outlines of one."""
    image = Image.new("RGB", (SIDE, SIDE), (150, 156, 166))
    draw, unit = ImageDraw.Draw(image), SIDE / 16
    draw.rounded_rectangle((3 * unit, 4 * unit, 13 * unit, 12 * unit), unit, outline=(225, 228, 233), width=4)
    draw.ellipse((5 * unit, 5.5 * unit, 7 * unit, 7.5 * unit), fill=(225, 228, 233))
    hills = ((4.5, 11), (7.5, 8), (9, 9.5), (10.5, 7.5), (12, 11))
    draw.polygon([(x * unit, y * unit) for x, y in hills], fill=(225, 228, 233))
    return image


@lru_cache(maxsize=1024)
def _sample_thumbnail(path: Path, version: tuple[int, ...]) -> Image.Image | None:
    return _square(path)


@lru_cache(maxsize=256)
def _own_thumbnail(path: Path, version: tuple[int, ...]) -> Image.Image | None:
    """The picture in a file's metadata (`modelspec.thumbnail`, a data URL); None without one that can be read."""
    with open_file(path) as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if length <= MAX_HEADER else b""
    try:
        text = json.loads(header)["__metadata__"]["modelspec.thumbnail"]
        if len(text) > MAX_THUMBNAIL or not text.startswith(KINDS):
            return None
        return _square(io.BytesIO(base64.b64decode(text.partition(",")[2], validate=True)))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


@lru_cache(maxsize=1024)
def _read_hashes(path: Path, version: tuple[int, ...]) -> frozenset[str]:
    try:
        drawn = find_drawing(path)
        return frozenset(drawn.hashes.values() if drawn else ())
    except PictureError:
        return frozenset()


def _hashes(path: Path) -> frozenset[str]:
    """The beginnings of the hashes of the subjects that a picture says it was drawn with."""
    return _read_hashes(path, version_of(path.stat()))


def _square(source: Path | io.BytesIO) -> Image.Image | None:
    """None where it is no picture that can be read, or a very large one: nobody waits for a thumbnail."""
    try:
        # Pillow only warns near its own limit; the size is checked right here.
        with warnings.catch_warnings(action="ignore"), Image.open(source, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                return None
            found = image.convert("RGB")
            # A large picture is first made smaller in whole steps: many times as fast, and nobody sees a difference.
            found = found.reduce(max(1, min(found.size) // (2 * SIDE)))
            return ImageOps.fit(found, (SIDE, SIDE), Image.Resampling.LANCZOS)
    except Exception:  # noqa: BLE001 - damaged files make Pillow's decoders raise anything
        return None
