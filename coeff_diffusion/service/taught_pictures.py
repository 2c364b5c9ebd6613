"""The pictures that a training learns from, small, as it sees them: to lay beside what is drawn of the subject."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from PIL import Image

from ..images.photo import DatasetError
from ..training.crop_boxes import Box
from ..training.picture_folder import scan
from .picture_check import check_pictures
from .training_job import TrainingJob

MOST = 8  # more are not looked at side by side
SIDE = 256  # pixels: what is shown small needs no more


def taught_pictures(job: TrainingJob, resolution: int) -> Sequence[Image.Image]:
    """The first `MOST` pictures of a training; none where its folder has gone since.

    Args:
        resolution: side in pixels of what trainings see.
    """
    config, folder = job.config, job.folder / "pictures"
    boxes = tuple((name, tuple(box)) for name, box in (config.crop_boxes or {}).items())
    try:
        return _squares(folder, folder.stat().st_mtime_ns, resolution, config.center_crop, config.seed, boxes)
    except (DatasetError, OSError):  # the subject was renamed or thrown away
        return ()


@lru_cache(maxsize=8)
def _squares(
    folder: Path, modified: int, resolution: int, center_crop: bool, seed: int, boxes: tuple[tuple[str, Box], ...]
) -> Sequence[Image.Image]:
    paths = scan(folder).paths[:MOST]
    chosen = {folder / name: box for name, box in boxes}
    crops = check_pictures(paths, resolution, center_crop, seed, chosen).crops
    for crop in crops.values():
        crop.thumbnail((SIDE, SIDE))
    return tuple(crops.values())
