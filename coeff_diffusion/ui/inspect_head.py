"""A part of the Inspect tab: one head of the subject switched off, and the picture drawn without it."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from ..images.drawing_settings import DrawRequest
from ..service import Glimpse, HeadView, LayerHeads, StudioService
from .common import QUIET, REFUSALS, follow, shown, status_line
from .job_bar import JobBar, job_bar

AT_ONCE = 16  # drawings that are at work or wait where everyone sees their place
READING = """A head that is switched off uses the base's own map again; all the others stay as they are. The prompt, the
strength and the settings are those above, and both pictures begin with the same noise. The head that the subject
changes most is chosen already; it need not be the one that is seen most."""
EMPTY = "Choose a subject above."
CSS = """
#inspect-pair .grid-wrap { height: auto; min-height: 0; max-height: none; }
"""
Values = dict[Any, Any]
Update = dict[Any, Any]


@dataclass(frozen=True)
class Panel:
    """What is on it."""

    layer: gr.Dropdown
    head: gr.Dropdown
    bar: JobBar
    pair: gr.Gallery
    slider: gr.ImageSlider

    def underway(self, glimpse: Glimpse) -> Update:
        """What to show while the pictures form, one after the other."""
        forming = {self.pair: gr.Gallery([(glimpse.pictures[0], "forming")], visible=True)} if glimpse.pictures else {}
        return {self.bar.status: status_line(str(glimpse)), **forming}

    def done(self, view: HeadView) -> Update:
        """The pictures beside each other, and one over the other."""
        (whole, _), (without, _) = shown([view.whole, view.without])
        return self.bar.idle(
            *view.notes, f"Without it the picture changes by {view.pixels:.1f} of 255; seed {view.whole.seed}."
        ) | {
            self.pair: gr.Gallery([(whole, "all heads"), (without, "without it")], visible=True),
            self.slider: gr.ImageSlider((whole, without), visible=True),
        }


def build(
    service: StudioService,
    page: gr.Blocks,
    subject: gr.Dropdown,
    asked: Callable[[Values], DrawRequest],
    inputs: Collection[Any],
) -> None:
    """Put the panel on the page and wire it to the service.

    Args:
        subject: whose heads.
        asked: what to draw, from the values of `inputs`.
    """
    gr.Markdown("## What one head does")
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            gr.Markdown(READING)
            with gr.Row():
                layer = gr.Dropdown([], label="Layer", min_width=150, elem_id="inspect-layer")
                head = gr.Dropdown([], label="Head: change", min_width=150, elem_id="inspect-head")
            bar = job_bar("inspect-head", "Draw without this head", EMPTY)
        with gr.Column(scale=3, min_width=320):
            pair = gr.Gallery(
                label="Both pictures",
                show_label=False,
                visible=False,
                format="png",
                columns=2,
                height="auto",
                object_fit="contain",
                interactive=False,
                buttons=["download", "fullscreen"],
                elem_id="inspect-pair",
            )
            slider = gr.ImageSlider(
                label="Left all heads, right without this one",
                type="pil",
                format="png",
                visible=False,
                interactive=False,
                buttons=[],
                elem_id="inspect-slider",
            )
    panel = Panel(layer, head, bar, pair, slider)
    _wire_choices(service, subject, panel)
    _wire_drawing(service, page, panel, asked, inputs)


def _wire_choices(service: StudioService, subject: gr.Dropdown, on: Panel) -> None:
    """The layers of the subject that is chosen, and the heads of the layer."""

    def found(name: str) -> list[LayerHeads]:
        try:
            return service.inspector.heads(name) if name else []
        except REFUSALS:  # the charts above say why
            return []

    def heads_of(layer: LayerHeads) -> gr.Dropdown:
        choices = [(f"{number + 1}: {change:.2g}", number) for number, change in enumerate(layer.changes)]
        return gr.Dropdown(choices=choices, value=max(choices, key=lambda one: layer.changes[one[1]])[1])

    def offer_layers(name: str) -> Update:
        layers = found(name)
        nothing = {on.pair: gr.Gallery([], visible=False), on.slider: gr.ImageSlider(None, visible=False)}
        if not layers:
            nobody = {on.layer: gr.Dropdown(choices=[], value=None), on.head: gr.Dropdown(choices=[], value=None)}
            return nothing | nobody | {on.bar.status: status_line("It has no heads to switch off." if name else EMPTY)}
        strongest = max(layers, key=lambda layer: max(layer.changes))
        choices = [(layer.title, layer.path) for layer in layers]
        return nothing | {
            on.layer: gr.Dropdown(choices=choices, value=strongest.path),
            on.head: heads_of(strongest),
            on.bar.status: status_line(),
        }

    def offer_heads(name: str, path: str | None) -> Any:
        return next((heads_of(layer) for layer in found(name) if layer.path == path), gr.skip())

    outputs = [on.layer, on.head, on.bar.status, on.pair, on.slider]
    subject.change(offer_layers, subject, outputs, trigger_mode="always_last", **QUIET)
    on.layer.input(offer_heads, [subject, on.layer], on.head, **QUIET)


def _wire_drawing(
    service: StudioService,
    page: gr.Blocks,
    on: Panel,
    asked: Callable[[Values], DrawRequest],
    inputs: Collection[Any],
) -> None:
    def press(values: Values, request: gr.Request) -> Iterator[Update]:
        yield on.bar.busy() | {on.slider: gr.ImageSlider(None, visible=False)}
        drawing = partial(service.inspector.without_head, asked(values), values[on.layer], values[on.head])
        yield on.done((yield from follow(on.bar.run(service, request, drawing), on.underway)))

    on.bar.start.click(
        on.bar.minding(press),
        {*inputs, on.layer, on.head},
        [*on.bar.parts(), on.pair, on.slider],
        concurrency_limit=AT_ONCE,
        **QUIET,
    )
    on.bar.wire_cancel(service, page)
