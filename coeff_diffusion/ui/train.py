"""The Train tab: drop pictures, name the subject, start; watch it learn, stop it, see what waits."""

import re
from dataclasses import dataclass
from typing import Any

import gradio as gr

from ..inference.request import StudioError
from ..service import StudioService, TrainingForm, TrainingJob
from ..training.config import ConfigError
from . import draw_with
from .common import QUIET, status_line, with_status
from .loss_plot import curve_data, curve_plot, curve_text, words_below
from .notify import AT_WORK
from .train_controls import Controls, labels
from .train_previews import Previews

SECONDS = 1.0  # between two looks at a training
GROWTH = 1.15  # a curve is drawn anew when it has so many times the steps: each time it flickers
STOP = "Stop and keep what it has"
NOTHING = "Nothing has been trained yet: drop about five pictures, say what they show, and start."
CSS = """
#train-status p, #train-refused p { margin: 0 0 var(--spacing-sm); overflow-wrap: anywhere; }
"""
Values = dict[Any, Any]
News = dict[Any, Any]


@dataclass(frozen=True)
class Seen:
    """What a browser shows already, so that only what is new is sent."""

    line: tuple[tuple[str, int], ...] = ()
    job: int | None = None
    status: str = ""
    steps: int = 0
    previews: int = 0
    messages: int = 0
    running: bool = False


def build(service: StudioService, page: gr.Blocks, tab: gr.Tab) -> None:
    """Put the tab's controls on the page and wire them to the service."""
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            controls = Controls(service)
            start = gr.Button("Start training", variant="primary", elem_id="train-start")
            refused = gr.HTML(elem_id="train-refused", padding=False)
            controls.build_more()
        with gr.Column(scale=3, min_width=320):
            view = View(service)

    def press(values: Values) -> News:
        job = _submit(service, controls.request(values))
        return {refused: "", **view.news(job, None, Seen())}

    controls.wire(tab)
    view.wire(page, tab)
    start.click(with_status(press, refused), controls.all, [refused, *view.outputs], **QUIET)


def _submit(service: StudioService, request: TrainingForm) -> TrainingJob:
    """Put a training in line; what its settings refuse is said in the words of the page."""
    try:
        return service.training_queue.submit(request)
    except ConfigError as error:
        known = labels()
        worded = [re.sub(r"--(\w+)", lambda flag: known.get(flag[1], flag[1]), text) for text in error.problems]
        raise StudioError("; ".join(worded)) from error


class View:
    """The right half: the line of trainings, and the chosen one as it goes."""

    def __init__(self, service: StudioService) -> None:
        self.service = service
        self.status = gr.HTML(status_line(NOTHING), elem_id="train-status", padding=True)
        with gr.Row():
            self.stop = gr.Button(STOP, variant="stop", interactive=False, min_width=150, scale=3, elem_id="train-stop")
            self.sooner = gr.Button("Sooner", visible=False, min_width=90, scale=1, elem_id="train-sooner")
            self.draw = gr.Button(draw_with.LABEL, variant="primary", visible=False, elem_id="train-draw")
        self.line = gr.Radio(
            [],
            label="Trainings",
            info="One at a time; the others wait in line. They go on when this page is closed.",
            visible=False,
            elem_id="train-line",
        )
        self.previews = Previews(service)
        self.curve = curve_plot("train-curve", visible=False)
        self.words = words_below("train-curve-words")
        self.log = gr.Textbox(
            label="What the trainer says", lines=3, max_lines=8, interactive=False, elem_id="train-log"
        )
        self.seen, self.name = gr.State(Seen()), gr.State("")
        self.timer = gr.Timer(SECONDS, active=False)
        self.outputs = [
            self.status, self.stop, self.sooner, self.draw, self.name, self.line, *self.previews.outputs, self.curve,
            self.words, self.log, self.seen, self.timer,
        ]  # fmt: skip

    def wire(self, page: gr.Blocks, tab: gr.Tab) -> None:
        """Look when the page opens, when someone comes to the tab or chooses another training, and while one runs."""
        training_queue = self.service.training_queue

        def arrive(number: int | None) -> News:
            """The one that runs; else what was chosen stays: it may have ended while this was on its way."""
            chosen = None if training_queue.busy else training_queue.find(number)
            return self.news(chosen or training_queue.latest, None, Seen())

        def stop(number: int | None, seen: Seen) -> News:
            if number is not None:
                training_queue.stop(number)
            return self.choose(number, seen)

        def sooner(number: int | None, seen: Seen) -> News:
            if number is not None:
                training_queue.sooner(number)
            return self.choose(number, seen)

        for moment in (page.load, tab.select):
            moment(arrive, self.line, self.outputs, **QUIET)
        asked = [self.line, self.seen]
        self.timer.tick(self.look, asked, self.outputs, queue=False, **QUIET)
        self.line.input(self.choose, asked, self.outputs, queue=False, **QUIET)
        for button, press in ((self.stop, stop), (self.sooner, sooner)):
            button.click(press, asked, self.outputs, queue=False, **QUIET)
        draw_with.send(self.draw, self.name, self.service.library)

    def choose(self, number: int | None, seen: Seen) -> News:
        """What is new of the training that the radio says."""
        return self.news(self.service.training_queue.find(number) or self.service.training_queue.latest, number, seen)

    def look(self, number: int | None, seen: Seen) -> News:
        """The same in passing. Looks overlap with choices: one that finds another training written down as seen was
        asked for before a choice and answers after it. It says nothing of either, and the next one says all."""
        return self.choose(number, seen) if seen.job in (None, number) else self.news(None, number, seen)

    def news(self, job: TrainingJob | None, number: int | None, seen: Seen) -> News:
        """What has changed of a training since a browser last saw it; all of it where that was another.

        Args:
            number: of the training that the browser has chosen.
        """
        training_queue = self.service.training_queue
        line = tuple((_label(one, training_queue.place(one)), one.number) for one in reversed(training_queue.jobs))
        running, news = training_queue.busy, News()
        if line != seen.line:  # the choice stays: this answer may come after that of a later choice
            news[self.line] = gr.Radio(choices=list(line), visible=bool(line))
        if running != seen.running:
            news[self.timer] = gr.Timer(active=running)
        if job is None:
            return {**news, self.seen: Seen(line=line, running=running)}
        if job.number != number:
            news[self.line] = gr.Radio(choices=list(line), value=job.number, visible=True)
        other = job.number != seen.job
        place = training_queue.place(job)
        status, steps, messages = job.status(place), job.step, list(job.messages)
        if other or status != seen.status:
            news[self.status] = status_line(status) + ("" if job.over else AT_WORK)
            news[self.sooner] = gr.Button(visible=place > 1)
            news[self.draw] = gr.Button(visible=job.drawable and job.name in self.service.library.find())
            news[self.name] = job.name
            news[self.stop] = gr.Button(
                "Take out of the line" if job.state == "queued" else STOP,
                interactive=not (job.over or job.stop.is_set()),
            )
        drawn = seen.steps
        if other or steps > GROWTH * drawn or (job.over and steps != drawn):
            losses, drawn = job.losses[:steps], steps
            news[self.curve] = gr.update(value=curve_data(losses, None, job.validation), visible=steps > 1)
            news[self.words] = curve_text(losses, job.validation)
        if other:
            news |= self.previews.pictures(job)
        if other or len(job.previews) != seen.previews:
            news |= self.previews.previews(job)
        if other or len(messages) != seen.messages:
            news[self.log] = "\n".join(messages)
        news[self.seen] = Seen(line, job.number, status, drawn, len(job.previews), len(messages), running)
        return news


def _label(job: TrainingJob, place: int) -> str:
    """A training in the line, in few words."""
    return f"{job.name}: " + {"queued": f"waits, number {place} in line", "running": "is being trained"}.get(
        job.state, job.state
    )
