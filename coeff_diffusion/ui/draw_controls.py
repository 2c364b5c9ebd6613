"""The controls of the Draw tab: what they are, what they ask for, and how a picture's settings get back into them."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import gradio as gr

from ..inference.request import MAX_SEED, DrawRequest, LayerStrengths
from ..service import MAX_PICTURES, MAX_SUBJECTS, REACH, Drawings, Settings, StudioService, reach_of_sides

Values = dict[Any, Any]
NOBODY = ("no subject", "")  # a library's subjects have names
STRENGTH: dict[str, Any] = {"minimum": REACH["strength"][0], "maximum": REACH["strength"][1], "step": 0.05}


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
        span: `begin` and `end` of the request, in percent.
    """

    prompt: gr.Textbox
    rows: list[SubjectRow]
    fields: dict[str, Any]
    random_seed: gr.Checkbox
    layers: dict[str, gr.Slider]
    span: dict[str, gr.Slider]

    def inputs(self) -> set[Any]:
        """All of them, for an event."""
        of_rows = {control for row in self.rows for control in (row.use, row.name, row.strength)}
        others = {*self.fields.values(), *self.layers.values(), *self.span.values()}
        return {self.prompt, self.random_seed} | of_rows | others

    def request(self, drawings: Drawings, values: Values) -> DrawRequest:
        """What the controls ask for.

        Raises:
            StudioError: a subject stands in two rows.
        """
        given = {name: values[control] for name, control in self.fields.items()}
        if values[self.random_seed]:
            given["seed"] = None
        return DrawRequest(
            prompt=values[self.prompt],
            subjects=drawings.strengths((values[r.name], values[r.strength]) for r in self.rows if values[r.use]),
            layers=LayerStrengths(**{name: values[control] for name, control in self.layers.items()}),
            **{name: values[control] / 100 for name, control in self.span.items()},
            **given,
        )

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
        news |= {self.prompt: request.prompt, self.random_seed: request.seed is None}
        for name, control in self.fields.items():
            if (value := getattr(request, name)) is not None:
                news[control] = value
        news |= {control: getattr(request.layers, name) for name, control in self.layers.items()}
        news |= {control: round(100 * getattr(request, name), 6) for name, control in self.span.items()}
        return news


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
                **STRENGTH,
                value=1,
                label=f"Strength {number}",
                info="1 as trained, 0 off",
                min_width=310,
                scale=4,
                visible=False,
                elem_id=f"draw-strength-{number}",
            )
        rows.append(SubjectRow(box, use, name, strength))
    return rows


def seed_controls() -> tuple[gr.Number, gr.Checkbox, gr.Button]:
    """The seed, whether it is random, and the button that takes the last one again."""
    with gr.Row():
        seed = gr.Number(
            0,
            label="Seed",
            info="The same seed draws the same picture",
            precision=0,
            minimum=0,
            maximum=MAX_SEED,
            min_width=130,
            elem_id="draw-seed",
        )
        with gr.Column(min_width=130):
            random_seed = gr.Checkbox(
                True, label="Random seed", info="Another picture every time", elem_id="draw-random"
            )
            reuse = gr.Button("Reuse last seed", size="sm", elem_id="draw-reuse")
    return seed, random_seed, reuse


def request_fields(service: StudioService) -> dict[str, Any]:
    """The plain settings, by the field of `DrawRequest` that each one sets; the seed has controls of its own."""
    defaults, samplers = DrawRequest(""), service.studio.schedulers
    least, most, multiple = reach_of_sides(service.studio)
    sides: dict[str, Any] = {"minimum": least, "maximum": most, "step": multiple, "precision": 0, "min_width": 130}
    width, height = service.studio.size
    found: dict[str, Any] = {
        "negative_prompt": gr.Textbox(
            "", label="Negative prompt", info="What the picture should not show", elem_id="draw-negative"
        )
    }
    with gr.Row():
        found["width"] = gr.Slider(
            value=width, label="Width", info=f"Pixels; {width} is the base's own", elem_id="draw-width", **sides
        )
        found["height"] = gr.Slider(
            value=height, label="Height", info=f"Pixels; {height} is the base's own", elem_id="draw-height", **sides
        )
    with gr.Row():
        found["batch_size"] = gr.Slider(
            1,
            MAX_PICTURES,
            value=defaults.batch_size,
            step=1,
            precision=0,
            label="Pictures",
            info="Drawn at once; seeds count up",
            min_width=130,
            elem_id="draw-pictures",
        )
        found["steps"] = gr.Slider(
            *REACH["steps"],
            value=defaults.steps,
            step=1,
            precision=0,
            label="Steps",
            info="More take longer and look cleaner",
            min_width=130,
            elem_id="draw-steps",
        )
    with gr.Row():
        found["guidance_scale"] = gr.Slider(
            *REACH["guidance"],
            value=defaults.guidance_scale,
            step=0.1,
            label="Guidance",
            info="How closely to follow the prompt",
            min_width=130,
            elem_id="draw-guidance",
        )
        found["scheduler"] = gr.Dropdown(
            samplers,
            value=samplers[0],
            label="Sampler",
            info=f"{samplers[0]} is the base's own",
            min_width=130,
            elem_id="draw-sampler",
        )
    return found


def fine_controls() -> tuple[dict[str, gr.Slider], dict[str, gr.Slider]]:
    """Where and when subjects act: a strength by kind of layer, and the part of denoising."""
    hints = {
        "self_attention": ("Self-attention", "Layers where the picture looks at itself"),
        "cross_attention": ("Cross-attention", "Layers where it looks at the prompt"),
        "down": ("Down blocks", "From fine to coarse"),
        "mid": ("Middle block", "The coarsest"),
        "up": ("Up blocks", "From coarse to fine"),
    }
    assert list(hints) == [one.name for one in fields(LayerStrengths)]
    with gr.Row():
        layers = {
            name: gr.Slider(
                **STRENGTH, value=1, label=label, info=info, min_width=190, elem_id=f"draw-{name.replace('_', '-')}"
            )
            for name, (label, info) in hints.items()
        }
    with gr.Row():
        span = {
            "begin": gr.Slider(
                0, 100, value=0, step=1, label="Acts from %", info="0: from pure noise on", min_width=150,
                elem_id="draw-begin",
            ),
            "end": gr.Slider(
                0, 100, value=100, step=1, label="Acts to %", info="100: until it is done", min_width=150,
                elem_id="draw-end",
            ),
        }  # fmt: skip
    return layers, span
