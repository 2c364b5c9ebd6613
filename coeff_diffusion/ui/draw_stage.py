"""Where the Draw tab shows how its drawings go: the picture as it forms, what is saved, what went wrong."""

import html
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from ..inference.request import DrawCancelled
from ..service import Glimpse, Saved
from .common import REFUSALS, status_line
from .draw_line import DrawLine
from .job_bar import JobBar
from .notify import AT_WORK

Values = dict[Any, Any]
News = dict[Any, Any]
BROKEN = "Something went wrong; the terminal of the program says more."


@dataclass(frozen=True)
class Stage:
    """Its parts.

    Attributes:
        last: the number of the newest drawing that was seen to its end, and the seed of the last one that was saved;
            None before there is one.
    """

    bar: JobBar
    line: DrawLine
    empty: gr.Column
    gallery: gr.Gallery
    slider: gr.ImageSlider
    last: gr.State

    def inputs(self) -> set[Any]:
        """What `watch` reads."""
        return {self.line.kept, self.last}

    def outputs(self) -> list[Any]:
        """What `watch` may change."""
        shown = [self.bar.status, self.empty, self.gallery, self.slider, self.last]
        return [*self.line.parts(), self.line.kept, *shown]

    def watch(self, values: Values, request: gr.Request) -> Iterator[News]:
        """How the line of this browser goes, until it is empty. It raises nothing: after a failure the line goes on."""
        owner, (seen, seed) = self.line.owner(values, request), values[self.last]
        jobs, said = self.line.jobs, list[str]()
        yield {self.line.kept: owner} | self.line.news(owner)
        for job, glimpse in jobs.watch(owner, str(request.session_hash), seen):
            current, news = jobs.current(owner), News()
            if glimpse is not None:
                news = self._underway(glimpse, said) if current is job else news
            elif job.begun or current is None:  # what was taken out of the line is over without a word
                error = job.outcome.exception()
                if error is None:
                    saved: Saved = job.outcome.result()
                    news, said, seed = self._done(saved), saved.said, saved.seed
                else:
                    said = [_why(error)]
                mark = AT_WORK if current else ""  # the browser tells of the end of long work, not of each drawing
                news |= {
                    self.bar.status: status_line(*said, refused=_failed(error)) + mark,
                    self.last: (job.number, seed),
                }
            yield news | self.line.news(owner)
        yield self.line.news(owner)

    def _underway(self, glimpse: Glimpse, said: Sequence[str]) -> News:
        """What to show while the picture forms. Steps are not read out: a screen reader would hear of every one.

        Args:
            said: about the drawing before this one.
        """
        earlier = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in said)
        if glimpse.stopping:
            return {self.bar.status: status_line(str(glimpse)) + earlier + AT_WORK}
        if not (glimpse.step or glimpse.ahead):
            return {self.bar.status: status_line("Getting ready ...") + earlier + AT_WORK}
        bar = f'<progress aria-label="Drawing" value="{glimpse.step}" max="{glimpse.total}"></progress>'
        news: News = {self.bar.status: f"<p>{html.escape(str(glimpse))}</p>{bar}{earlier}"}
        if glimpse.pictures:  # the last result stays until there is something to see of this one
            forming = [(picture, "forming") for picture in glimpse.pictures]
            news |= {self.empty: gr.Column(visible=False), self.gallery: gr.Gallery(forming, visible=True)}
            news[self.slider] = gr.ImageSlider(None, visible=False)
        return news

    def _done(self, saved: Saved) -> News:
        """The result: the saved files themselves, so that what is downloaded says how it was drawn."""
        pictures = [(self.gallery.move_resource_to_block_cache(path), words) for path, words in saved.shown]
        pair = (pictures[0][0], pictures[1][0]) if saved.pair else None
        return {
            self.empty: gr.Column(visible=False),
            self.gallery: gr.Gallery(pictures, visible=True),
            self.slider: gr.ImageSlider(pair, visible=saved.pair),
        }


def _failed(error: BaseException | None) -> bool:
    return not isinstance(error, DrawCancelled | None)


def _why(error: BaseException) -> str:
    """Why there is no picture. What failed is also said where nobody can miss it."""
    if not _failed(error):
        return "Cancelled; nothing was saved."
    known = isinstance(error, REFUSALS)
    if not known:
        traceback.print_exception(error)
    text = str(error) if known else BROKEN
    gr.Warning(html.escape(text, quote=False), title="Not drawn")
    return text


def result_gallery() -> gr.Gallery:
    """The pictures of the newest drawing."""
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


def result_slider() -> gr.ImageSlider:
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
