"""The controls of the Explore tab: what they are, and what they ask for."""

from typing import Any

import gradio as gr

from ..images.drawing_settings import SETTINGS, DrawRequest
from ..service import MAX_ROWS, GridRequest, StudioService, read_strengths
from ..subject.layer_strengths import STRENGTH_REACH
from .setting_control import control_of

Values = dict[Any, Any]
KINDS = [
    ("Subjects × strengths", "subjects"),
    ("Training steps × strengths", "steps"),
    ("Prompts × subjects", "prompts"),
]
FITTING = ("prompt", "subjects", "run", "steps", "strengths", "strength")  # what depends on the kind of grid
PROMPT = "With the words of one subject in it; each subject puts its own in their place"


def grid_controls(service: StudioService) -> dict[str, Any]:
    """What a grid is made of; which of them show depends on its kind."""
    names = list(service.library.find())
    return {
        "kind": gr.Radio(
            KINDS, value="subjects", label="Grid", info="What goes down × what goes across", elem_id="explore-kind"
        ),
        "prompt": gr.Textbox(
            "",
            label="Prompt",
            info=PROMPT,
            placeholder="a photo of sks dog on a beach",
            lines=2,
            elem_id="explore-prompt",
        ),
        "subjects": gr.Dropdown(
            names, label="Subjects", info=f"Up to {MAX_ROWS}", multiselect=True, value=[], elem_id="explore-subjects"
        ),
        "run": gr.Dropdown(
            service.timelines.find(),
            value=None,
            label="Subject",
            info="Those whose training has saved steps",
            visible=False,
            elem_id="explore-run",
        ),
        "steps": gr.Dropdown(
            [],
            value=[],
            label="Training steps",
            info=f"Up to {MAX_ROWS} of those that were saved",
            multiselect=True,
            visible=False,
            elem_id="explore-steps",
        ),
        "strengths": gr.Textbox(
            "0, 0.5, 1, 1.5",
            label="Strengths",
            info="Numbers and commas; 1 is as trained, 0 the base with the class word",
            elem_id="explore-strengths",
        ),
        "strength": gr.Slider(
            *STRENGTH_REACH,
            value=1,
            step=0.05,
            label="Strength",
            info="Of every subject; 1 is as trained",
            visible=False,
            elem_id="explore-strength",
        ),
        "with_base": gr.Checkbox(
            True, label="With the base", info="A first column by the base alone", elem_id="explore-base"
        ),
    }


def fitting(kind: str) -> list[Any]:
    """Show the controls that a kind of grid needs."""
    prompts, steps = kind == "prompts", kind == "steps"
    return [
        gr.Textbox(label="Prompts" if prompts else "Prompt", info=f"One per line. {PROMPT}" if prompts else PROMPT),
        gr.Dropdown(visible=not steps),
        gr.Dropdown(visible=steps),
        gr.Dropdown(visible=steps),
        gr.Textbox(visible=not prompts),
        gr.Slider(visible=prompts),
    ]


def shared_settings(service: StudioService) -> dict[str, Any]:
    """What all cells share, by the field of `DrawRequest` that each control sets."""
    here: dict[str, dict[str, Any]] = {
        "seed": {"info": "One for all cells"},
        "steps": {"elem_id": "explore-denoising"},
        "guidance_scale": {},
        "scheduler": {},
        "negative_prompt": {"info": "What the pictures should not show"},
    }
    return {name: control_of(SETTINGS[name], service, "explore", **changes) for name, changes in here.items()}


def grid_request(given: dict[str, Any], settings: DrawRequest) -> GridRequest:
    """The controls of the tab as a request; those that the kind of grid does not show do not count."""
    kind, lines = given["kind"], [line.strip() for line in given["prompt"].splitlines() if line.strip()]
    run = given["run"]
    return GridRequest(
        kind,
        subjects=given["subjects"] if kind != "steps" else [run] if run else [],
        strengths=[given["strength"]] if kind == "prompts" else read_strengths(given["strengths"]),
        prompts=lines if kind == "prompts" else ["\n".join(lines)] if lines else [],
        steps=given["steps"] if kind == "steps" else (),
        with_base=given["with_base"],
        settings=settings,
    )
