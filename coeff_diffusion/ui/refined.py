"""The part of the Draw tab where a refiner takes the last noise out of a drawing."""

from typing import Any

import gradio as gr

from ..images.drawing_settings import SETTINGS, DrawRequest
from ..images.refiner_name import RefinerName
from ..service import StudioService
from ..subject.hub_id import is_hub_id
from .setting_control import control_of, shown, value_of

SWITCH = SETTINGS["refiner_switch_at"]


class Refined:
    """Its controls, which only show where the base is of a kind that has a refiner.

    Attributes:
        name: names the refiner; with none the rest means nothing.
        switch: from where on it draws.
    """

    def __init__(self, service: StudioService) -> None:
        has_one = bool(service.studio.family.refiner)
        with gr.Accordion("Finish it with a refiner", open=False, visible=has_one, elem_id="draw-refined") as self.box:
            folders = "A folder, a .safetensors file or an id" if service.drawings.folders else "An id"
            self.name = gr.Textbox(
                "",
                label="Refiner",
                info=f"{folders} on the Hub; it takes the last noise out, and draws no subject",
                max_length=500,
                elem_id="draw-refiner",
            )
            self.switch = control_of(SWITCH, service, "draw")

    def inputs(self) -> set[Any]:
        """All of it, for an event."""
        return {self.name, self.switch}

    def given(self, values: dict[Any, Any]) -> dict[str, Any]:
        """What a request gets of it: nothing where no refiner is named."""
        name = values[self.name].strip()
        return {"refiner": RefinerName(name), SWITCH.name: value_of(SWITCH, values[self.switch])} if name else {}

    def put(self, request: DrawRequest) -> dict[Any, Any]:
        """What to show for the settings of a picture. Which one was meant by a folder's name, people know."""
        refiner = request.refiner
        if refiner is None:
            return {self.name: ""}
        news = {self.name: refiner.name if is_hub_id(refiner.name) else "", self.box: gr.Accordion(open=True)}
        if request.refiner_switch_at is not None:
            news[self.switch] = shown(SWITCH, request.refiner_switch_at)
        return news

    def outputs(self) -> list[Any]:
        """What `put` may change."""
        return [self.box, self.name, self.switch]
