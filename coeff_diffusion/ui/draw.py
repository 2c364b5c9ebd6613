"""The Draw tab: a prompt, subjects, a button; the picture as it forms."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from ..images.drawing_settings import SETTINGS
from ..images.shapes import RATIOS, size_of
from ..service import OnStep, Saved, ShouldStop, StudioService, check_limits, in_few_words
from . import draw_line, draw_with, prompt_box
from .common import QUIET, REFUSALS, or_refusal, refusal, status_line, with_status
from .draw_controls import (
    Controls,
    Values,
    choose,
    fine_controls,
    offer,
    plain_controls,
    seed_controls,
    style_control,
    subject_rows,
)
from .draw_line import DRAW, DrawLine
from .draw_stage import Stage, result_gallery, result_slider
from .from_picture import FromPicture
from .held_to import HeldTo
from .history import HistoryPanel
from .job_bar import job_bar
from .prompt_box import PromptBox
from .refined import Refined
from .setting_control import control_of
from .start import Start

AT_ONCE = 16  # pages that watch their line; more wait in gradio's own queue, and their drawings go on
# The picture is the hero: beside the controls where there is room, else right below the button.
CSS = (
    prompt_box.CSS
    + draw_line.CSS
    + """
#draw-room { display: grid; gap: var(--layout-gap); align-items: start;
  grid-template: "ask result" auto "rest result" 1fr / minmax(0, 2fr) minmax(0, 3fr); }
#draw-ask { grid-area: ask; } #draw-rest { grid-area: rest; } #draw-result { grid-area: result; }
#draw-ask, #draw-rest, #draw-result { min-width: 0 !important; }
#draw-result { position: sticky; top: var(--spacing-lg); }
#draw-status p, #draw-words p { margin: 0 0 var(--spacing-sm); overflow-wrap: anywhere; }
#draw-status progress { appearance: none; width: 100%; height: 6px; border: 0; border-radius: 3px; overflow: hidden;
  background: var(--border-color-primary); }
#draw-status progress::-webkit-progress-bar { background: var(--border-color-primary); }
#draw-status progress::-webkit-progress-value { background: var(--color-accent); }
#draw-status progress::-moz-progress-bar { background: var(--color-accent); }
#draw-gallery .grid-wrap { height: auto; max-height: none; }
/* One picture, or a square of them, is as large as the window lets it be; a pair takes the width. */
#draw-gallery .grid-container:not(:has(> :nth-child(2):last-child)) { max-width: 76vh; margin-inline: auto; }
#draw-words { color: var(--body-text-color-subdued); font-size: var(--text-sm); }
.draw-subject { align-items: stretch; }
@media (max-width: 820px) {
  #draw-room { grid-template: "ask" auto "result" auto "rest" auto / minmax(0, 1fr); }
  #draw-result { position: static; }
}
"""
)


def build(service: StudioService, page: gr.Blocks, tab: gr.Tab) -> None:
    """Put the tab's controls on the page and wire them to the service."""
    with gr.Row(elem_id="draw-room"):
        with gr.Column(elem_id="draw-ask"):
            box = PromptBox(service)
            bar = job_bar("draw", DRAW)
            line = DrawLine(service, bar)
        with gr.Column(elem_id="draw-rest"):
            rows = subject_rows(service)
            adapter = control_of(SETTINGS["adapter_strength"], service, "draw", visible=False)
            words = gr.HTML(elem_id="draw-words")
            styles = style_control()
            compare, embed = _switches()
            upload = gr.UploadButton("Add a subject's file", size="sm", elem_id="draw-upload")
            origin, held_to, refined = FromPicture(service), HeldTo(service), Refined(service)
            with gr.Accordion("Settings", open=False, elem_id="draw-settings"):
                seed, random_seed, reuse = seed_controls(service)
                shape = gr.Radio([*RATIOS], label="Shape", info="Sizes that the base knows", elem_id="draw-shape")
                fields = plain_controls(service)
            with gr.Accordion("Fine control", open=False, elem_id="draw-fine"):
                layers, fine = fine_controls(service)
            drop = gr.File(
                label="Get settings from a picture",
                height=160,
                elem_id="draw-drop",
            )
        with gr.Column(elem_id="draw-result"):
            start, gallery, slider = Start(service), result_gallery(), result_slider()
            history = HistoryPanel(service)
    fields |= {"seed": seed, "adapter_strength": adapter}
    controls = Controls(box.text, rows, fields | fine, random_seed, layers, origin, held_to, refined, styles)
    stage = Stage(bar, line, start.panel, gallery, slider, gr.State((0, None)))
    _wire_drawing(service, page, controls, stage, (compare, embed))
    _wire_subjects(service, [page.load, tab.select], controls, words, box)
    sides = [fields["width"], fields["height"]]
    origin.wire(sides)
    restored, news = _wire_files(service, controls, bar.status, upload, drop, box)
    start.wire(restored, news, tab.parent)
    history.wire(restored, news, origin, stage.last.change)
    box.wire(page, rows, controls.fields, styles)
    page.load(partial(_styles, service), None, styles, **QUIET)
    draw_with.receive(tab, [row.name for row in rows], lambda name: choose(service.library.find(), name))
    shape.input(lambda ratio: size_of(ratio, service.studio.size, service.studio.multiple), shape, sides, **QUIET)
    reuse.click(lambda last: (last[1] or 0, False), stage.last, [seed, random_seed], **QUIET)
    # Who has chosen a seed meanwhile, for the next drawing, keeps it.
    stage.last.change(
        lambda last, again: gr.skip() if last[1] is None or not again else last[1],
        [stage.last, random_seed],
        seed,
        **QUIET,
    )


def _styles(service: StudioService) -> Any:
    """The styles that there are now."""
    found = [*or_refusal(service.drawings.templates.styles)]
    return gr.Dropdown(found, visible=bool(found))


def _switches() -> tuple[gr.Checkbox, gr.Checkbox]:
    with gr.Row():
        compare = gr.Checkbox(
            False,
            label="Compare",
            info="Also draw without the subjects, from the same noise",
            min_width=150,
            elem_id="draw-compare",
        )
        embed = gr.Checkbox(
            False,
            label="Put the subject in the picture",
            info="Who gets the picture can draw with it",
            min_width=150,
            elem_id="draw-embed",
        )
    return compare, embed


# --- what happens when ------------------------------------------------------------------------------------------------


def _wire_drawing(
    service: StudioService, page: gr.Blocks, controls: Controls, stage: Stage, switches: tuple[gr.Checkbox, gr.Checkbox]
) -> None:
    """A press puts a drawing in line as it is set now; the line is watched from then on, and when the page opens."""
    line = stage.line

    def press(values: Values, request: gr.Request) -> Iterator[dict[Any, Any]]:
        compare, embed = (values[switch] for switch in switches)
        owner = line.owner(values, request)
        try:
            asked = check_limits(service.studio, controls.request(service.drawings, values))
            options = {"embed_subjects": embed, "embed_start": values[controls.start.embed]}

            def work(on_step: OnStep, should_stop: ShouldStop) -> Saved:
                return service.drawings.draw(asked, compare, on_step, should_stop, **options).saved()

            job = service.jobs.submit(owner, work, in_few_words(asked))
        except REFUSALS as error:
            yield {stage.bar.status: status_line(str(error), refused=True)}
            raise refusal(error) from error
        yield {line.kept: owner, line.rung: job.number} | line.news(owner)

    gr.on(
        [stage.bar.start.click, controls.prompt.submit],
        press,
        controls.inputs() | {*switches, line.kept},
        [*line.parts(), line.kept, line.rung, stage.bar.status],
        trigger_mode="multiple",
        **QUIET,
    )
    gr.on(
        [page.load, line.rung.change],
        stage.watch,
        stage.inputs(),
        stage.outputs(),
        trigger_mode="always_last",
        concurrency_limit=AT_ONCE,
        **QUIET,
    )
    line.wire(page)


def _wire_subjects(
    service: StudioService, moments: Iterable[Any], controls: Controls, words: gr.HTML, box: PromptBox
) -> None:
    """Rows and their controls come as they are needed, say what calls their subjects up, and write it."""
    names, adapter = [row.name for row in controls.rows], controls.fields["adapter_strength"]

    def refresh(*chosen: str) -> list[Any]:
        there = list(service.library.find())
        # Choices alone where it will do: on a slow machine someone may have chosen already when this answer comes.
        return [choose(there, name) if name and name not in there else offer(there) for name in chosen]

    def arrange(prompt: str, before: list[str], *chosen: str) -> dict[Any, Any]:
        used = [number for number, name in enumerate(chosen) if name]
        shown = 1 + max(used, default=-1)
        sentences = _words(service, [chosen[number] for number in used])
        joined = any(service.drawings.has_adapter(chosen[number]) for number in used)
        news: dict[Any, Any] = {words: status_line(*sentences), box.before: list(chosen)}
        news |= {adapter: gr.Slider(visible=joined)}
        for number, row in enumerate(controls.rows):
            visible = bool(chosen[number])
            news |= {row.box: gr.Row(visible=number <= shown)}
            news |= {row.use: gr.Checkbox(visible=visible), row.strength: gr.Slider(visible=visible)}
        return news | {box.proposal: box.write(prompt, before, chosen)}

    for moment in moments:
        moment(refresh, names, names, **QUIET)
    gr.on(
        [name.change for name in names],
        arrange,
        [controls.prompt, box.before, *names],
        [
            *(part for row in controls.rows for part in (row.box, row.use, row.strength)),
            words,
            adapter,
            box.proposal,
            box.before,
        ],
        **QUIET,
    )


def _words(service: StudioService, names: Iterable[str]) -> list[str]:
    """A sentence about each subject, also where it is gone or damaged by now."""
    sentences = []
    for name in names:
        try:
            sentences.append(service.drawings.describe(name))
        except REFUSALS as error:
            sentences.append(str(error))
    return sentences


def _wire_files(
    service: StudioService,
    controls: Controls,
    status: gr.HTML,
    upload: gr.UploadButton,
    drop: gr.File,
    box: PromptBox,
) -> tuple[Callable[[str], Iterator[Any]], list[Any]]:
    """A subject's file joins the library and the drawing; a picture puts its settings into the controls.

    Returns:
        What does the latter for the file of a picture, and the outputs of that.
    """
    names = [row.name for row in controls.rows]

    def add(file: str, *chosen: str) -> dict[Any, Any]:
        before = service.library.find()
        name = service.drawings.add(file)
        there, rows = list(service.library.find()), list(chosen)
        if "" in rows and name not in rows:
            rows[rows.index("")] = name
        note = f"{name!r} joined the library." if name not in before else f"This is {name!r}, which is there already."
        more = "" if name in rows else " Choose it in one of the rows."
        return {row: choose(there, chosen) for row, chosen in zip(names, rows, strict=True)} | {
            status: status_line(note + more)
        }

    def restore(file: str) -> dict[Any, Any]:
        settings = service.drawings.settings_of(file)
        about = f"{Path(file).name}: {'its settings are in the controls' if settings.request else 'a subject alone'}"
        shown = controls.put(settings, service.library.find())
        if settings.request is not None:  # its prompt is as it was drawn
            chosen = [*settings.subjects, *[""] * len(names)][: len(names)]
            there = service.library.find()
            shown[box.before] = [name if name in there else "" for name in chosen]
        return shown | {status: status_line(about, *settings.notes), drop: None}

    upload.upload(with_status(add, status), [upload, *names], [*names, status], **QUIET)
    restored, news = with_status(restore, status, drop), [*controls.outputs(), status, drop, box.before]
    drop.upload(restored, drop, news, **QUIET)
    return restored, news
