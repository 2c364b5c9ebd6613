"""A folder of pictures and their captions -> RGB squares: what a handful of photos looks like to training.

Shapes: R the resolution in pixels.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..images.photo import DatasetError
from ..inference.trigger import contains_trigger
from ..subject.user_file import FileError, read_text, user_path

# --- files ------------------------------------------------------------------------------------------------------------


def find_images(source: str | Path | Sequence[str | Path]) -> list[Path]:
    """The pictures of a folder (by name, hidden files and other kinds left out), or the listed files as they stand.

    Raises:
        DatasetError: nothing there, or no pictures in it.
    """
    if not isinstance(source, str | Path):
        paths = [user_path(path) for path in source]
        missing = [str(path) for path in paths if not path.is_file()]
        if missing or not paths:
            raise DatasetError(f"no such picture: {', '.join(missing)}" if missing else "the list of pictures is empty")
        return paths
    folder = user_path(source)
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise DatasetError(f"no such folder of pictures: {folder}")
    Image.init()
    known = Image.registered_extensions()
    paths = [p for p in folder.iterdir() if p.suffix.lower() in known and p.is_file() and not p.name.startswith(".")]
    if not paths:
        inside = sorted(p.name for p in folder.iterdir())[:5]
        raise DatasetError(
            f"no pictures in {folder} (it holds {', '.join(inside) or 'nothing'}); expected .png, .jpg, .webp, ..."
        )
    return sorted(paths, key=_natural)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sorts 2.png before 10.png."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name.lower())]


MAX_CAPTION = 2**20  # bytes

# --- captions ---------------------------------------------------------------------------------------------------------


def read_prompts(paths: Sequence[Path], instance_prompt: str, trigger: str, class_word: str) -> list[str]:
    """The prompt of each picture: its caption (`.txt` beside it) where there is one, else the instance prompt.

    Raises:
        DatasetError: a caption is empty or not UTF-8 text.
    """
    return [
        with_trigger(caption, trigger, class_word) if (caption := read_caption(path)) is not None else instance_prompt
        for path in paths
    ]


def read_caption(path: Path) -> str | None:
    """The text of the `.txt` file beside a picture, on one line; None where there is no such file."""
    file = path.with_suffix(".txt")
    if not file.exists():
        return None
    try:
        caption = " ".join(read_text(file, MAX_CAPTION).split())
    except FileError as error:
        raise DatasetError(f"{error}; expected a caption in UTF-8") from error
    if not caption:
        raise DatasetError(f"{file} is empty; write what {path.name} shows, or delete it to use the instance prompt")
    return caption


def with_trigger(caption: str, trigger: str, class_word: str) -> str:
    """The caption, certain to contain the trigger.

    Captions made by a tool never know the trigger. Without it a picture would teach the subject nothing, so it takes
    the place of the first class word ("a dog in the snow" -> "a sks dog in the snow"), or goes in front of all.
    """
    if contains_trigger(caption, trigger):
        return caption
    word = r"(?<!\w)" + r"\s+".join(map(re.escape, class_word.split())) + r"(?!\w)"
    replaced, count = re.subn(word, lambda _: trigger, caption, count=1, flags=re.IGNORECASE)
    return replaced if count else f"{trigger}, {caption}"


# --- views ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class View:
    """A square of R pixels in a picture whose shorter side was scaled to R: where it starts, and whether mirrored."""

    left: int
    top: int
    flip: bool = False


def choose_views(
    size: tuple[int, int], resolution: int, center_crop: bool, random_flip: bool, count: int, generator: torch.Generator
) -> list[View]:
    """The views of one picture that training will see, without repetition.

    A square picture has one crop and a centred crop is one crop: then there are no more views than flips. Else up to
    `count` crops, each mirrored or not by chance where flips are on.

    Args:
        size: width and height of the scaled picture.
    """
    spare_x, spare_y = size[0] - resolution, size[1] - resolution
    flips = [False, True] if random_flip else [False]
    if center_crop or spare_x == spare_y == 0:
        return [View(spare_x // 2, spare_y // 2, flip) for flip in flips]
    draws = torch.rand(count, 3, generator=generator).tolist()
    views = [View(int(x * (spare_x + 1)), int(y * (spare_y + 1)), random_flip and f < 0.5) for x, y, f in draws]
    return list(dict.fromkeys(views))


def scale(image: Image.Image, resolution: int) -> Image.Image:
    """Scaled, with antialiasing, so that the shorter side is the resolution."""
    factor = resolution / min(image.size)
    width, height = (max(resolution, round(side * factor)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def view_tensor(image: Image.Image, resolution: int, view: View) -> Tensor:
    """The view of a scaled picture, `[3, R, R]` in [-1, 1]."""
    square = image.crop((view.left, view.top, view.left + resolution, view.top + resolution))
    pixels = torch.from_numpy(np.array(ImageOps.mirror(square) if view.flip else square))  # [R, R, 3]
    return pixels.permute(2, 0, 1).float() / 127.5 - 1
