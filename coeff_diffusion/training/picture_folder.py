"""A folder as people have it -> its pictures, each with its caption and its mask, and what of it is left out and why.

Files that belong to a picture are called after it ("1.txt" or "1.jpg.txt" for "1.jpg"), however their names are cased.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..images.photo import DatasetError
from ..images.photo_formats import is_picture, why_unread
from ..subject.user_file import is_noise
from .captions import SUFFIXES, TABLES, Caption, read_caption, read_table

MASK_ENDINGS = ("-masklabel", "_mask", "-mask", ".mask")  # behind a picture's name; the first is OneTrainer's
MASK_FOLDERS = ("mask", "masks")  # with files called as the pictures are, as kohya's scripts and ai-toolkit have them
ABOUT = "subject.yaml"  # tells of the subject when many are trained at once
CONDITION = "-condlabel"  # OneTrainer's

SYSTEM = "hidden, or a file of the system"
LEFT_FOLDER = "only the folder itself is read; name the one that is meant, or move its pictures up"
NO_REGULAR = "no regular file"
NO_PICTURE = "no picture"
TOLD = "train-many reads it"
LONELY = "there is no picture of that name among those that are read"
UNREAD_CAPTION = f"captions are read from {', '.join(SUFFIXES)} and {' and '.join(TABLES)}"
SECOND_CAPTION = "its picture has another caption, which counts"
SECOND_MASK = "its picture has another mask, which counts"
NO_MASK = "a mask without its picture"
A_CONDITION = "pictures of conditions are not trained on"


@dataclass(frozen=True)
class TrainingPicture:
    """A picture and the files that belong to it: what is written of it, and which parts of it count.

    Attributes:
        box: the part that is used (see `crop_boxes`); None for all of it.
        mirrored: it is seen as in a mirror, and so is its mask.
    """

    path: Path
    caption: Caption | Path | None = None
    mask: Path | None = None
    box: Sequence[float] | None = None
    mirrored: bool = False

    def words(self) -> Caption | None:
        """Its caption. Raises DatasetError: it cannot be read."""
        return read_caption(self.caption) if isinstance(self.caption, Path) else self.caption


@dataclass
class PictureFolder:
    """What was found.

    Attributes:
        pictures: in a folder by name ("2.png" before "10.png"), else in their order.
        left_out: names of files and folders, by the reason.
    """

    pictures: list[TrainingPicture] = field(default_factory=list)
    left_out: dict[str, list[Path]] = field(default_factory=dict)

    @property
    def paths(self) -> list[Path]:
        """The pictures' files."""
        return [picture.path for picture in self.pictures]

    def leave_out(self, path: Path, reason: str) -> None:
        self.left_out.setdefault(reason, []).append(path)

    def said(self) -> list[str]:
        """What is left out, one line for each reason."""
        return [f"left out {named(paths)}: {reason}" for reason, paths in self.left_out.items() if paths]


def find_pictures(source: str | Path | Sequence[str | Path]) -> PictureFolder:
    """The pictures of a folder with what belongs to them, or the listed files as they stand.

    Raises:
        DatasetError: nothing there, no pictures in it, or a folder in a list.
    """
    if not isinstance(source, str | Path):
        paths = [Path(path).expanduser() for path in source]
        if folders := [str(path) for path in paths if path.is_dir()]:
            raise DatasetError(
                f"{', '.join(folders)}: a list names pictures, not folders; give one folder, or its files one by one"
            )
        missing = [str(path) for path in paths if not path.is_file()]
        if missing or not paths:
            raise DatasetError(f"no such picture: {', '.join(missing)}" if missing else "the list of pictures is empty")
        return _listed(paths)
    folder = Path(source).expanduser()
    if folder.is_file():
        return _listed([folder])
    found = scan(folder)
    if not found.pictures:
        reasons = [f"{named(paths, 3)}: {reason}" for reason, paths in found.left_out.items()]
        raise DatasetError(
            f"no pictures in {folder} (it holds {'; '.join(reasons[:3]) or 'nothing'}); expected .png, .jpg, .webp, ..."
        )
    return found


def scan(folder: Path) -> PictureFolder:
    """Everything in a folder; it may hold no pictures.

    Raises:
        DatasetError: it is no folder that can be read.
    """
    try:
        return sort_files(sorted(folder.iterdir(), key=natural))
    except OSError as error:
        if not folder.is_dir():
            raise DatasetError(f"no such folder of pictures: {folder}") from error
        raise DatasetError(f"{folder} cannot be read: {error.strerror or error}") from error


def sort_files(entries: Iterable[Path]) -> PictureFolder:
    """Which of some files are pictures, what belongs to them, and what is left out.

    Args:
        entries: files and folders of one place, or files that were handed over together.
    """
    found, files, mask_files = PictureFolder(), list[Path](), list[Path]()
    for path in entries:
        if is_system(path):
            found.leave_out(path, SYSTEM)
        elif path.is_dir():
            if path.name.lower() in MASK_FOLDERS:
                mask_files += sorted(path.iterdir(), key=natural)
            else:
                found.leave_out(path, LEFT_FOLDER)
        elif not path.is_file():
            found.leave_out(path, NO_REGULAR)
        else:
            files.append(path)
    candidates = [path for path in files if path.name not in TABLES and path.suffix.lower() not in SUFFIXES]
    pictures, masks = _pictures_and_masks(candidates, found)
    by_name = _ByName(pictures)
    for path in mask_files:
        owners = by_name.of(path.stem) if path.is_file() and is_picture(path) else []
        masks += [(path, owner) for owner in owners]
        if not owners:
            found.leave_out(path, SYSTEM if is_system(path) else NO_MASK)
    captions = _captions(files, pictures, found)
    mask_of: dict[Path, Path] = {}
    for mask, picture in masks:
        if mask_of.setdefault(picture, mask) != mask:
            found.leave_out(mask, SECOND_MASK)
    found.pictures = [TrainingPicture(path, captions.get(path), mask_of.get(path)) for path in pictures]
    return found


def _pictures_and_masks(files: list[Path], found: PictureFolder) -> tuple[list[Path], list[tuple[Path, Path]]]:
    """The pictures, and each mask that lies beside them with the picture it belongs to."""
    promising, others = list[Path](), list[Path]()
    for path in files:
        try:
            if reason := why_unread(path):
                found.leave_out(path, reason)
            else:
                (promising if is_picture(path) else others).append(path)
        except OSError as error:
            found.leave_out(path, f"it cannot be read ({error.strerror or error})")
    by_name = _ByName(promising)
    for path in others:
        known = TOLD if path.name == ABOUT else NO_PICTURE
        found.leave_out(path, UNREAD_CAPTION if by_name.of(path.stem) else known)
    pictures, masks = [], list[tuple[Path, Path]]()
    for path in promising:
        stem, ending = _without_ending(path.stem)
        owners = by_name.of(stem) if ending else []
        if ending == CONDITION:
            found.leave_out(path, A_CONDITION)
        elif owners:
            masks += [(path, owner) for owner in owners]
        elif ending == MASK_ENDINGS[0]:
            found.leave_out(path, NO_MASK)
        else:
            pictures.append(path)
    return pictures, masks


def _captions(files: list[Path], pictures: list[Path], found: PictureFolder) -> Mapping[Path, Caption | Path]:
    """The caption of each picture that has one. Of several, a file of its own counts before a line of a table."""
    captions: dict[Path, Caption | Path] = {}
    by_name = _ByName(pictures)
    for suffix in SUFFIXES:
        for path in files:
            if path.suffix.lower() != suffix:
                continue
            owners = by_name.of(path.stem)
            if not owners:
                found.leave_out(path, LONELY)
            elif all(owner in captions for owner in owners):
                found.leave_out(path, SECOND_CAPTION)
            for owner in owners:
                captions.setdefault(owner, path)
    for table in (path for name in TABLES for path in files if path.name == name):
        for name, caption in read_table(table):
            owners = by_name.of(name)
            if not owners:
                found.leave_out(Path(f"{name} ({caption.source})"), LONELY)
            elif owners[0] in captions:
                found.leave_out(Path(f"{name} ({caption.source})"), SECOND_CAPTION)
            for owner in owners:
                captions.setdefault(owner, caption)
    return captions


def _listed(paths: list[Path]) -> PictureFolder:
    """Pictures that were named one by one, with what belongs to them in their folders."""
    known: dict[Path, TrainingPicture] = {}
    for folder in dict.fromkeys(path.parent for path in paths):
        known |= {picture.path: picture for picture in scan(folder).pictures}
    return PictureFolder([known.get(path, TrainingPicture(path)) for path in paths])


class _ByName:
    """Finds the pictures that a file belongs to. A name that agrees to the letter comes first."""

    def __init__(self, pictures: Sequence[Path]) -> None:
        self.exact: dict[str, list[Path]] = {}
        self.near: dict[str, list[Path]] = {}
        for path in pictures:
            for name in dict.fromkeys((path.stem, path.name)):
                self.exact.setdefault(name, []).append(path)
                self.near.setdefault(_key(name), []).append(path)

    def of(self, name: str) -> list[Path]:
        """The pictures called so, with their ending or without."""
        return self.exact.get(name) or self.near.get(_key(name), [])


def is_system(path: Path) -> bool:
    """Whether a file or folder is hidden, or one that systems put anywhere."""
    name = path.name
    return is_noise(name) or name.startswith((".", "~$")) or name.upper() == "__MACOSX"


def natural(path: Path) -> list[tuple[int, str]]:
    """Sorts 2.png before 10.png."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name.lower())]


def _key(name: str) -> str:
    """A name as most file systems take it: its case and its Unicode form do not matter."""
    return unicodedata.normalize("NFC", name).casefold()


def _without_ending(stem: str) -> tuple[str, str]:
    for ending in (*MASK_ENDINGS, CONDITION):
        if stem.lower().endswith(ending) and len(stem) > len(ending):
            return stem[: -len(ending)], ending
    return stem, ""


def named(paths: Sequence[Path], most: int = 8) -> str:
    """How many files, and what they are called: '2 files (a.heic, b.heic)'."""
    names = [f"{path.name}/" if path.is_dir() else path.name for path in paths[:most]]
    rest = f" and {len(paths) - most} more" if len(paths) > most else ""
    if len(paths) == 1:
        return names[0]
    return f"{len(paths)} files ({', '.join(names)}{rest})"
