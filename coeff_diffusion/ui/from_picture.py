"""The part of the Draw tab where a drawing starts from a picture, and where people paint what of it changes."""

from typing import Any

import gradio as gr
from gradio.data_classes import ImageData

from ..images.drawing_settings import SETTINGS, DrawRequest
from ..images.errors import PictureError
from ..images.photo import DatasetError
from ..images.start_picture import StartPicture, read_mask, read_start
from ..inference.from_picture import size_from
from ..service import StudioService
from ..service.messages import by_name
from .common import QUIET
from .paint import canvas, paint_editor, painted
from .setting_control import control_of


class FromPicture:
    """Its controls.

    Attributes:
        picture: the file to start from; with none the rest means nothing.
        paint: what is painted over it is drawn anew.
        mask: a file that says so instead, and what a picture that was drawn so brought along.
        embed: whether the file goes into the pictures that are drawn from it.
        fields: by the field of `DrawRequest` that each one sets.
        sides: the controls of width and height, once it is wired.
    """

    def __init__(self, service: StudioService) -> None:
        self.service = service
        self.sides: list[Any] = []
        with gr.Accordion("Start from a picture", open=False, elem_id="draw-from") as self.box:
            self.picture = picture_file("Picture", "draw-from-picture")
            self.fields = {
                one.name: control_of(one, service, "draw")
                for one in SETTINGS.values()
                if one.of == "start" and one.label
            }
            gr.Markdown("Paint over what shall change; with nothing painted, all of it does.")
            self.paint = paint_editor("What changes", "draw-paint")
            with gr.Accordion("A mask from a file", open=False, elem_id="draw-mask-file"):
                self.mask = picture_file("Mask: white changes; what is painted wins", "draw-mask")
            self.embed = gr.Checkbox(
                True,
                label="Put it into what is drawn",
                info="A control picture, too; that can be drawn again from its file alone",
                elem_id="draw-from-embed",
            )

    def inputs(self) -> set[Any]:
        """All of it, for an event."""
        return {self.picture, self.paint, self.mask, self.embed, *self.fields.values()}

    def given(self, values: dict[Any, Any]) -> dict[str, Any]:
        """What a request gets of it: nothing where there is no picture.

        Raises:
            DatasetError, PictureError: a file cannot be read, or mask and picture do not fit each other.
        """
        if not values[self.picture]:
            if values[self.mask]:
                raise PictureError("a mask says what of a picture changes; put the picture in, too, or take it out")
            return {}
        with by_name(*filter(None, (values[self.picture], values[self.mask]))):
            start, _ = read_start(values[self.picture])
            mask = painted(values[self.paint], start.image.size)
            if mask is None and values[self.mask]:
                mask = read_mask(values[self.mask])
        found = {name: values[control] for name, control in self.fields.items()}
        if mask is None:
            del found["mask_blur"]
        return {"start": StartPicture(start.image, mask), **found}

    def put(self, request: DrawRequest) -> dict[Any, Any]:
        """What to show for the settings of a picture."""
        start, news = request.start, dict[Any, Any]({self.paint: None, self.picture: None, self.mask: None})
        if start is None:
            return news
        news |= {self.picture: start.image, self.box: gr.Accordion(open=True)}
        if start.mask is not None:
            news |= {self.mask: start.mask}
        for name, control in self.fields.items():
            if (value := getattr(request, name)) is not None:
                news[control] = value
        return news

    def outputs(self) -> list[Any]:
        """What `put` may change."""
        return [self.box, self.picture, self.paint, self.mask, *self.fields.values()]

    def wire(self, sides: list[Any]) -> None:
        """A new picture is there to be painted over, and drawings get its shape.

        Args:
            sides: the controls of width and height.
        """
        self.sides = sides
        self.picture.change(self._canvas, self.picture, self.paint, **QUIET)
        self.picture.upload(self.size_of, self.picture, sides, **QUIET)

    def _canvas(self, file: str | None) -> Any:
        try:
            start = None if not file else read_start(file)[0]
        except DatasetError:  # said when it is drawn
            start = None
        return canvas(None if start is None else start.image)

    def size_of(self, file: str) -> list[Any]:
        """Width and height to draw at for a picture to start from."""
        try:
            start, _ = read_start(file)
        except DatasetError:  # said when it is drawn
            return [gr.skip(), gr.skip()]
        return [*size_from(start, self.service.studio.size, self.service.studio.multiple)]


def picture_file(label: str, elem_id: str) -> Any:
    """A picture that stays the very file it came as, read or not: what is wrong with it is said when it is drawn."""
    picture: Any = gr.Image(
        label=label, type="filepath", image_mode=None, format="png", sources=["upload", "clipboard"],
        height=220, buttons=[], elem_id=elem_id,
    )  # fmt: skip
    as_gradio_does = picture.preprocess

    def preprocess(given: ImageData | None) -> Any:
        """Gradio would open the file, and answer every event that reads it with the names of its own parts."""
        return given.path if given is not None and given.path else as_gradio_does(given)

    picture.preprocess = preprocess
    return picture
