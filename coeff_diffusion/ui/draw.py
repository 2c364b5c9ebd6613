"""The Draw tab: a prompt, subjects, a button; the picture as it forms."""

import html
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from ..images.drawing_settings import SETTINGS
from ..images.shapes import RATIOS, size_of
from ..service import Drawing, Glimpse, StudioService, check_limits
from . import draw_with, prompt_box
from .common import QUIET, REFUSALS, follow, or_refusal, status_line, with_status
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
from .from_picture import FromPicture
from .held_to import HeldTo
from .history import HistoryPanel
from .job_bar import JobBar, job_bar
from .prompt_box import PromptBox
from .refined import Refined
from .setting_control import control_of
from .start import Start

AT_ONCE = 16  # drawings that are at work or wait where everyone sees their place; more wait in gradio's own queue
# The picture is the hero: beside the controls where there is room, else right below the button.
CSS = (
    prompt_box.CSS
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


@dataclass(frozen=True)
class Stage:
    """What shows how the drawing goes.

    Attributes:
        last: the seed of the last drawing.
    """

    bar: JobBar
    empty: gr.Column
    gallery: gr.Gallery
    slider: gr.ImageSlider
    last: gr.State

    def outputs(self) -> list[Any]:
        """All of it, for an event."""
        return [*self.bar.parts(), self.empty, self.gallery, self.slider, self.last]

    def underway(self, glimpse: Glimpse) -> dict[Any, Any]:
        """What to show while the picture forms. Not read out: a screen reader would hear of every step."""
        bar = f'<progress aria-label="Drawing" value="{glimpse.step}" max="{glimpse.total}"></progress>'
        news: dict[Any, Any] = {self.bar.status: f"<p>{html.escape(str(glimpse))}</p>{bar}"}
        if glimpse.pictures:
            forming = [(picture, "forming") for picture in glimpse.pictures]
            news |= {self.empty: gr.Column(visible=False), self.gallery: gr.Gallery(forming, visible=True)}
            news[self.slider] = gr.ImageSlider(None, visible=False)
        return news

    def done(self, drawing: Drawing) -> dict[Any, Any]:
        """The result: the saved files themselves, so that what is downloaded says how it was drawn."""
        pictures = [(self.gallery.move_resource_to_block_cache(path), words) for path, words in drawing.captioned()]
        names = ", ".join(path.name for path in drawing.files)
        pair = len(drawing.base) == len(drawing.pictures) == 1
        return self.bar.idle(*drawing.notes, f"Saved in {drawing.files[0].parent}: {names}") | {
            self.empty: gr.Column(visible=False),
            self.gallery: gr.Gallery(pictures, visible=True),
            self.slider: gr.ImageSlider((pictures[0][0], pictures[1][0]) if pair else None, visible=pair),
            self.last: drawing.pictures[0].seed,
        }


def build(service: StudioService, page: gr.Blocks, tab: gr.Tab) -> None:
    """Put the tab's controls on the page and wire them to the service."""
    with gr.Row(elem_id="draw-room"):
        with gr.Column(elem_id="draw-ask"):
            box = PromptBox(service)
            bar = job_bar("draw", "Draw")
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
            start, gallery, slider = Start(service), _result(), _slider()
            history = HistoryPanel(service)
    fields |= {"seed": seed, "adapter_strength": adapter}
    controls = Controls(box.text, rows, fields | fine, random_seed, layers, origin, held_to, refined, styles)
    stage = Stage(bar, start.panel, gallery, slider, gr.State(0))
    drawn = _wire_drawing(service, page, controls, stage, (compare, embed))
    _wire_subjects(service, [page.load, tab.select], controls, words, box)
    sides = [fields["width"], fields["height"]]
    origin.wire(sides)
    restored, news = _wire_files(service, controls, bar.status, upload, drop, box)
    start.wire(restored, news, tab.parent)
    history.wire(restored, news, origin, [drawn])
    box.wire(page, rows, controls.fields, styles)
    page.load(partial(_styles, service), None, styles, **QUIET)
    draw_with.receive(tab, [row.name for row in rows], lambda name: choose(service.library.find(), name))
    shape.input(lambda ratio: size_of(ratio, service.studio.size, service.studio.multiple), shape, sides, **QUIET)
    reuse.click(lambda last: (last, False), stage.last, [seed, random_seed], **QUIET)


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


def _result() -> gr.Gallery:
    return gr.Gallery(
        label="Result",
        show_label=False,
        visible=False,
        format="jpeg",  # of what forms; what is drawn is shown from its file
        columns=2,
        object_fit="contain",
        interactive=False,
        buttons=["download", "download_all", "fullscreen"],
        elem_id="draw-gallery",
    )


def _slider() -> gr.ImageSlider:
    """The base and the subject, one over the other, where one of each is drawn."""
    return gr.ImageSlider(
        label="Left the base, right the subject",
        type="filepath",
        format="png",
        visible=False,
        interactive=False,
        buttons=[],
        elem_id="draw-slider",
    )


# --- what happens when ------------------------------------------------------------------------------------------------


def _wire_drawing(
    service: StudioService, page: gr.Blocks, controls: Controls, stage: Stage, switches: tuple[gr.Checkbox, gr.Checkbox]
) -> Any:
    """Returns the event that draws."""

    def press(values: Values, request: gr.Request) -> Iterator[dict[Any, Any]]:
        compare, embed = (values[switch] for switch in switches)
        asked = check_limits(service.studio, controls.request(service.drawings, values))
        yield stage.bar.busy()  # the last result stays until there is something to see of this one
        embed_start = values[controls.start.embed]
        work = partial(service.drawings.draw, asked, compare, embed_subjects=embed, embed_start=embed_start)
        drawing: Drawing = yield from follow(stage.bar.run(service, request, work), stage.underway)
        yield stage.done(drawing) | {controls.fields["seed"]: drawing.pictures[0].seed}

    drawn = gr.on(
        [stage.bar.start.click, controls.prompt.submit],
        stage.bar.minding(press),
        controls.inputs() | set(switches),
        [*stage.outputs(), controls.fields["seed"]],
        concurrency_limit=AT_ONCE,
        **QUIET,
    )
    stage.bar.wire_cancel(service, page)
    return drawn


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
    restored, news = with_status(restore, status), [*controls.outputs(), status, drop, box.before]
    drop.upload(restored, drop, news, **QUIET)
    return restored, news
