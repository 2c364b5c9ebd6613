"""The Explore tab: one grid, one picture per cell, of what someone would otherwise try one after the other."""

import html
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import gradio as gr

from ..inference.request import DrawCancelled, DrawRequest, StudioError
from ..service import Exploration, Glimpse, GridRequest, StudioService, spread
from .common import QUIET, REFUSALS, follow, or_refusal, status_line
from .explore_controls import FITTING, Values, fitting, grid_controls, grid_request, shared_settings
from .job_bar import JobBar, job_bar

AT_ONCE = 16  # grids that are at work or wait where everyone sees their place
OUTDATED = "This grid was drawn with other settings; draw it again."
HINT = "Choose subjects: every cell is drawn from the same noise. None yet? Draw has ready ones, Train teaches yours."
CSS = """
#explore-status p { margin: 0 0 var(--spacing-sm); overflow-wrap: anywhere; }
#explore-status progress { appearance: none; width: 100%; height: 6px; border: 0; border-radius: 3px; overflow: hidden;
  background: var(--border-color-primary); }
#explore-status progress::-webkit-progress-bar { background: var(--border-color-primary); }
#explore-status progress::-webkit-progress-value { background: var(--color-accent); }
#explore-status progress::-moz-progress-bar { background: var(--color-accent); }
#explore-cells .grid-wrap { height: auto; max-height: none; }
/* The labels over the columns begin below the component's own label and buttons. */
#explore-sheet .image-container, #explore-cells .grid-wrap { padding-top: 2.6rem; }
#explore-outdated p { margin: 0 0 var(--spacing-sm); }
#explore-room:has(#explore-outdated p) :is(#explore-sheet img, #explore-cells .thumbnail-item) { opacity: 0.35; }
@media (max-width: 820px) { #explore-cells .grid-container { grid-template-columns: 1fr 1fr; } }
"""


@dataclass(frozen=True)
class Stage:
    """What shows how the grid goes.

    Attributes:
        asked: what the controls asked for when the grid that is shown was begun, as plain values, by whose hash gradio
            tells of a change; None while there is none.
        outdated: says where they ask for another one by now.
    """

    bar: JobBar
    sheet: gr.Image
    cells: gr.Gallery
    asked: gr.State
    outdated: gr.HTML

    def outputs(self) -> list[Any]:
        """All that a job changes, for an event."""
        return [*self.bar.parts(), self.sheet, self.cells, self.asked]

    def busy(self, plan: Exploration, asked: GridRequest) -> dict[Any, Any]:
        """The empty grid, before the first step."""
        return self.bar.busy(*plan.notes) | {
            self.asked: asdict(asked),
            self.sheet: plan.glimpse(),
            self.cells: gr.Gallery([], visible=False),
        }

    def underway(self, plan: Exploration, glimpse: Glimpse) -> dict[Any, Any]:
        """The grid as it fills. Not read out: a screen reader would hear of every step."""
        done = f"{len(plan.pictures)} of {len(plan.distinct)} pictures; {glimpse}"
        bar = f'<progress aria-label="Drawing the grid" value="{glimpse.step}" max="{glimpse.total}"></progress>'
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in plan.notes)
        news: dict[Any, Any] = {self.bar.status: f"<p>{html.escape(done)}</p>{bar}{notes}"}
        if glimpse.pictures:
            news[self.sheet] = plan.glimpse(glimpse.step, glimpse.total, glimpse.pictures)
        return news

    def done(self, plan: Exploration) -> dict[Any, Any]:
        """What there is: the saved files themselves, so that what is downloaded says how it was drawn."""
        cells = [(self.cells.move_resource_to_block_cache(path), words) for path, words in plan.captioned()]
        sheet = None if plan.file is None else self.sheet.move_resource_to_block_cache(plan.file)
        news = self.bar.idle(_outcome(plan), *plan.notes) | {
            self.cells: gr.Gallery(cells, visible=bool(cells)),
            self.sheet: sheet,
        }
        return news if plan.file else news | {self.asked: None}


def build(service: StudioService, page: gr.Blocks, tab: gr.Tab) -> None:
    """Put the tab's controls on the page and wire them to the service."""
    with gr.Row(elem_id="explore-room"):
        with gr.Column(scale=2, min_width=320):
            controls = grid_controls(service)
            bar = job_bar("explore", "Draw the grid", HINT)
            with gr.Accordion("Settings", open=False, elem_id="explore-settings"):
                settings = shared_settings(service)
        with gr.Column(scale=3, min_width=320):
            outdated = gr.HTML("", elem_id="explore-outdated", padding=False)  # beside what it is about
            stage = Stage(bar, *_result(), gr.State(None), outdated)
    _wire_drawing(service, page, controls, settings, stage)
    _wire_choices(service, [page.load, tab.select], controls)


def _wire_drawing(
    service: StudioService, page: gr.Blocks, controls: dict[str, Any], settings: dict[str, Any], stage: Stage
) -> None:
    def asked_in(values: Values) -> GridRequest:
        shared = DrawRequest("", **{name: values[control] for name, control in settings.items()})
        return grid_request({name: values[control] for name, control in controls.items()}, shared)

    def press(values: Values, request: gr.Request) -> Iterator[dict[Any, Any]]:
        asked = asked_in(values)
        plan = service.explorer.plan(asked)
        yield stage.busy(plan, asked)
        try:
            run = stage.bar.run(service, request, partial(service.explorer.draw, plan))
            yield from follow(run, partial(stage.underway, plan))
        except DrawCancelled:  # while it waited its turn
            pass
        except REFUSALS:
            yield stage.done(plan)  # what there is of it stays
            raise
        yield stage.done(plan)

    def compare(values: Values) -> str:
        drawn = values[stage.asked]
        try:
            fits = drawn is None or drawn == asdict(asked_in(values))
        except StudioError:  # said when it is drawn
            fits = False
        return "" if fits else status_line(OUTDATED)

    asked_for = {*controls.values(), *settings.values()}
    stage.bar.start.click(stage.bar.minding(press), asked_for, stage.outputs(), concurrency_limit=AT_ONCE, **QUIET)
    gr.on(
        [stage.asked.change, *(control.change for control in asked_for)],
        compare,
        asked_for | {stage.asked},
        stage.outdated,
        trigger_mode="always_last",
        queue=False,
        **QUIET,
    )
    stage.bar.wire_cancel(service, page)


def _wire_choices(service: StudioService, moments: list[Any], controls: dict[str, Any]) -> None:
    """What can be chosen is what is there now."""
    kind, prompt, subjects, run = (controls[name] for name in ("kind", "prompt", "subjects", "run"))

    # What the user may be changing at this moment is touched only where it has to be.
    def offer(chosen: list[str], name: str | None) -> list[Any]:
        names, runs = list(service.library.find()), service.timelines.find()
        still = [one for one in chosen if one in names]
        return [
            gr.Dropdown(choices=names) if still == chosen else gr.Dropdown(choices=names, value=still),
            gr.Dropdown(choices=runs) if not name or name in runs else gr.Dropdown(choices=runs, value=None),
        ]

    def begin(names: list[str], words: str) -> Any:
        """A prompt to begin with, where there is none yet."""
        return or_refusal(service.drawings.first_prompt, names[0]) if names and not words.strip() else gr.skip()

    def offer_steps(name: str | None, words: str) -> tuple[Any, Any]:
        if not name:
            return gr.Dropdown(choices=[], value=[]), gr.skip()
        timeline = or_refusal(service.timelines.read, name)
        steps = gr.Dropdown(choices=timeline.steps, value=spread(timeline.steps))
        return steps, gr.skip() if words.strip() else timeline.prompt

    for moment in moments:
        moment(offer, [subjects, run], [subjects, run], **QUIET)
    kind.change(fitting, kind, [controls[name] for name in FITTING], **QUIET)
    subjects.change(begin, [subjects, prompt], prompt, **QUIET)
    run.change(offer_steps, [run, prompt], [controls["steps"], prompt], **QUIET)


def _result() -> tuple[gr.Image, gr.Gallery]:
    sheet = gr.Image(
        label="The grid",
        format="png",
        interactive=False,
        buttons=["download", "fullscreen"],
        elem_id="explore-sheet",
        alt_text="The grid of pictures, with a label beside each row and above each column",
    )
    cells = gr.Gallery(
        label="Its pictures",
        visible=False,
        columns=4,
        height="auto",
        object_fit="contain",
        interactive=False,
        buttons=["download", "download_all", "fullscreen"],
        elem_id="explore-cells",
    )
    return sheet, cells


def _outcome(plan: Exploration) -> str:
    """What became of a grid."""
    drawn = f"{len(plan.pictures)} of {len(plan.distinct)} pictures"
    if plan.file is None:
        return "Cancelled; nothing was saved."
    where = f"saved in {plan.file.parent}, the grid as {plan.file.name}"
    return f"Cancelled after {drawn}; {where}" if plan.cancelled else f"{drawn}, {where}"
