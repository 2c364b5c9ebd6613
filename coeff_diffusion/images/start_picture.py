"""The picture that a drawing starts from (image to image), and what of it is drawn anew (inpainting).

What is drawn from one carries it, so that it can be drawn again: a chunk of the kind `coEi` holds it as a PNG of its
own, at the size it was drawn at, the mask as opacity.
"""

import hashlib
import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Self

from PIL import Image, ImageOps

from ..subject.user_file import user_path
from .errors import PictureError
from .photo import read_image, read_photo
from .png import PngError, pixels_alone, read_chunks

MAX_BYTES = 32 * 2**20
"""Of the picture in a picture: 2,048 pixels square of a photo have 8 MB."""
MAX_PIXELS = 4096 * 4096


@dataclass(frozen=True)
class StartPicture:
    """What a drawing starts from.

    Attributes:
        image: mode RGB.
        mask: mode L, of the same size: white is drawn anew, black stays as it is; None draws all of it anew.

    Raises:
        PictureError: they are of different sizes, or nothing would be drawn anew.
    """

    image: Image.Image
    mask: Image.Image | None = None

    chunk: ClassVar[bytes] = b"coEi"
    called: ClassVar[str] = "a picture to start from"
    carried: ClassVar[str] = "the picture that it was drawn from"

    def __post_init__(self) -> None:
        if self.mask is None:
            return
        if self.mask.size != self.image.size:
            mask, image = (f"{one.width} x {one.height}" for one in (self.mask, self.image))
            raise PictureError(f"the mask has {mask} pixels, expected {image} as the picture has")
        if self.mask.getextrema()[1] == 0:
            raise PictureError("the mask is black all over, so nothing would be drawn anew; what is to change is white")

    def __hash__(self) -> int:
        return hash(self.digits)

    def fitted(self, size: tuple[int, int]) -> Self:
        """Cut to the shape of this width and height, in the middle, and scaled; as it is where it has this size.

        Raises:
            PictureError: all of what is to be drawn anew would be cut off.
        """
        if self.image.size == size:
            return self
        image = ImageOps.fit(self.image, size, Image.Resampling.LANCZOS)
        mask = None if self.mask is None else ImageOps.fit(self.mask, size, Image.Resampling.BILINEAR)
        if mask is not None and mask.getextrema()[1] == 0:
            raise PictureError(
                f"what is to be drawn anew lies beside the middle that {size[0]} x {size[1]} pixels keep of the "
                "picture; draw in the shape of the picture, or cut it yourself"
            )
        return replace(self, image=image, mask=mask)

    @property
    def digits(self) -> str:
        """12 hex digits that tell it from any other."""
        found = hashlib.sha256(repr(self.image.size).encode() + self.image.tobytes())
        found.update(b"" if self.mask is None else self.mask.tobytes())
        return found.hexdigest()[:12]

    def chunks(self) -> list[tuple[bytes, bytes]]:
        """What carries it in a PNG: kind and content; nothing where it has more pixels than are read again."""
        if self.image.width * self.image.height > MAX_PIXELS:
            return []
        whole, data = self.image.copy(), io.BytesIO()
        if self.mask is not None:
            whole.putalpha(self.mask)
        whole.save(data, format="PNG")
        return [(self.chunk, data.getvalue())]

    @classmethod
    def read(cls, source: Path | bytes) -> Self | None:
        """The one that a PNG carries, a file or its content; None where it carries none.

        Raises:
            PictureError: damaged, several, or of more bytes or pixels than a drawing has.
        """
        name = "the picture" if isinstance(source, bytes) else str(source)
        try:
            found = read_chunks(source, (cls.chunk,), MAX_BYTES, 1)
            if not found:
                return None
            # Nothing but pixels: texts and profiles that a stranger put there would be inflated, too.
            with Image.open(io.BytesIO(pixels_alone(found[0][1], MAX_BYTES)), formats=("PNG",)) as inside:
                if inside.width * inside.height > MAX_PIXELS or inside.mode not in ("RGB", "RGBA"):
                    raise PngError(f"it has {inside.width} x {inside.height} pixels of the mode {inside.mode}")
                inside.load()
                mask = inside.getchannel("A") if inside.mode == "RGBA" else None
                return cls(inside.convert("RGB"), mask)
        except Exception as error:  # damaged files make Pillow's decoders raise anything
            raise PictureError(f"{name} carries {cls.called} that cannot be read: {error}") from error


def read_start(image: str | Path, mask: str | Path | None = None) -> tuple[StartPicture, list[str]]:
    """A picture to start from, of any kind that is read here, with its mask, and notes for the user.

    Raises:
        DatasetError: one of them cannot be read. PictureError: they do not fit each other.
    """
    photo = read_photo(user_path(image))
    notes = [f"{image}: {note}" for note in photo.notes]
    return StartPicture(photo.image, None if mask is None else read_mask(mask)), notes


def read_mask(path: str | Path) -> Image.Image:
    """A mask, mode L; transparent is white.

    Raises:
        DatasetError: it cannot be read.
    """
    return read_image(user_path(path)).convert("L")
