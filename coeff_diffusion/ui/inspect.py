"""The Inspect tab: a subject's coefficients in charts, and where a word acts in a picture."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import gradio as gr

from ..drawing import MAX_SEED, DrawCancelled, DrawRequest
from ..service import Glimpse, StudioService, WordView
from .common import QUIET, REFUSALS, follow, refusal, said, shown
from .draw_controls import NOBODY, offer

READING = """**How to read the squares.** Each is one attention layer of the base: on its way down, in the middle, up.
“down 1” is `down_blocks.1`; a, b and c are the attentions of one block. *Self*: the picture attends to itself;
*cross*: to the prompt. A row is the head that receives, a column the head whose attention map it uses. White leaves
the base as it is, red adds more of that map, blue takes some away. The bars sum up each block: the longer, the further
from the base."""
MAPS = """**How to read the maps.** How much each place of the picture attends to the word: the mean over the steps, the
heads and the layers of one resolution. *Before*: the base's own maps in this very drawing. *After*: recombined by the
subject; these may be below 0 or above 1. *Difference*: red where the subject attends more to the word, blue where
less."""
# Below the label and the buttons, which would hide the head of a chart.
CSS = """
.inspect-chart .image-container { padding-top: 40px; height: auto; }
"""
Values = dict[Any, Any]
Update = dict[Any, Any]


def build(service: StudioService, page: gr.Blocks, tab: gr.Tab) -> None:
    """Put the tab's controls on the page and wire them to the service."""
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            subject = gr.Dropdown(
                [NOBODY, *service.library.find()],
                value="",
                label="Subject",
                info="Whose coefficients to look at",
                elem_id="inspect-subject",
            )
            about = gr.HTML(said("Choose a subject to see what it changes in the base."), elem_id="inspect-about")
            gr.Markdown(READING)
            norms = _chart("Norms", "inspect-norms", "Bars of the norm of the coefficients in each block")
        with gr.Column(scale=3, min_width=320):
            heat = _chart("Coefficients", "inspect-coefficients", "Heat maps of the coefficients, one for each layer")
    gr.Markdown("### Where a word acts")
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            prompt, word, settings = _request_controls()
            with gr.Row():
                button = gr.Button("Draw and look", variant="primary", scale=3, min_width=150, elem_id="inspect-button")
                cancel = gr.Button("Cancel", interactive=False, scale=1, min_width=90, elem_id="inspect-cancel")
            status = gr.HTML(elem_id="inspect-status")
            picture = _chart("Picture", "inspect-picture", "The picture that was drawn")
        with gr.Column(scale=3, min_width=320):
            maps = _chart("Maps of the word", "inspect-maps", "The word's attention maps over the picture")
            gr.Markdown(MAPS)

    def refresh(chosen: str) -> Any:
        return offer(service.library.find(), chosen)

    def choose(values: Values) -> Iterator[Update]:
        """The charts of the subject, and a prompt that shows it."""
        name = values[subject]
        nothing = {heat: gr.Image(None, visible=False), norms: gr.Image(None, visible=False)}
        if not name:
            yield nothing | {about: said("Choose a subject to see what it changes in the base.")}
            return
        yield nothing | {about: said("Drawing the charts ...")}  # none of another subject stays beside its name
        try:
            new_prompt, trigger = service.inspector.suggestion(name, values[prompt])
            charts = service.inspector.charts(name)
        except REFUSALS as error:
            yield {about: said(str(error), refused=True)}
            raise refusal(error) from error
        yield {
            heat: gr.Image(charts.coefficients, visible=True),
            norms: gr.Image(charts.norms, visible=True),
            about: said(f"It is called up by “{trigger}”." if trigger else "It acts on every prompt."),
            prompt: new_prompt,
            word: trigger,
        }

    def underway(glimpse: Glimpse) -> Update:
        forming = {picture: gr.Image(glimpse.pictures[0], visible=True)} if glimpse.pictures else {}
        return {status: said(str(glimpse)), **forming}

    def idle(*sentences: str, refused: bool = False) -> Update:
        buttons = {button: gr.Button(interactive=True), cancel: gr.Button(interactive=False)}
        return {status: said(*sentences, refused=refused), **buttons}

    def press(values: Values, request: gr.Request) -> Iterator[Update]:
        given = {name: values[control] for name, control in settings.items()}
        strength = given.pop("strength")
        chosen = {values[subject]: strength} if values[subject] else {}
        asked = DrawRequest(values[prompt], subjects=chosen, **given)
        yield {
            status: said("Getting ready ..."),
            maps: gr.Image(None, visible=False),
            button: gr.Button(interactive=False),
            cancel: gr.Button(interactive=True),
        }
        try:
            look = partial(service.inspector.look, asked, values[word])
            view: WordView = yield from follow(service.jobs.run(_owner(request), look), underway)
        except DrawCancelled:
            yield idle("Cancelled.")
        except REFUSALS as error:
            yield idle(str(error), refused=True)
            raise refusal(error) from error
        except Exception:
            yield idle("Something went wrong; the terminal of the program says more.", refused=True)
            raise
        else:
            drawn, _ = shown([view.picture])[0]
            results = {picture: gr.Image(drawn, visible=True), maps: gr.Image(view.chart, visible=True)}
            yield idle(*view.notes, f"The maps of “{values[word].strip()}”, seed {view.picture.seed}.") | results

    def stop(request: gr.Request) -> Any:
        return said("Stopping at the next step ...") if service.jobs.cancel(_owner(request)) else gr.skip()

    for moment in (page.load, tab.select, subject.focus):
        moment(refresh, subject, subject, **QUIET)
    subject.change(choose, {subject, prompt}, [heat, norms, about, prompt, word], trigger_mode="always_last", **QUIET)
    gr.on(
        [button.click, prompt.submit, word.submit],
        press,
        {subject, prompt, word, *settings.values()},
        [status, picture, maps, button, cancel],
        concurrency_id="inspect",
        **QUIET,
    )
    cancel.click(stop, None, status, queue=False, **QUIET)


def _request_controls() -> tuple[gr.Textbox, gr.Textbox, dict[str, Any]]:
    """Prompt, word, and what else decides the picture: the strength, and controls by the field of `DrawRequest`."""
    defaults = DrawRequest("")
    prompt = gr.Textbox(
        label="Prompt",
        info="What to draw; the subject comes by the words that call it up",
        placeholder="a sks dog on grass",
        max_lines=4,
        elem_id="inspect-prompt",
    )
    word = gr.Textbox(
        label="Word",
        info="One word of the prompt, or several in a row; what calls the subject up is one",
        placeholder="sks dog",
        max_lines=1,
        elem_id="inspect-word",
    )
    strength = gr.Slider(
        0, 2, value=1, step=0.05, label="Strength", info="1 is as trained, 0 off", elem_id="inspect-strength"
    )
    with gr.Accordion("Settings", open=False, elem_id="inspect-settings"):
        seed = gr.Number(
            0,
            label="Seed",
            info="The same seed draws the same picture",
            precision=0,
            minimum=0,
            maximum=MAX_SEED,
            elem_id="inspect-seed",
        )
        steps = gr.Slider(
            1,
            100,
            value=defaults.steps,
            step=1,
            precision=0,
            label="Steps",
            info="More are finer and slower",
            elem_id="inspect-steps",
        )
        guidance = gr.Slider(
            1,
            20,
            value=defaults.guidance_scale,
            step=0.5,
            label="Guidance",
            info="How closely to follow the prompt",
            elem_id="inspect-guidance",
        )
    return prompt, word, {"strength": strength, "seed": seed, "steps": steps, "guidance_scale": guidance}


def _chart(label: str, name: str, what: str) -> gr.Image:
    """A picture that shows once there is one."""
    return gr.Image(
        label=label,
        format="png",
        type="pil",
        interactive=False,
        visible=False,
        buttons=["download", "fullscreen"],
        elem_id=name,
        elem_classes="inspect-chart",
        alt_text=what,
    )


def _owner(request: gr.Request) -> str:
    """Whose job a drawing is: it does not end what the same browser draws in another tab."""
    return f"{request.session_hash}-inspect"
