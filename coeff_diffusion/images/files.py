"""Pictures on disk: reading how one was drawn, and saving that never overwrites."""

import io
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, PngImagePlugin

from ..subject.atomic_write import atomic_write
from ..subject.user_file import user_path
from .generation_info import Parameters, PictureError
from .other_programs import read_drawing
from .png import TEXT_KINDS, PngError, read_chunks, text_of, with_chunks

PARAMETERS = "parameters"
MAX_TEXT = 256 * 1024  # bytes of the parameters; those of A1111 with all its extensions have a few thousand
MAX_GRAPH = 2 * 2**20  # bytes of what other programs keep; the largest graphs of ComfyUI have a few hundred thousand
MAX_TEXTS = (16 * 2**20, 1_000)  # bytes and number of all text chunks of a picture: other tools keep workflows there


def find_drawing(source: str | Path | bytes) -> Parameters | None:
    """How a PNG was drawn, a file or its content, whichever program says so; None where nothing does.

    No pixel is decoded. Of several texts of one name the last one counts, as it does for Pillow and those who read with
    it.

    Raises:
        PictureError: not a PNG, damaged, or texts that cannot be read or of a size that no honest picture has.
    """
    try:
        chunks = read_chunks(source if isinstance(source, bytes) else Path(source), TEXT_KINDS, *MAX_TEXTS)

        def text(keyword: str) -> str | None:
            found = [chunk for chunk in chunks if chunk[1].startswith(f"{keyword}\0".encode())]
            return text_of(*found[-1], MAX_TEXT if keyword == PARAMETERS else MAX_GRAPH)[1] if found else None

        return read_drawing(text)
    except PngError as error:
        name = "the picture" if isinstance(source, bytes) else source
        raise PictureError(f"{name} is not a readable picture: {error}") from error


def read_parameters(path: str | Path) -> Parameters:
    """The parameters a PNG file carries.

    Raises:
        PictureError: as `find_drawing`, or there are none.
    """
    if (found := find_drawing(path)) is None:
        raise PictureError(
            f"{path} carries no drawing parameters; expected a PNG with a {PARAMETERS!r} text, or with settings of "
            "SwarmUI, Fooocus, ComfyUI, InvokeAI or NovelAI"
        )
    return found


def png_info(parameters: str) -> PngImagePlugin.PngInfo:
    """The chunk `parameters` for Pillow to write; in UTF-8 wherever a letter of it could be taken for another."""
    info = PngImagePlugin.PngInfo()
    if parameters.isascii():
        info.add_text(PARAMETERS, parameters)
    else:
        info.add_itxt(PARAMETERS, parameters)
    return info


def picture_bytes(
    image: Image.Image, parameters: str | None = None, chunks: Sequence[tuple[bytes, bytes]] = ()
) -> bytes:
    """A picture as a PNG file; see `save_picture` for the arguments."""
    data = io.BytesIO()
    image.save(data, format="PNG", pnginfo=png_info(parameters) if parameters else None)
    return with_chunks(data.getvalue(), chunks)


def save_picture(
    image: Image.Image, path: str | Path, parameters: str | None = None, chunks: Sequence[tuple[bytes, bytes]] = ()
) -> Path:
    """Write a PNG in one move (a reader sees the old file or the new one, never half of it).

    Args:
        parameters: the text of `format_parameters`, stored in the chunk `parameters`.
        chunks: further chunks, kind and content, such as the subjects of a card (`sources.image_card.chunks`).
    """
    content = picture_bytes(image, parameters, chunks)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(content)
    return path


def save_new_picture(
    image: Image.Image,
    folder: str | Path,
    stem: str,
    parameters: str | None = None,
    chunks: Sequence[tuple[bytes, bytes]] = (),
) -> Path:
    """Write a PNG under the next free number of a folder (see `free_path`), and return where it is.

    Raises:
        OSError: it could not be written, as on a full disk; nothing of it is left then.
    """
    path = free_path(folder, stem)
    try:
        return save_picture(image, path, parameters, chunks)
    except BaseException:  # also Ctrl-C: the empty file that holds the name goes
        path.unlink(missing_ok=True)
        raise


def check_folder(folder: str | Path) -> Path:
    """Make a folder for pictures and make sure, before anything is drawn, that it can be written.

    Raises:
        PictureError: it cannot.
    """
    folder = user_path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"writable")
    except OSError as error:
        raise PictureError(f"pictures cannot be written to {folder}: {error.strerror or error}") from error
    return folder


def free_path(folder: str | Path, stem: str, suffix: str = ".png") -> Path:
    """Claim the next unused numbered name in a folder: `00001-<stem>.png`, `00002-<stem>.png`, ...

    The name is taken by creating an empty file, so two processes drawing at once never get the same one.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    numbers = [int(found[1]) for path in folder.iterdir() if (found := re.match(r"(\d{5,})-", path.name))]
    number = max(numbers, default=0) + 1
    while True:
        path = folder / f"{number:05d}-{stem}{suffix}"
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            number += 1
            continue
        return path
