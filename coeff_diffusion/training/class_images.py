"""Class pictures for prior preservation: drawn by the base once, kept in a folder, reused by every later run."""

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from ..images.files import find_drawing, save_picture
from ..images.generation_info import PictureError
from ..images.photo import DatasetError
from ..inference.request import DrawRequest
from ..inference.studio import Studio
from ..subject.errors import shown
from ..subject.user_file import user_path
from .picture_folder import named, scan

DRAWN = re.compile(r"class_\d{5,}\.png", re.ASCII)


def class_images(
    studio: Studio,
    folder: str | Path,
    prompt: str,
    count: int,
    *,
    resolution: int,
    batch_size: int = 4,
    seed: int = 0,
    show_progress: bool = True,
    should_stop: Callable[[], bool] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """The first `count` pictures of the class, after drawing those that are missing.

    Pictures that lie in the folder already are used as they are, whoever made them. Drawn ones are called
    `class_00000.png`, ... and each depends on its number and the seed alone, so an interrupted set is completed to the
    same set. Every file appears whole or not at all.

    Args:
        studio: draws with the base alone.
        resolution: side of the drawn pictures in pixels.
        say: gets a line for what lies in the folder and is not used, or was drawn from another prompt.

    Raises:
        DatasetError: the folder cannot be used. DrawCancelled: `should_stop` said so; what is drawn so far stays.
    """
    folder = user_path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatasetError(f"class pictures cannot be kept in {folder}: {error}") from error
    found = _pictures(folder, say)
    for line in _of_others(found[:count], prompt):
        say(f"warning: class pictures in {folder}: {line}")
    free = [number for number in range(count) if not _path(folder, number).exists()]
    missing = free[: max(0, count - len(found))]
    with tqdm(
        total=count,
        initial=min(count, len(found)),
        desc="class pictures",
        unit="picture",
        disable=not (missing and show_progress),
    ) as bar:
        for numbers in _consecutive(missing, batch_size):
            request = DrawRequest(
                prompt,
                seed=seed % 2**31 + numbers[0],  # the drawing counts up from it, picture by picture
                width=resolution,
                height=resolution,
                batch_size=len(numbers),
            )
            for number, picture in zip(numbers, studio.draw(request, should_stop=should_stop), strict=True):
                save_picture(picture.image, _path(folder, number), picture.parameters)
                bar.update()
    return _pictures(folder)[:count]


def _path(folder: Path, number: int) -> Path:
    return folder / f"class_{number:05d}.png"


def _pictures(folder: Path, say: Callable[[str], None] = lambda line: None) -> list[Path]:
    """The pictures of the folder, which may hold none: what systems and killed runs leave in it are no pictures."""
    found = scan(folder)
    for line in found.said():
        say(f"class pictures in {folder}: {line}")
    if any(picture.caption or picture.mask for picture in found.pictures):
        say(f"class pictures in {folder}: captions and masks are not used; all of them are told as the class prompt")
    return found.paths


def _of_others(pictures: list[Path], prompt: str) -> list[str]:
    """A sentence for each other prompt that some of the pictures were drawn from here."""
    by_prompt: dict[str, list[Path]] = {}
    for path in (path for path in pictures if DRAWN.fullmatch(path.name)):
        with suppress(PictureError):  # whoever reads its pixels says what is wrong with it, if anything is
            if (drawing := find_drawing(path)) and drawing.prompt != prompt:
                by_prompt.setdefault(drawing.prompt, []).append(path)
    return [
        f"{named(paths)} drawn from {shown(other)}, and taken for {shown(prompt)} now; of another class, they belong "
        "into another --class_data_dir"
        for other, paths in by_prompt.items()
    ]


def _consecutive(numbers: list[int], most: int) -> Iterator[list[int]]:
    """The numbers in runs of neighbours, none longer than `most`."""
    run: list[int] = []
    for number in numbers:
        if run and (number != run[-1] + 1 or len(run) == most):
            yield run
            run = []
        run.append(number)
    if run:
        yield run
