"""Captions for the pictures that someone dropped, by a model that the page was opened with."""

import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch

from ..inference.request import StudioError
from ..training.auto_captions import Captioner
from ..training.crop_boxes import Box
from ..training.picture_folder import TrainingPicture


class CaptionWriter:
    """Loads the model when it is first asked, and keeps it.

    Args:
        name: of the model (see `Captioner`); without one there are no captions.
        device: where it runs.
    """

    def __init__(self, name: str | None, device: torch.device) -> None:
        self.name, self.device = name, device
        self._captioner: Captioner | None = None
        self._lock = threading.Lock()

    def captions(self, pictures: Iterable[Path], boxes: Mapping[Path, Box]) -> Iterator[tuple[Path, str]]:
        """What pictures show, one after the other.

        Raises:
            StudioError: there is no model. DatasetError, HubError: see `Captioner`; or a picture cannot be read.
        """
        if self.name is None:
            raise StudioError("no captioning model was named where the page was opened (--caption_model)")
        with self._lock:
            self._captioner = self._captioner or Captioner(self.name, self.device)
            for path in pictures:
                yield path, self._captioner.caption(TrainingPicture(path, box=boxes.get(path)))
