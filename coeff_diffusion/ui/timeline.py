"""The Timeline tab: move through the steps of a training, see the same picture at each, keep the best."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from math import gcd
from typing import Any

import gradio as gr

from ..images.drawing_settings import SETTINGS
from ..inference.request import DrawCancelled
from ..service import Glimpse, StudioService, Timeline
from ..subject.errors import CoefficientsError
from .common import QUIET, REFUSALS, follow, or_refusal, refusal, shown, status_line, with_status
from .loss_plot import curve_data, curve_plot, curve_text, words_below
from .setting_control import control_of

# Small pictures fill their frame too: steps are compared, and 128 pixels are few on a large screen.
CSS = """
#timeline-picture img { width: 100%; height: 100%; object-fit: contain; }
#timeline-status p { margin: 0; overflow-wrap: anywhere; }
"""
Values = dict[Any, Any]
News = dict[Any, Any]


def build(service: StudioService, page: gr.Blocks, tab: gr.Tab) -> None:
    """Put the tab's controls on the page and wire them to the service."""
    TimelineTab(service).wire(page, tab)


class TimelineTab:
    """The controls and what they do."""

    def __init__(self, service: StudioService) -> None:
        self.service, self.timelines = service, service.timelines
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                self._build_choices()
            with gr.Column(scale=3, min_width=320):
                self.picture = gr.Image(
                    label="The subject at this step",
                    format="png",
                    type="pil",
                    height=360,
                    interactive=False,
                    buttons=["download", "fullscreen"],
                    alt_text="What the subject looks like at the chosen step",
                    elem_id="timeline-picture",
                )
                self.curve = curve_plot("timeline-curve")
                self.words = words_below("timeline-curve-words")

    def _build_choices(self) -> None:
        self.run = gr.Dropdown(
            self.timelines.find(),
            value=None,
            label="Training",
            info="Those in the library that kept their steps, also the one that is going on",
            elem_id="timeline-run",
        )
        self.step = gr.Slider(
            0,
            1,
            value=0,
            step=1,
            label="Step",
            info="Move it, also with the arrow keys: the picture of that step follows",
            interactive=False,
            elem_id="timeline-step",
        )
        self.status = gr.HTML(
            status_line("Pick a training to see how its subject came about. None yet? Train teaches a subject."),
            elem_id="timeline-status",
        )
        with gr.Row():
            self.keep = gr.Button("Keep this step", variant="primary", interactive=False, size="md", min_width=90)
            self.best = gr.Button("Best step", interactive=False, size="md", min_width=90)
            self.every = gr.Button("Draw every step", interactive=False, size="md", min_width=90)
            self.cancel = gr.Button("Cancel", variant="stop", interactive=False, size="md", min_width=90)
        self.prompt = gr.Textbox(
            label="Prompt", info="What every step draws; at first what the training drew", elem_id="timeline-prompt"
        )
        self.seed = control_of(SETTINGS["seed"], self.service, "timeline", info="The same noise for every step")

    def wire(self, page: gr.Blocks, tab: gr.Tab) -> None:
        """Connect the controls."""
        buttons = [self.keep, self.best, self.every, self.cancel]
        asked: set[Any] = {self.run, self.step, self.prompt, self.seed}
        drawn = [self.status, self.picture, self.cancel]
        drawing: dict[str, Any] = {"concurrency_id": "timeline", "concurrency_limit": None, **QUIET}
        for moment in (page.load, tab.select, self.run.focus):
            moment(self._offer, None, self.run, **QUIET)
        chosen = [self.step, self.prompt, self.seed, self.curve, self.words, self.picture, self.status, *buttons]
        choice = self.run.input(self._stop, None, None, queue=False, **QUIET)
        choice = choice.then(with_status(self._choose, self.status), self.run, chosen, **QUIET)
        choice.success(self._draw, asked, drawn, **drawing)
        # Who moves on does not wait for the picture before.
        self.step.input(self._stop, None, None, queue=False, **QUIET)
        self.step.input(
            self._mark, {self.run, self.step}, [self.curve, self.words], trigger_mode="always_last", **QUIET
        )
        self.step.input(self._draw, asked, drawn, trigger_mode="always_last", **drawing)
        self.best.click(self._stop, None, None, queue=False, **QUIET)
        reached = [self.step, self.curve, self.words, self.status]
        best = self.best.click(with_status(self._go_to_best, self.status), self.run, reached, **QUIET)
        best.success(self._draw, asked, drawn, **drawing)
        gr.on([self.prompt.submit, self.seed.submit], self._draw, asked, drawn, **drawing)
        self.every.click(self._draw_every, asked, drawn, **drawing)
        self.keep.click(with_status(self._keep, self.status), {self.run, self.step}, [self.status], **QUIET)
        self.cancel.click(self._stop, None, None, queue=False, **QUIET)

    def _offer(self) -> Any:
        return gr.Dropdown(choices=self.timelines.find())

    def _choose(self, name: str | None) -> News:
        """A training: its steps for the slider, its own prompt and seed; it starts at the step that is the subject."""
        if not name:
            return {self.status: ""}
        timeline = self.timelines.read(name)
        kept = self.timelines.kept(name)
        at = timeline.steps[-1] if kept is None else kept
        told = ["no step is the subject yet" if kept is None else f"step {kept} is the subject now"]
        if timeline.best is not None:
            told.append(f"step {timeline.best} has the lowest validation loss so far")
        return {
            self.step: _slider(timeline.steps, at),
            self.prompt: timeline.prompt,
            self.seed: timeline.seed,
            **self._curve(name, at),
            self.picture: None,
            self.status: status_line(*told),
            **dict.fromkeys((self.keep, self.best, self.every), gr.Button(interactive=True)),
        }

    def _curve(self, name: str, at: int) -> News:
        losses, validation = self.timelines.losses(name), self.timelines.validation(name)
        return {self.curve: curve_data(losses, at, validation), self.words: curve_text(losses, validation)}

    def _go_to_best(self, name: str) -> News:
        """The slider at the step with the lowest validation loss so far."""
        timeline = self.timelines.read(name)
        best = timeline.best
        if best is None:
            raise CoefficientsError(f"nothing was measured in the training of {name} so far; no step is the best one")
        told = status_line(f"step {best} has the lowest validation loss so far")
        return {self.step: _slider(timeline.steps, best), **self._curve(name, best), self.status: told}

    def _mark(self, values: Values) -> Any:
        """The loss so far with a mark at the step that the slider is at."""
        name = values[self.run]
        at = or_refusal(self.timelines.read, name).nearest(values[self.step])
        return or_refusal(self._curve, name, at)

    def _draw(self, values: Values, request: gr.Request) -> Iterator[News]:
        """The picture of the step that the slider is at."""
        if values[self.run]:
            yield from self._pictures(values, request, lambda timeline: [timeline.nearest(values[self.step])])

    def _draw_every(self, values: Values, request: gr.Request) -> Iterator[News]:
        """The pictures of all steps, so that the slider moves without waiting afterwards."""
        yield from self._pictures(values, request, lambda timeline: timeline.steps)

    def _pictures(self, values: Values, request: gr.Request, choose: Callable[[Timeline], list[int]]) -> Iterator[News]:
        """The picture of each chosen step, with progress where it has to be drawn first.

        Every update holds the last picture again: gradio sends differences, and takes a picture that is left out for
        one whose parts are gone.
        """
        name, prompt, seed = values[self.run], values[self.prompt] or "", values[self.seed] or 0
        last, idle = News(), {self.cancel: gr.Button(interactive=False)}
        try:
            steps = choose(self.timelines.read(name))
            for place, at in enumerate(steps, start=1):
                where = f"step {at}" + (f" ({place} of {len(steps)})" if len(steps) > 1 else "")
                moment = self.timelines.drawn(name, at, prompt, seed)
                if moment is None:
                    work = partial(self.timelines.draw, name, at, prompt, seed)
                    tell = partial(self._tell, last, f"drawing {where}")
                    moment = yield from follow(self.service.jobs.run(_owner(request), work), tell)
                last = {self.picture: shown([moment.picture])[0][0]}
                over = gr.Button(interactive=place < len(steps))
                yield {**last, self.status: status_line(where, *moment.notes), self.cancel: over}
            if len(steps) > 1:
                yield {**last, self.status: status_line(f"all {len(steps)} steps are drawn: move the slider"), **idle}
        except DrawCancelled:
            yield {**last, self.status: status_line("cancelled; what is drawn stays"), **idle}
        except REFUSALS as error:
            yield {**last, self.status: status_line(str(error), refused=True), **idle}
            raise refusal(error) from error

    def _tell(self, last: News, what: str, glimpse: Glimpse) -> News:
        return {**last, self.status: status_line(f"{what}: {glimpse}"), self.cancel: gr.Button(interactive=True)}

    def _keep(self, values: Values) -> News:
        """Write the step that the slider is at as the subject."""
        name = values[self.run]
        at = self.timelines.keep(name, values[self.step])
        going_on = self.service.training_queue.writing(name) is not None
        after = "it stays so when the training ends" if going_on else "the timeline still has all the others"
        return {self.status: status_line(f"Kept: step {at} is the subject {name} now; {after}")}

    def _stop(self, request: gr.Request) -> None:
        self.service.jobs.cancel(_owner(request))


def _slider(steps: list[int], at: int) -> Any:
    """A slider over the kept steps. Where they are not evenly spaced, the nearest one counts."""
    spacing = gcd(*(later - earlier for earlier, later in pairwise(steps))) or 1
    return gr.Slider(steps[0], max(steps[-1], steps[0] + 1), value=at, step=spacing, interactive=len(steps) > 1)


def _owner(request: gr.Request) -> str:
    """Whose job a picture here is: it does not end what the same browser draws in another tab."""
    return f"{request.session_hash}-timeline"
