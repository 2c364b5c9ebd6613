"""The Inspect tab: a subject's coefficients in charts, where a word acts in a picture, and what one head does there."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from ..images.drawing_settings import SETTINGS, DrawRequest
from ..service import Glimpse, StudioService, WordView
from ..subject.layer_strengths import STRENGTH_REACH
from . import inspect_head
from .common import QUIET, REFUSALS, follow, refusal, shown, status_line
from .draw_controls import NOBODY, offer
from .job_bar import JobBar, job_bar
from .setting_control import control_of

AT_ONCE = 16  # drawings that are at work or wait where everyone sees their place
EMPTY = "Choose a subject to see what it changes in the base. None yet? Draw has ready ones, Train teaches yours."
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
CSS = (
    inspect_head.CSS
    + """
.inspect-chart .image-container { padding-top: 40px; height: auto; }
"""
)
Values = dict[Any, Any]
Update = dict[Any, Any]


@dataclass(frozen=True)
class Controls:
    """What is on the tab.

    Attributes:
        settings: the strength, and controls by the field of `DrawRequest` that each one sets.
    """

    subject: gr.Dropdown
    about: gr.HTML
    heat: gr.Image
    norms: gr.Image
    prompt: gr.Textbox
    word: gr.Textbox
    settings: dict[str, Any]
    bar: JobBar
    picture: gr.Image
    maps: gr.Image

    def inputs(self) -> set[Any]:
        """What `request` reads."""
        return {self.subject, self.prompt, *self.settings.values()}

    def request(self, values: Values) -> DrawRequest:
        """What the controls ask for."""
        given = {name: values[control] for name, control in self.settings.items()}
        strength = given.pop("strength")
        return DrawRequest(
            values[self.prompt], subjects={values[self.subject]: strength} if values[self.subject] else {}, **given
        )

    def underway(self, glimpse: Glimpse) -> Update:
        """What to show while the picture forms."""
        forming = {self.picture: gr.Image(glimpse.pictures[0], visible=True)} if glimpse.pictures else {}
        return {self.bar.status: status_line(str(glimpse)), **forming}


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
            about = gr.HTML(status_line(EMPTY), elem_id="inspect-about")
            gr.Markdown(READING)
            norms = _chart("Norms", "inspect-norms", "Bars of the norm of the coefficients in each block")
        with gr.Column(scale=3, min_width=320):
            heat = _chart("Coefficients", "inspect-coefficients", "Heat maps of the coefficients, one for each layer")
    gr.Markdown("## Where a word acts")
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            prompt, word, settings = _request_controls(service)
            bar = job_bar("inspect", "Draw and look")
            picture = _chart("Picture", "inspect-picture", "The picture that was drawn")
        with gr.Column(scale=3, min_width=320):
            maps = _chart("Maps of the word", "inspect-maps", "The word's attention maps over the picture")
            gr.Markdown(MAPS)
    controls = Controls(subject, about, heat, norms, prompt, word, settings, bar, picture, maps)
    for moment in (page.load, tab.select, subject.focus):
        moment(lambda: offer(service.library.find()), None, subject, **QUIET)
    _wire_charts(service, controls)
    _wire_looking(service, page, controls)
    inspect_head.build(service, page, subject, controls.request, controls.inputs())


def _wire_charts(service: StudioService, on: Controls) -> None:
    """The charts of the subject that is chosen, and a prompt that shows it."""

    def choose(values: Values) -> Iterator[Update]:
        name = values[on.subject]
        nothing = {chart: gr.Image(None, visible=False) for chart in (on.heat, on.norms)}
        if not name:
            yield nothing | {on.about: status_line(EMPTY)}
            return
        yield nothing | {
            on.about: status_line("Drawing the charts ...")
        }  # none of another subject stays beside its name
        try:
            prompt, word = service.inspector.suggestion(name, values[on.prompt])
            charts = service.inspector.charts(name)
        except REFUSALS as error:
            yield {on.about: status_line(str(error), refused=True)}
            raise refusal(error) from error
        yield {
            on.heat: gr.Image(charts.coefficients, visible=True),
            on.norms: gr.Image(charts.norms, visible=True),
            on.about: status_line(f"It is called up by “{word}”." if word else "It acts on every prompt."),
            on.prompt: prompt,
            on.word: word,
        }

    outputs = [on.heat, on.norms, on.about, on.prompt, on.word]
    on.subject.change(choose, {on.subject, on.prompt}, outputs, trigger_mode="always_last", **QUIET)


def _wire_looking(service: StudioService, page: gr.Blocks, on: Controls) -> None:
    """Draw with progress, until it is there or cancelled."""

    def press(values: Values, request: gr.Request) -> Iterator[Update]:
        yield on.bar.busy() | {on.maps: gr.Image(None, visible=False)}  # those were of another word or picture
        word = values[on.word].strip()
        look = partial(service.inspector.look, on.request(values), word)
        view: WordView = yield from follow(on.bar.run(service, request, look), on.underway)
        drawn, _ = shown([view.picture])[0]
        yield on.bar.idle(*view.notes, f"The maps of “{word}”, seed {view.picture.seed}.") | {
            on.picture: gr.Image(drawn, visible=True),
            on.maps: gr.Image(view.chart, visible=True),
        }

    gr.on(
        [on.bar.start.click, on.prompt.submit, on.word.submit],
        on.bar.minding(press),
        {*on.inputs(), on.word},
        [*on.bar.parts(), on.picture, on.maps],
        concurrency_limit=AT_ONCE,
        **QUIET,
    )
    on.bar.wire_cancel(service, page)


def _request_controls(service: StudioService) -> tuple[gr.Textbox, gr.Textbox, dict[str, Any]]:
    """Prompt, word, and what else decides the picture: the strength, and controls by the field of `DrawRequest`."""
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
        *STRENGTH_REACH,
        value=1,
        step=0.05,
        label="Strength",
        info="1 as trained, 0 the base",
        elem_id="inspect-strength",
    )
    here: dict[str, dict[str, Any]] = {
        "seed": {},
        "steps": {"info": "More are finer and slower"},
        "guidance_scale": {"step": 0.5},
    }
    with gr.Accordion("Settings", open=False, elem_id="inspect-settings"):
        controls = {name: control_of(SETTINGS[name], service, "inspect", **one) for name, one in here.items()}
    return prompt, word, {"strength": strength, **controls}


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
