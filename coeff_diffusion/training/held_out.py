"""Which pictures of the subject are kept out of training, so that there is something unseen to measure on."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ..images.photo import MAX_FILE, DatasetError
from ..subject.user_file import read_file
from .config import TrainConfig
from .picture_folder import PictureFolder, TrainingPicture, find_pictures, named
from .seeds import mixed_seed

Split = tuple[list[TrainingPicture], list[TrainingPicture]]


def split_pictures(config: TrainConfig, found: PictureFolder, say: Callable[[str], None]) -> Split:
    """The pictures to train on, and those to measure on: of the same folder, of another, or none.

    Args:
        config: resolved settings.
        found: the pictures of the subject.

    Raises:
        DatasetError: nothing would be left to train on, or a picture would be on both sides.
    """
    if config.validation_data_dir is not None:
        try:
            others = find_pictures(config.validation_data_dir)
        except DatasetError as error:
            raise DatasetError(f"--validation_data_dir: {error}") from error
        if seen := _seen(found.pictures, others.pictures):
            raise DatasetError(
                f"--validation_data_dir holds what is trained on: {named(seen)}; give others of the subject, or leave "
                "it out to measure on those that are trained on"
            )
        say(f"measuring on {named(others.paths)} of {config.validation_data_dir}")
        for line in others.said():
            say(line)
        return found.pictures, others.pictures
    if not config.validation_split:
        return found.pictures, []
    return _held_out(found.pictures, config, say)


def _held_out(pictures: list[TrainingPicture], config: TrainConfig, say: Callable[[str], None]) -> Split:
    split, total = config.validation_split, len(pictures)
    count = int(split) if split >= 1 else max(1, round(split * total))
    if count >= total:
        raise DatasetError(
            f"--validation_split {split:g} holds out {count} pictures of {total} and leaves none to train on; hold out "
            "fewer, or take --validation_data_dir for pictures of another folder"
        )
    generator = torch.Generator().manual_seed(mixed_seed(config.seed, -4))
    chosen = set(torch.randperm(total, generator=generator)[:count].tolist())
    held_out = [picture for place, picture in enumerate(pictures) if place in chosen]
    training = [picture for place, picture in enumerate(pictures) if place not in chosen]
    if seen := _seen(training, held_out):
        raise DatasetError(
            f"--validation_split would measure on what is trained on: the pictures hold {named(seen)} again; "
            "take the copies out"
        )
    say(f"held out of training, to measure on: {named([picture.path for picture in held_out])}")
    return training, held_out


def _seen(training: Sequence[TrainingPicture], others: Sequence[TrainingPicture]) -> list[Path]:
    """Those of the others that are trained on, too, whatever they are called."""
    known = {_digest(picture) for picture in training}
    return [picture.path for picture in others if _digest(picture) in known]


def _digest(picture: TrainingPicture) -> bytes:
    return hashlib.sha256(read_file(picture.path, MAX_FILE, DatasetError)).digest()
