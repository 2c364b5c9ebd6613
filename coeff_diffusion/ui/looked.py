"""What a browser knows of the pictures that were dropped for a training: the state behind the Train tab's editor."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image

from ..service.crop_editor import Corner, box_between, read_box, write_box
from ..training.crop_boxes import Box
from .paint import painted


@dataclass(frozen=True)
class Looked:
    """What a browser knows of its pictures.

    Attributes:
        paths: in the order they are shown in.
        captions: what their files say.
        written: what was written on the page instead.
        chosen: the one that is looked at.
        boxes: the parts of pictures that are used.
        corner: of a box in the chosen one, of which the opposite corner is still to be clicked.
        masks: what was painted over pictures, mode L: white counts.
        painting: the one that is being painted over.
    """

    paths: tuple[str, ...] = ()
    captions: dict[str, str] = field(default_factory=dict)
    written: dict[str, str] = field(default_factory=dict)
    chosen: str | None = None
    boxes: dict[str, Box] = field(default_factory=dict)
    corner: Corner | None = None
    masks: dict[str, Image.Image] = field(default_factory=dict)
    painting: str | None = None

    def holding(self, paths: Collection[str], captions: dict[str, str]) -> "Looked":
        """The same of these pictures alone, which may have come or gone, with what their files say."""
        return replace(
            self,
            paths=tuple(paths),
            captions=captions,
            written={path: words for path, words in self.written.items() if path in paths},
            chosen=self.chosen if self.chosen in paths else None,
            boxes={path: box for path, box in self.boxes.items() if path in paths},
            masks={path: mask for path, mask in self.masks.items() if path in paths},
            painting=self.painting if self.painting in paths else None,
        )

    def clicked(self, corner: Corner) -> "Looked":
        """After a click at a corner of a box in the chosen picture, its first or the opposite one.

        Raises:
            StudioError: the box between both holds nothing.
        """
        assert self.chosen is not None
        if self.corner is None:
            return replace(self, corner=corner)
        return replace(self, boxes={**self.boxes, self.chosen: box_between(self.corner, corner)}, corner=None)

    def with_words(self, text: str | None) -> dict[str, str]:
        """What is written of all, where this stands in the field of the chosen one now."""
        if self.chosen is None or (text or "") == self.words(self.chosen):
            return self.written
        return {**self.written, self.chosen: text or ""}

    def with_box(self, text: str | None) -> dict[str, Box]:
        """The parts of all, where this stands in the field of the chosen one now. Raises StudioError: it is none."""
        if self.chosen is None or (text or "") == write_box(self.boxes.get(self.chosen)):
            return self.boxes
        others = {path: box for path, box in self.boxes.items() if path != self.chosen}
        box = read_box(text or "")
        return others if box is None else {**others, self.chosen: box}

    def with_mask(self, drawn: dict[str, Any] | None) -> dict[str, Image.Image]:
        """The masks of all, where this is in the editor now."""
        if self.painting is None or drawn is None or drawn["background"] is None:
            return self.masks
        mask = painted(drawn, drawn["background"].size)
        return self.masks if mask is None else {**self.masks, self.painting: mask}

    def words(self, path: str) -> str:
        """What is said of a picture."""
        return self.written.get(path, self.captions.get(path, ""))
