"""The pictures that someone drops for training: what training will see of them, and what is wrong with them.

Shapes: N pictures, R the resolution in pixels.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter

from ..images.photo import DatasetError, read_photo
from ..images.photo_formats import readable_formats, why_unread
from ..subject.atomic_write import atomic_write
from ..subject.user_file import check_file, open_file
from ..training.captions import MAX_CAPTION, some
from ..training.crop_boxes import Box, box_problem, cropped
from ..training.known_pictures import MOST, unknown_pictures
from ..training.latents import posterior
from ..training.masks import mask_of
from ..training.own_pictures import figures
from ..training.photos import View, choose_views, cut_out, scale, view_tensor
from ..training.picture_folder import MASK_ENDINGS, NO_REGULAR, PictureFolder, sort_files
from ..training.seeds import mixed_seed

MAX_PICTURES = 100
MAX_BYTES = 25 * 1024 * 1024  # of one file: what a good camera makes of one photo
LOOK = 16  # pixels a side at which pictures are compared: what stays of a photo when one squints
ALIKE = 0.985  # correlation of two pictures at that size; other photos of one thing stay well below
FLAT = 2.0  # grey levels: pictures with less contrast than this are plain grey
# What changes from one pixel to the next, measured against what changes from a few to the next few. Photos and drawings
# have 0.4 and more of it; blurred by 2 pixels of what training sees, 0.02 to 0.04.
SHARP = 0.06
PLAIN = 0.1  # grey levels, squared: with less that changes, there is nothing to be sharp


@dataclass(frozen=True)
class PictureCheck:
    """What became of some files.

    Attributes:
        crops: by file, the square of R pixels that training sees (of random crops: the first).
        refused: files that cannot be used, one sentence each.
        notes: what may be used and is probably not meant, one sentence each.
        about: of every picture, what of these is about it: a sentence by the word that sums it up.
        captions: what is written of the pictures that have words of their own.
    """

    crops: dict[Path, Image.Image] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    about: dict[Path, dict[str, str]] = field(default_factory=dict)
    captions: dict[Path, str] = field(default_factory=dict)

    def refuse(self, path: Path, sentence: str) -> None:
        """It cannot be used."""
        self.refused.append(sentence)
        self.about.setdefault(path, {})["cannot be used"] = sentence

    def note(self, path: Path, word: str, sentence: str) -> None:
        """It may be used, and is probably not meant."""
        self.notes.append(sentence)
        self.about.setdefault(path, {})[word] = sentence


def check_pictures(
    paths: Sequence[Path],
    resolution: int,
    center_crop: bool = True,
    seed: int = 0,
    boxes: Mapping[Path, Box] | None = None,
) -> PictureCheck:
    """Read every file once, as training will.

    Captions and masks among them are those of the pictures that they are called after.

    Args:
        resolution: side of the training pictures in pixels.
        center_crop, seed: the settings of the training (`TrainConfig`).
        boxes: the parts of pictures that are used.
    """
    boxes = boxes or {}
    found = PictureCheck()
    once = list(dict.fromkeys(paths))
    files = sort_files(once)
    if (count := len(files.pictures)) > MAX_PICTURES:
        found.refused.append(f"there are {count} pictures, expected at most {MAX_PICTURES}; five good ones do")
        return found
    _tell_files(files, found)
    for path in once:
        if (times := paths.count(path)) > 1:
            found.note(path, "dropped twice", f"{path.name} was dropped {times} times and counts once")
    looks: dict[Path, np.ndarray] = {}
    notes: list[str] = []
    for index, picture in enumerate(files.pictures):
        path = picture.path
        found.about.setdefault(path, {})
        try:
            for file in filter(None, (path, picture.mask)):
                check_file(file, MAX_BYTES, DatasetError)
            caption, photo = picture.words(), read_photo(path)
            mask_of(photo, path, picture.mask)
        except (DatasetError, OSError) as error:
            found.refuse(path, _by_name(str(error), once))
            continue
        image = cropped(photo.image, boxes.get(path))
        if caption is not None:
            found.captions[path] = caption.text
        notes += [*(f"{path.name}: {note}" for note in photo.notes), *(() if caption is None else caption.notes)]
        if min(image.size) < resolution:
            found.note(
                path,
                "small",
                f"{path.name} has {image.width} x {image.height} pixels, less than the {resolution} that training "
                "looks at: the subject will come out soft",
            )
        looks[path] = _look(image)
        square = (resolution, resolution)
        image = scale(image, square)
        generator = torch.Generator().manual_seed(mixed_seed(seed, index))
        found.crops[path] = cut_out(
            image, square, choose_views(image.size, square, center_crop, False, 1, generator)[0]
        )
        if "small" not in found.about[path] and _blurred(found.crops[path]):
            found.note(path, "blurred", f"{path.name} is blurred: what is not sharp in it cannot be learned")
    found.notes.extend(some(notes, "pictures like these"))
    for first, second in _alike(looks):
        found.note(
            second,
            f"like {first.name}",
            f"{second.name} is nearly the same picture as {first.name}: different poses and places teach more",
        )
    return found


def unknown_crops(pipe: Any, crops: Sequence[Image.Image], class_word: str) -> str | None:
    """See `unknown_pictures`, of squares as training sees them; the base must have no subject acting."""
    if (known := figures(pipe)) is None:
        return None
    weight = next(pipe.vae.parameters())
    pixels = torch.stack([view_tensor(crop, crop.size, View(0, 0)) for crop in crops[:MOST]])
    return unknown_pictures(pipe, known, posterior(pipe.vae, pixels.to(weight))[0], class_word)


def _tell_files(files: PictureFolder, found: PictureCheck) -> None:
    """Refuse photos that are not read here; say which other files are left out, and what goes with the pictures."""
    for reason, paths in files.left_out.items():
        refused = [path for path in paths if reason == NO_REGULAR or (path.is_file() and why_unread(path))]
        for path in refused:
            found.refuse(path, f"{path.name} cannot be read: {reason}")
        files.left_out[reason] = [path for path in paths if path not in refused]
    found.notes.extend(files.said())
    captions = sum(picture.caption is not None for picture in files.pictures)
    masks = sum(picture.mask is not None for picture in files.pictures)
    if captions or masks:
        found.notes.append(f"{captions} of {len(files.pictures)} pictures have a caption, {masks} a mask")
    if files.left_out and not files.pictures and not found.refused:
        found.refused.append("there is no picture among these files")


def _by_name(message: str, paths: Sequence[Path]) -> str:
    """A message with names in place of paths: people know their files by name, and uploads lie in odd places."""
    for path in paths:
        message = message.replace(str(path), path.name)
    return message


def copy_pictures(
    paths: Sequence[Path], folder: Path, captions: Mapping[Path, str], masks: Mapping[Path, Image.Image] | None = None
) -> dict[Path, str]:
    """Copy readable pictures into a new folder as they are, by name, each with its caption and its mask.

    No name of the user's becomes a path.

    Args:
        captions: what counts instead of the caption that a picture came with; none where it is empty.
        masks: what counts instead of the mask that a picture came with.

    Returns:
        What each is called there.
    """
    folder.mkdir(parents=True)
    called: dict[Path, str] = {}
    for number, picture in enumerate(sort_files(dict.fromkeys(paths)).pictures, start=1):
        name = f"{number:03d}"
        called[picture.path] = f"{name}{_suffix(picture.path)}"
        shutil.copyfile(picture.path, folder / called[picture.path])
        if (painted := (masks or {}).get(picture.path)) is not None:
            painted.save(folder / f"{name}{MASK_ENDINGS[0]}.png")
        elif picture.mask is not None:
            shutil.copyfile(picture.mask, folder / f"{name}{MASK_ENDINGS[0]}{_suffix(picture.mask)}")
        words = picture.words()
        text = captions.get(picture.path, words.text if words else "")
        if text := " ".join(text.split()):
            with atomic_write(folder / f"{name}.txt") as file:
                file.write(text.encode())
    return called


def caption_problems(captions: Mapping[Path, str]) -> list[str]:
    """What is wrong with captions that someone wrote."""
    problems = []
    for path, text in captions.items():
        if not " ".join(text.split()).isprintable():  # half of an emoji, among others, which has no bytes to count
            problems.append(f"the caption of {path.name} holds characters that cannot be shown")
        elif len(text.encode()) > MAX_CAPTION:
            problems.append(f"the caption of {path.name} has more than {MAX_CAPTION:,} bytes")
    return problems


def box_problems(boxes: Mapping[Path, Box]) -> list[str]:
    """What is wrong with the parts of pictures that someone chose."""
    return [f"the part of {path.name} {problem}" for path, box in boxes.items() if (problem := box_problem(box))]


def _suffix(picture: Path) -> str:
    with open_file(picture) as file, Image.open(file, formats=readable_formats()) as image:
        suffix = f".{str(image.format).lower()}"
    return suffix if suffix in Image.registered_extensions() else ".png"  # any that marks a picture will do


def _blurred(image: Image.Image) -> bool:
    """Whether nothing in a square that training sees is sharp."""
    grey = image.convert("L")
    levels = [np.asarray(grey, dtype=np.float32)]
    levels += [np.asarray(grey.filter(ImageFilter.GaussianBlur(r)), dtype=np.float32) for r in (1, 2, 4)]
    fine, coarse = (float(np.square(levels[i] - levels[i + 1]).mean()) for i in (0, 2))
    return coarse > PLAIN and fine < SHARP * coarse


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
