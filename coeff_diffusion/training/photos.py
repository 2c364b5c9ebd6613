"""Picture files of any kind and their captions -> upright RGB squares: what a handful of photos looks like to training.

Shapes: R the resolution in pixels.
"""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..inference.trigger import contains_trigger

MAX_PIXELS = 100_000_000
"""Larger pictures are refused: no camera that matters here makes them, but a small file can claim to be one."""


class DatasetError(ValueError):
    """A picture or caption cannot be used. The message names the file, what is wrong and what to do."""


# --- files ------------------------------------------------------------------------------------------------------------


def find_images(source: str | Path | Sequence[str | Path]) -> list[Path]:
    """The pictures of a folder (by name, hidden files and other kinds left out), or the listed files as they stand.

    Raises:
        DatasetError: nothing there, or no pictures in it.
    """
    if not isinstance(source, str | Path):
        paths = [Path(path).expanduser() for path in source]
        missing = [str(path) for path in paths if not path.is_file()]
        if missing or not paths:
            raise DatasetError(f"no such picture: {', '.join(missing)}" if missing else "the list of pictures is empty")
        return paths
    folder = Path(source).expanduser()
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


def read_image(path: str | Path) -> Image.Image:
    """The picture as a person sees it: upright (EXIF), transparency on white, 8 bits of red, green and blue.

    Every mode Pillow reads: palette, bilevel, CMYK, alpha, 16 bits per channel and float (scaled, not cut off).

    Raises:
        DatasetError: not a picture, truncated, or more than 100 million pixels.
    """
    try:
        # Pillow only warns near its own limit; the size is checked right here, before a pixel is read.
        quiet = warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning)
        with quiet, Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DatasetError(_bomb(path, f"{image.width} x {image.height} pixels"))
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except DatasetError:
        raise
    except Image.DecompressionBombError as error:
        raise DatasetError(_bomb(path, "far more pixels")) from error
    except Exception as error:  # damaged files make Pillow's decoders raise anything
        raise DatasetError(f"{path} is not a readable picture ({error}); replace it or take it out") from error


def _bomb(path: str | Path, size: str) -> str:
    return f"{path} has {size}, expected at most {MAX_PIXELS // 1_000_000} million; make it smaller or take it out"


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        values = np.asarray(image, dtype=np.float64)
        # 16-bit pictures span 0..65535; what is within 0..1 or 0..255 is taken to span just that.
        peak = float(values.max(initial=0.0))
        top = next((t for t in (1.0, 255.0) if image.mode == "F" and peak <= t), 65535.0)
        image = Image.fromarray((values.clip(0, top) * (255 / top)).round().astype(np.uint8), mode=None)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


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
    if not file.is_file():
        return None
    try:
        caption = " ".join(file.read_text(encoding="utf-8-sig").split())
    except (UnicodeDecodeError, OSError) as error:
        raise DatasetError(f"{file} cannot be read ({error}); expected a caption in UTF-8") from error
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
