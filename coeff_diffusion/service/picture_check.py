"""The pictures that someone drops for training: what training will see of them, and what is wrong with them.

Shapes: N pictures, R the resolution in pixels.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..images.photo import DatasetError, read_image
from ..subject.user_file import check_file, open_file
from ..training.dataset import mixed_seed
from ..training.photos import choose_views, scale

MAX_PICTURES = 100
MAX_BYTES = 25 * 1024 * 1024  # of one file: what a good camera makes of one photo
LOOK = 16  # pixels a side at which pictures are compared: what stays of a photo when one squints
ALIKE = 0.985  # correlation of two pictures at that size; other photos of one thing stay well below
FLAT = 2.0  # grey levels: pictures with less contrast than this are plain grey


@dataclass(frozen=True)
class PictureCheck:
    """What became of some files.

    Attributes:
        crops: by file, the square of R pixels that training sees (of random crops: the first).
        refused: files that cannot be used, one sentence each.
        notes: what may be used and is probably not meant, one sentence each.
    """

    crops: dict[Path, Image.Image] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check_pictures(paths: Sequence[Path], resolution: int, center_crop: bool = True, seed: int = 0) -> PictureCheck:
    """Read every file once, as training will.

    Args:
        resolution: side of the training pictures in pixels.
        center_crop, seed: the settings of the training (`TrainConfig`).
    """
    found = PictureCheck()
    if len(paths) > MAX_PICTURES:
        found.refused.append(f"there are {len(paths)} pictures, expected at most {MAX_PICTURES}; five good ones do")
        return found
    looks: dict[Path, np.ndarray] = {}
    for index, path in enumerate(paths):
        try:
            check_file(path, MAX_BYTES, DatasetError)
            image = read_image(path)
        except DatasetError as error:
            found.refused.append(str(error).replace(str(path), path.name))  # people know their files by name
            continue
        if min(image.size) < resolution:
            found.notes.append(
                f"{path.name} has {image.width} x {image.height} pixels, less than the {resolution} that training "
                "looks at: the subject will come out soft"
            )
        looks[path] = _look(image)
        image = scale(image, resolution)
        generator = torch.Generator().manual_seed(mixed_seed(seed, index))
        view = choose_views(image.size, resolution, center_crop, False, 1, generator)[0]
        found.crops[path] = image.crop((view.left, view.top, view.left + resolution, view.top + resolution))
    for first, second in _alike(looks):
        found.notes.append(
            f"{second.name} is nearly the same picture as {first.name}: different poses and places teach more"
        )
    return found


def copy_pictures(paths: Sequence[Path], folder: Path) -> None:
    """Copy readable pictures into a new folder as they are, in their order; no name of the user's becomes a path."""
    folder.mkdir(parents=True)
    for number, path in enumerate(paths, start=1):
        with open_file(path, MAX_BYTES, DatasetError) as file, Image.open(file) as image:
            suffix = f".{str(image.format).lower()}"
        known = suffix if suffix in Image.registered_extensions() else ".png"  # any that marks a picture will do
        shutil.copyfile(path, folder / f"{number:03d}{known}")


def _look(image: Image.Image) -> np.ndarray:
    """The picture as `[LOOK, LOOK, 3]` numbers."""
    return np.asarray(image.resize((LOOK, LOOK), Image.Resampling.BOX), dtype=np.float32)


def _alike(looks: dict[Path, np.ndarray]) -> list[tuple[Path, Path]]:
    """Each picture that is nearly the same as an earlier one, with the first such."""
    if len(looks) < 2:
        return []
    paths, rows = list(looks), np.stack(list(looks.values())).reshape(len(looks), -1)  # [N, pixels]
    means = rows.mean(axis=1)
    centred = rows - means[:, None]
    spread = centred.std(axis=1)
    correlation = (centred @ centred.T) / (rows.shape[1] * np.outer(spread, spread) + 1e-6)  # [N, N]
    flat = spread < FLAT  # of plain grey the correlation is noise: how light it is decides
    both_flat = np.outer(flat, flat) & (np.abs(means[:, None] - means) < FLAT)
    same = np.where(np.logical_or.outer(flat, flat), both_flat, correlation > ALIKE)
    return [(paths[np.argmax(same[:i, i])], paths[i]) for i in range(1, len(paths)) if same[:i, i].any()]
