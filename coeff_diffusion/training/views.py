"""Pictures -> the parts of them that training sees: read, scaled, cut out and, where they have masks, weighed.

Shapes: W, H the size of a view in pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from ..families.family import Framing
from ..images.photo import DatasetError, read_photo
from ..images.shapes import Size, nearest_size
from .crop_boxes import cropped
from .masks import mask_of, view_weights
from .photos import choose_views, scale, view_tensor
from .picture_folder import TrainingPicture
from .seeds import mixed_seed


@dataclass(frozen=True)
class Views:
    """What training sees of one picture.

    Attributes:
        pixels: `[views, 3, H, W]` in [-1, 1].
        weights: how much each pixel counts, `[views, 1, H, W]` in [0, 1]; None where all do.
        framings: what of the picture each one is.
        notes: what was done to the picture that its owner may not expect.
    """

    pixels: Tensor
    weights: Tensor | None
    framings: tuple[Framing, ...]
    notes: tuple[str, ...]


class PictureViews(Dataset[Views]):
    """Each item is all views of one picture; the seed decides them, picture by picture.

    Args:
        masks: use the masks of pictures that have one, or are transparent in parts.
        sizes: those that pictures may have, each takes the nearest; by default the square of the resolution.
    """

    def __init__(
        self,
        pictures: Sequence[TrainingPicture],
        resolution: int,
        center_crop: bool,
        random_flip: bool,
        count: int,
        seed: int,
        masks: bool = True,
        sizes: Sequence[Size] = (),
    ) -> None:
        self.pictures, self.masks = list(pictures), masks
        self.sizes = list(sizes) or [(resolution, resolution)]
        self.center_crop, self.random_flip = center_crop, random_flip
        self.count, self.seed = count, seed

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Views:
        picture = self.pictures[index]
        photo = read_photo(picture.path)
        mask = mask_of(photo, picture.path, picture.mask) if self.masks else None
        seen = _used(photo.image, picture)
        target = nearest_size(seen.size, self.sizes)
        image = scale(seen, target)
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, index))
        views = choose_views(image.size, target, self.center_crop, self.random_flip, self.count, generator)
        notes, weights = list(photo.notes), None
        if mask is not None:
            mask = _used(mask, picture)
            scaled = scale(mask, target, Image.Resampling.BILINEAR)  # never rings: black stays black
            weighed = [(view, view_weights(scaled, target, view)) for view in views]
            weighed = [(view, weight) for view, weight in weighed if weight.any()]  # the others would teach nothing
            if not weighed:
                raise DatasetError(
                    f"{picture.path}: no part that training looks at shows what the mask keeps; crop the picture "
                    "around the subject"
                )
            views, weights = [view for view, _ in weighed], torch.stack([weight for _, weight in weighed])
            notes += ["only what is not transparent is learned"] * (picture.mask is None)
        elif photo.alpha is not None:
            notes.append("what is transparent is learned as white")
        pixels = torch.stack([view_tensor(image, target, view) for view in views])
        lefts = [
            image.width - target[0] - view.left if view.flip else view.left for view in views
        ]  # of the mirrored one
        framings = [Framing(seen.size, (left, view.top), target) for view, left in zip(views, lefts, strict=True)]
        return Views(pixels, weights, tuple(framings), tuple(f"{picture.path.name}: {note}" for note in notes))


def _used(image: Image.Image, picture: TrainingPicture) -> Image.Image:
    """What is used of a picture, or of its mask, and as it is used."""
    part = cropped(image, picture.box)
    return ImageOps.mirror(part) if picture.mirrored else part
