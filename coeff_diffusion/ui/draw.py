"""The Draw tab: subjects, a prompt, a button; the base and the subject side by side."""

from typing import Any

import gradio as gr

from ..drawing import MAX_SEED, DrawProgress, DrawRequest
from ..service import StudioService
from .common import QUIET, shown, told

MAX_SUBJECTS = 4
MAX_PICTURES = 4
Values = dict[Any, Any]


def build(service: StudioService, page: gr.Blocks, tab: gr.Tab) -> None:
    """Put the tab's controls on the page and wire them to the service."""
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            prompt = gr.Textbox("", label="Prompt", lines=2, placeholder="a sks dog on a beach", autofocus=True)
            subjects = gr.Dropdown(
                label="Subjects",
                info=f"Up to {MAX_SUBJECTS}, from the folder {service.library.folder}",
                choices=list(service.library.find()),
                multiselect=True,
                max_choices=MAX_SUBJECTS,
            )
            strengths = [gr.Slider(0, 2, value=1, step=0.05, visible=False) for _ in range(MAX_SUBJECTS)]
            chosen = gr.State([])  # the names the sliders stand for, in their order
            triggers = gr.Textbox(label="Called up by", interactive=False, visible=False)
            upload = gr.UploadButton("Add a subject's file", file_types=[".safetensors"], size="sm")
            button = gr.Button("Draw", variant="primary")
            with gr.Accordion("More", open=False):
                fields = _fields(service)
                random_seed, compare = _switches()
        with gr.Column(scale=3, min_width=320):
            with gr.Row():
                base = _gallery("Base", visible=False)
                drawn = _gallery("Drawn")
            status = gr.Textbox(label=f"Saved in {service.output_dir}", interactive=False, lines=2)

    def offer() -> Any:
        return gr.Dropdown(choices=list(service.library.find()))

    def show(values: Values) -> list[Any]:
        """A strength for each chosen subject, which stays its own when others come and go, and their triggers."""
        names = values[subjects]
        known = _strengths(values[chosen], values, strengths)
        words = "\n".join(told(service.drawings.describe, name) for name in names)
        rows = [gr.Slider(label=f"Strength of {name}", value=known.get(name, 1), visible=True) for name in names]
        rows += [gr.Slider(visible=False)] * (MAX_SUBJECTS - len(names))
        return [*rows, gr.Textbox(words, visible=bool(names), lines=max(1, len(names))), names]

    def add(file: str, names: list[str]) -> Any:
        name = told(service.library.add, file)
        return gr.Dropdown(choices=list(service.library.find()), value=[*names, name][-MAX_SUBJECTS:])

    def press(values: Values, progress: gr.Progress = gr.Progress()) -> list[Any]:  # noqa: B008 - how gradio asks for it
        def on_step(step: DrawProgress) -> None:
            progress((step.step, step.total), desc="drawing", unit="steps")

        weights = _strengths(values[subjects], values, strengths)
        more = {name: values[control] for name, control in fields.items()}
        if values[random_seed]:
            more["seed"] = None
        request = DrawRequest(prompt=values[prompt], subjects=weights, **more)
        drawing = told(service.drawings.draw, request, values[compare], on_step)
        for note in drawing.notes:
            gr.Warning(note)
        return [
            gr.Gallery(shown(drawing.base), visible=bool(drawing.base)),
            gr.Gallery(shown(drawing.pictures), label=" + ".join(weights) or "Drawn"),
            "\n".join(path.name for path in drawing.files),
            drawing.pictures[0].seed,
        ]

    page.load(offer, None, subjects, **QUIET)
    tab.select(offer, None, subjects, **QUIET)
    subjects.focus(offer, None, subjects, **QUIET)
    subjects.change(show, {subjects, chosen, *strengths}, [*strengths, triggers, chosen], **QUIET)
    upload.upload(add, [upload, subjects], subjects, **QUIET)
    gr.on(
        [button.click, prompt.submit],
        press,
        {prompt, subjects, *strengths, *fields.values(), random_seed, compare},
        [base, drawn, status, fields["seed"]],
        api_name="draw",
        concurrency_id="draw",
        show_progress_on=[drawn],
    )


def _fields(service: StudioService) -> dict[str, Any]:
    """The controls in the fold-out, by the field of `DrawRequest` that each one sets."""
    defaults = DrawRequest("")
    samplers = service.studio.schedulers
    return {
        "negative_prompt": gr.Textbox("", label="Negative prompt", info="What the picture should not show"),
        "seed": gr.Number(
            0, label="Seed", info="The same seed draws the same picture", precision=0, minimum=0, maximum=MAX_SEED
        ),
        "batch_size": gr.Slider(1, MAX_PICTURES, value=defaults.batch_size, step=1, precision=0, label="Pictures"),
        "steps": gr.Slider(1, 100, value=defaults.steps, step=1, precision=0, label="Steps"),
        "guidance_scale": gr.Slider(
            1, 20, value=defaults.guidance_scale, step=0.5, label="Guidance", info="How closely to follow the prompt"
        ),
        "scheduler": gr.Dropdown(label="Sampler", choices=samplers, value=samplers[0]),
    }


def _switches() -> tuple[gr.Checkbox, gr.Checkbox]:
    return (
        gr.Checkbox(True, label="Random seed", info="Another picture every time"),
        gr.Checkbox(True, label="Beside the base", info="Draw with and without the subjects, from the same noise"),
    )


def _strengths(names: list[str], values: Values, sliders: list[gr.Slider]) -> dict[str, float]:
    """The n-th slider for the n-th name; further sliders are hidden."""
    return {name: values[slider] for name, slider in zip(names, sliders, strict=False)}


def _gallery(label: str, visible: bool = True) -> gr.Gallery:
    return gr.Gallery(
        label=label,
        visible=visible,
        format="png",
        columns=2,
        height=420,
        object_fit="contain",
        interactive=False,
        buttons=["download", "fullscreen"],
    )
