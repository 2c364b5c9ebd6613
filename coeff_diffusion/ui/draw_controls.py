"""The controls of the Draw tab: what they are, what they ask for, and how a picture's settings get back into them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from ..images.drawing_settings import LAYERS, SETTINGS, DrawRequest
from ..service import MAX_SUBJECTS, Drawings, Settings, StudioService
from ..subject.layer_strengths import STRENGTH_REACH, LayerStrengths
from .from_picture import FromPicture
from .held_to import HeldTo
from .refined import Refined
from .setting_control import control_of, shown, value_of

Values = dict[Any, Any]
NOBODY = ("no subject", "")  # a library's subjects have names


@dataclass(frozen=True)
class SubjectRow:
    """One subject of the drawing."""

    box: gr.Row
    use: gr.Checkbox
    name: gr.Dropdown
    strength: gr.Slider


@dataclass(frozen=True)
class Controls:
    """The controls that decide what is drawn.

    Attributes:
        fields: by the field of `DrawRequest` that each one sets.
        layers: by the field of `LayerStrengths`.
    """

    prompt: gr.Textbox
    rows: list[SubjectRow]
    fields: dict[str, Any]
    random_seed: gr.Checkbox
    layers: dict[str, gr.Slider]
    start: FromPicture
    control: HeldTo
    refined: Refined
    styles: gr.Dropdown

    def inputs(self) -> set[Any]:
        """All of them, for an event."""
        of_rows = {control for row in self.rows for control in (row.use, row.name, row.strength)}
        plain = {self.prompt, self.styles, self.random_seed, *self.fields.values(), *self.layers.values()}
        return plain | of_rows | self.start.inputs() | self.control.inputs() | self.refined.inputs()

    def outputs(self) -> list[Any]:
        """What `put` may change."""
        return list(self.inputs() | {*self.start.outputs(), *self.control.outputs(), *self.refined.outputs()})

    def request(self, drawings: Drawings, values: Values) -> DrawRequest:
        """What the controls ask for.

        Raises:
            StudioError: a subject stands in two rows, or a style or wildcard cannot be read.
            DatasetError, PictureError: a picture cannot be read, or something does not go with it or is missing.
        """
        given = {name: value_of(SETTINGS[name], values[control]) for name, control in self.fields.items()}
        if values[self.random_seed]:
            given["seed"] = None
        asked = DrawRequest(
            prompt=values[self.prompt],
            subjects=drawings.strengths((values[r.name], values[r.strength]) for r in self.rows if values[r.use]),
            layers=LayerStrengths(**{name: values[control] for name, control in self.layers.items()}),
            **given,
            **self.start.given(values),
            **self.control.given(values),
            **self.refined.given(values),
        )
        if not asked.has("hires_scale"):  # its other controls show something all the same
            asked = asked.without("hires_scale")
        return drawings.templates.applied(asked, values[self.styles] or ())

    def put(self, settings: Settings, names: Iterable[str]) -> dict[Any, Any]:
        """What to show for the settings of a picture.

        Args:
            names: the subjects of the library.
        """
        chosen = [*settings.subjects.items(), *[("", 1.0)] * MAX_SUBJECTS]
        news: dict[Any, Any] = {}
        for row, (name, strength) in zip(self.rows, chosen, strict=False):
            news |= {row.use: True, row.name: choose(names, name), row.strength: strength}
        request = settings.request
        if request is None:
            return news
        news |= {self.prompt: request.prompt, self.styles: [], self.random_seed: request.seed is None}
        for name, control in self.fields.items():
            if (value := getattr(request, name)) is not None:
                news[control] = shown(SETTINGS[name], value)
        news |= {control: getattr(request.layers, name) for name, control in self.layers.items()}
        return news | self.start.put(request) | self.control.put(request) | self.refined.put(request)


def offer(names: Iterable[str]) -> Any:
    """The choices of a row's subject; what is chosen stays so."""
    return gr.Dropdown(choices=[NOBODY, *names])


def choose(names: Iterable[str], name: str) -> Any:
    """The choices of a row's subject, and the one that is chosen; a subject that is gone is not."""
    names = list(names)
    return gr.Dropdown(choices=[NOBODY, *names], value=name if name in names else "")


def subject_rows(service: StudioService) -> list[SubjectRow]:
    """A row for each subject that can take part; the first one shows, the next ones as they are needed."""
    rows = []
    for number in range(1, MAX_SUBJECTS + 1):
        with gr.Row(visible=number == 1, elem_classes="draw-subject") as box:
            use = gr.Checkbox(
                True,
                label=f"Use {number}",
                info="Takes part",
                min_width=90,
                scale=1,
                visible=False,  # until there is a subject
                elem_id=f"draw-use-{number}",
            )
            name = gr.Dropdown(
                [NOBODY, *service.library.find()],
                value="",
                label=f"Subject {number}",
                info="From the library",
                min_width=190,
                scale=3,
                elem_id=f"draw-subject-{number}",
            )
            strength = gr.Slider(
                *STRENGTH_REACH,
                value=1,
                step=0.05,
                label=f"Strength {number}",
                info="1 as trained, 0 the base",
                min_width=310,
                scale=4,
                visible=False,
                elem_id=f"draw-strength-{number}",
            )
        rows.append(SubjectRow(box, use, name, strength))
    return rows


def style_control() -> gr.Dropdown:
    """The styles of the folder, once the page is loaded; hidden where there are none."""
    return gr.Dropdown(
        [],
        multiselect=True,
        visible=False,
        label="Styles",
        info="From styles.csv: words around the prompt",
        elem_id="draw-styles",
    )


def seed_controls(service: StudioService) -> tuple[gr.Number, gr.Checkbox, gr.Button]:
    """The seed, whether it is random, and the button that takes the last one again."""
    with gr.Row():
        seed = control_of(SETTINGS["seed"], service, "draw", min_width=130)
        with gr.Column(min_width=130):
            random_seed = gr.Checkbox(
                True, label="Random seed", info="Another picture every time", elem_id="draw-random"
            )
            reuse = gr.Button("Reuse last seed", size="sm", elem_id="draw-reuse")
    return seed, random_seed, reuse


def plain_controls(service: StudioService) -> dict[str, Any]:
    """The plain settings, by the field of `DrawRequest` that each sets; seed and adapter have places of their own."""
    found = {"negative_prompt": control_of(SETTINGS["negative_prompt"], service, "draw")}
    aside = ("seed", "adapter_strength", *found)
    grouped = ("start", "control", "refiner")  # they have groups of their own
    others = [
        one for one in SETTINGS.values() if one.label and not (one.fine or one.of in grouped) and one.name not in aside
    ]
    for first in range(0, len(others), 2):  # two in a row
        with gr.Row():
            for one in others[first : first + 2]:
                found[one.name] = control_of(one, service, "draw", min_width=130)
    return found


def fine_controls(service: StudioService) -> tuple[dict[str, gr.Slider], dict[str, Any]]:
    """Where and when subjects act: a strength by kind of layer, and the settings that few people need."""
    with gr.Row():
        layers = {name: control_of(one, service, "draw", min_width=190) for name, one in LAYERS.items()}
    with gr.Row():
        fine = {
            name: control_of(one, service, "draw", min_width=150)
            for name, one in SETTINGS.items()
            if one.label and one.fine and (name != "prompt_2" or name in service.studio.family.drawing)
        }
    return layers, fine
