"""The part of the Draw tab where a ControlNet holds a drawing to a picture."""

from typing import Any

import gradio as gr

from ..images.control_picture import read_control
from ..images.drawing_settings import SETTINGS, DrawRequest
from ..images.errors import PictureError
from ..service import StudioService
from ..service.messages import by_name
from ..subject.hub_id import is_hub_id
from .from_picture import picture_file
from .setting_control import control_of, shown, value_of


class HeldTo:
    """Its controls.

    Attributes:
        picture: the file that it is held to; taken as it is.
        net: names the ControlNet.
        fields: by the field of `DrawRequest` that each one sets.
    """

    def __init__(self, service: StudioService) -> None:
        with gr.Accordion("Hold it to a picture (ControlNet)", open=False, elem_id="draw-control") as self.box:
            gr.Markdown(
                "A ControlNet holds the drawing to a picture of edges, depths or a pose. It is taken "
                "as it is; other programs make such pictures."
            )
            self.picture = picture_file("Control picture", "draw-control-picture")
            folders = "A folder, a .safetensors file or an id" if service.drawings.folders else "An id"
            self.net = gr.Textbox(
                "",
                label="ControlNet",
                info=f"{folders} on the Hub, made for this base",
                max_length=500,
                elem_id="draw-controlnet",
            )
            self.fields = {
                name: control_of(one, service, "draw") for name, one in SETTINGS.items() if one.of == "control"
            }

    def inputs(self) -> set[Any]:
        """All of it, for an event."""
        return {self.picture, self.net, *self.fields.values()}

    def given(self, values: dict[Any, Any]) -> dict[str, Any]:
        """What a request gets of it: nothing where there is no picture and no ControlNet.

        Raises:
            DatasetError, PictureError: the picture cannot be read, or one of the two is missing.
        """
        net = values[self.net].strip()
        if not values[self.picture] and not net:
            return {}
        if not values[self.picture] or not net:
            raise PictureError("a ControlNet holds the drawing to a control picture; give both, or take out the other")
        with by_name(values[self.picture]):
            control, _ = read_control(values[self.picture], net)
        fields = {name: value_of(SETTINGS[name], values[one]) for name, one in self.fields.items()}
        return {"control": control, **fields}

    def put(self, request: DrawRequest) -> dict[Any, Any]:
        """What to show for the settings of a picture. Which ControlNet was meant by a folder's name, people know."""
        control = request.control
        if control is None:
            return {self.picture: None, self.net: ""}
        news = {self.picture: control.image, self.box: gr.Accordion(open=True)}
        if is_hub_id(control.net):
            news[self.net] = control.net
        for name, one in self.fields.items():
            if (value := getattr(request, name)) is not None:
                news[one] = shown(SETTINGS[name], value)
        return news

    def outputs(self) -> list[Any]:
        """What `put` may change."""
        return [self.box, self.picture, self.net, *self.fields.values()]
