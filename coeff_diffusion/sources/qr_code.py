"""QR cards: a subject as one QR code, written with segno and read from a picture with zxing-cpp (extra `qr`).

The code holds what `qr_payload.pack` gives: every number in 8 bits. docs/qr.md describes it.
"""

import importlib
import io
import math
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..images.generation_info import PictureError
from ..images.photo import why_unreadable
from ..images.png import pixels_alone
from ..subject.coefficients import Coefficients
from ..subject.errors import CoefficientsError
from ..subject.file_kind import kind_of_file
from ..subject.user_file import check_file, read_file
from .qr_payload import MAGIC, pack, unpack

MODULE = 4  # pixels a module; what comes out is still read at half and at one and a half times its size
QUIET_ZONE = 4  # modules around the code
GAP = 16  # pixels around and between what is on a sheet
SMALLEST_FONT = 10
MAX_FILE = 32 * 2**20
MAX_PNG = 12 * 2**20  # of its packed pixels, which are held beside the decoded ones
MAX_SIDE = 4_096
MAX_PIXELS = 4_096 * 3_072  # a phone's camera; decoded, 48 MiB
LIMITS = f"pictures of up to {MAX_SIDE} pixels a side and {MAX_PIXELS / 1e6:.1f} million in all"


def make_qr(subject: Coefficients) -> Image.Image:
    """A QR code with the subject in it: black on white (mode "1"), with its quiet zone.

    Raises:
        CoefficientsError: the subject does not fit (see `qr_payload.pack`), or the extra `qr` is not installed.
    """
    payload = pack(subject)
    # Level L at least: where the same size allows a higher one, segno takes it.
    code = _library("segno").make_qr(payload, error="L", mode="byte")
    dark = np.array([list(row) for row in code.matrix_iter(scale=MODULE, border=QUIET_ZONE)], dtype=bool)
    return Image.fromarray(~dark)


def make_sheet(picture: Image.Image, trigger: str, code: Image.Image) -> Image.Image:
    """The picture, the trigger and the code below each other on white, each pixel as it was.

    Raises:
        PictureError: nobody would look for a code in a sheet as large as this.
    """
    width = max(picture.width, code.width)
    size = width // 16
    while size > SMALLEST_FONT and ImageFont.load_default(size).getlength(trigger) > width:
        size -= 1
    font = ImageFont.load_default(size)
    width = max(width, math.ceil(font.getlength(trigger))) + 2 * GAP
    words = size + GAP if trigger else 0
    height = GAP + picture.height + GAP + words + code.height + GAP
    if not _is_readable(width, height):
        raise PictureError(
            f"a picture of {picture.width} x {picture.height} pixels makes a sheet of {width} x {height}, but QR codes "
            f"are looked for in {LIMITS}; make the picture smaller, or leave it out"
        )
    sheet = Image.new("RGB", (width, height), "white")
    sheet.paste(picture, ((width - picture.width) // 2, GAP))
    middle = (width / 2, GAP + picture.height + GAP + size / 2)
    ImageDraw.Draw(sheet).text(middle, trigger, fill="black", font=font, anchor="mm")
    sheet.paste(code, ((width - code.width) // 2, GAP + picture.height + GAP + words))
    return sheet


def read_qr(path: str | Path) -> Coefficients | None:
    """The subject of the QR code in a picture of any format that Pillow reads, wherever the code stands in it.

    Returns:
        None where there is no QR code that can be read, or only codes that hold something else.

    Raises:
        CoefficientsError: not a picture, one too large, several subjects in it, or a subject that is damaged or for a
            base that is not known; or the extra `qr` is not installed.
    """
    zxing = _library("zxingcpp")
    codes = zxing.read_barcodes(_grey(Path(path)), formats=zxing.BarcodeFormat.QRCode)
    found = {code.bytes for code in codes if code.bytes.startswith(MAGIC)}
    if not found:
        return None
    if len(found) > 1:
        raise CoefficientsError(f"{path} holds QR codes of {len(found)} subjects; cut out the one that is meant")
    try:
        return unpack(found.pop())
    except CoefficientsError as error:
        raise CoefficientsError(f"the QR code in {path}: {error}") from error


def _grey(path: Path) -> Image.Image:
    """The brightness of a stranger's picture (mode "L"), its size checked before a pixel is decoded."""
    kind = kind_of_file(path, CoefficientsError)
    if not kind.picture:
        raise CoefficientsError(f"{path} is {kind.name}; expected a picture")
    if kind.picture not in _decoders():
        raise CoefficientsError(f"{path} is {kind.name}, which Pillow cannot read here; {kind.advice}")
    check_file(path, MAX_FILE, CoefficientsError)
    try:
        is_png = kind.picture == "PNG"  # Pillow would inflate all its texts
        data = pixels_alone(path, MAX_PNG) if is_png else read_file(path, MAX_FILE, CoefficientsError)
        # Pillow only warns near its own limit; the size is checked right here. No decoder but its own meets the file.
        quiet = warnings.catch_warnings(action="ignore")
        with quiet, Image.open(io.BytesIO(data), formats=(kind.picture,)) as image:
            if not _is_readable(image.width, image.height):
                raise CoefficientsError(
                    f"{path} has {image.width} x {image.height} pixels; QR codes are looked for in {LIMITS}: cut out "
                    "the code, or make the picture smaller"
                )
            image.draft("L", image.size)  # a JPEG need not become colours first
            return image.convert("L")
    except CoefficientsError:
        raise
    except Exception as error:  # damaged files make Pillow's decoders raise anything
        raise CoefficientsError(f"{path} is not a readable picture: {why_unreadable(path, error)}") from error


def _decoders() -> Collection[str]:
    """The formats that Pillow reads here; further packages add some."""
    Image.init()
    return Image.OPEN


def _is_readable(width: int, height: int) -> bool:
    return max(width, height) <= MAX_SIDE and width * height <= MAX_PIXELS


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise CoefficientsError("QR codes need segno and zxing-cpp: pip install 'coeff-diffusion[qr]'") from error
