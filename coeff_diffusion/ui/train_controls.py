"""What someone says about a training: pictures, names, how long, and the rest in a fold-out."""

from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

import gradio as gr

from ..service import StudioService, TrainingForm
from ..service.adapter_choices import BROUGHT, adapter_choices, offered
from ..service.presets import PAGE, PRESETS
from ..service.training_form import SETTINGS
from ..training.config import TrainConfig, field_help, flag_of
from .common import QUIET, or_refusal
from .train_pictures import Pictures

Values = dict[Any, Any]


class Controls:
    """The left half of the Train tab."""

    def __init__(self, service: StudioService) -> None:
        self.service = service
        self.pictures = Pictures(service)
        self.name = gr.Textbox(
            label="Name", info="What the library calls the subject", placeholder="rex", elem_id="train-name"
        )
        self.class_word = gr.Textbox(
            label="Class word",
            info="What kind of thing it is, in a word the base knows",
            placeholder="dog",
            elem_id="train-class-word",
        )
        self.preset = gr.Radio(
            list(PRESETS),
            value="balanced",
            label="How long",
            info="A longer training can be stopped at any time and keeps what it has",
            elem_id="train-preset",
        )
        self.settings: dict[str, Any] = {}

    def build_more(self) -> None:
        """The fold-out, wherever the caller is on the page."""
        values = {**vars(TrainConfig()), **PAGE}
        with gr.Accordion("More", open=False, elem_id="train-more"):
            self.settings = {name: _control(name, values[name]) for name in SETTINGS}

    @property
    def all(self) -> set[Any]:
        """Every control that a request is made of."""
        return {*self.pictures.inputs(), self.name, self.class_word, self.preset, *self.settings.values()}

    def request(self, values: Values) -> TrainingForm:
        """What the controls say."""
        return TrainingForm(
            self.pictures.given(values),
            values[self.name] or "",
            values[self.class_word] or "",
            values[self.preset],
            {name: None if values[control] == "" else values[control] for name, control in self.settings.items()},
            self.pictures.captions(values),
            self.pictures.boxes(values),
            self.pictures.masks(values),
        )

    def wire(self, tab: gr.Tab) -> None:
        """Look at pictures as they are dropped, say how long the presets take, and let them fill the fold-out."""
        crop, seed = self.settings["center_crop"], self.settings["seed"]
        of_presets = {key for changes in PRESETS.values() for key in changes}
        filled = [name for name in SETTINGS if name in of_presets]

        def offer() -> Any:
            return gr.Radio([(text, name) for name, text in or_refusal(self.service.training_queue.offers).items()])

        def fill(preset: str) -> list[Any]:
            values = {**vars(TrainConfig()), **PRESETS[preset]}
            return [values[name] for name in filled]

        self.pictures.wire(crop, seed, self.class_word)

        adapters_here = cache(lambda: adapter_choices(self.service.studio.pipe))

        def adapters() -> Any:
            return gr.Dropdown(choices=adapters_here())

        tab.select(offer, None, self.preset, **QUIET)
        tab.select(adapters, None, self.settings["with_adapter"], **QUIET)
        self.preset.input(fill, self.preset, [self.settings[name] for name in filled], **QUIET)


def labels() -> dict[str, str]:
    """What the page calls the settings of a training, by their flags."""
    return {flag_of(name): name.replace("_", " ") for name in field_help()}


def _control(name: str, value: Any) -> Any:
    """The control of a setting: its type decides which, its own help says what it does."""
    label = labels()[flag_of(name)].capitalize()
    shared: dict[str, Any] = {"label": label, "info": field_help()[name], "elem_id": f"train-{name.replace('_', '-')}"}
    if name == "with_adapter":  # what each costs is said when someone comes to the tab
        shared["info"] += f" {BROUGHT}"
        return gr.Dropdown([("none", ""), *map(str, offered())], value="", allow_custom_value=True, **shared)
    hint = get_type_hints(TrainConfig)[name]
    if hint is bool:
        return gr.Checkbox(value, **shared)
    if get_origin(hint) is Literal:
        return gr.Dropdown(list(get_args(hint)), value=value, **shared)
    if hint in (int, float):
        return gr.Number(value, precision=0 if hint is int else None, **shared)
    return gr.Textbox(value or "", **shared)
