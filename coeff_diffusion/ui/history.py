"""The part of the Draw tab that shows earlier pictures, and brings one of them back."""

import html
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from ..images.generation_info import PictureError
from ..service import Drawn, StudioService
from .common import QUIET, or_refusal, status_line, with_status
from .from_picture import FromPicture

PAGE = 60  # pictures that are shown at first, and more at a press
News = dict[Any, Any]
CSS = """
#history-cards .grid-wrap { height: auto; min-height: 0; max-height: 36rem; padding-top: 0; }
#history-cards .grid-container { grid-template-columns: repeat(auto-fill, minmax(110px, 1fr));
  grid-template-rows: none; }
#history-facts { white-space: pre-line; overflow-wrap: anywhere; font-size: var(--text-sm); }
"""


class HistoryPanel:
    """Its controls.

    Attributes:
        names: of the pictures that are shown, in their order.
        chosen: the name of the one that is looked at; None without any.
        deleted: by what deletions are undone, the last one first; empty where there is nothing to undo.
        count: how many are shown.
        is_open: whether anybody looks.
    """

    def __init__(self, service: StudioService) -> None:
        self.service, self.history = service, service.history
        self.names, self.chosen, self.deleted = gr.State([]), gr.State(None), gr.State([])
        self.count, self.is_open = gr.State(PAGE), gr.State(False)
        with gr.Accordion("Earlier pictures", open=False, elem_id="draw-history") as self.fold:
            self.favourites = gr.Checkbox(False, label="Favourites only", elem_id="history-favourites")
            self.cards = gr.Gallery(
                label="Earlier pictures",
                show_label=False,
                format="jpeg",
                columns=None,
                object_fit="cover",
                allow_preview=False,
                interactive=False,
                buttons=[],
                elem_id="history-cards",
            )
            self.hint = gr.Markdown("", elem_id="history-hint")
            self.more = gr.Button("Show more", size="sm", visible=False, elem_id="history-more")
            self.status = gr.HTML("", elem_id="history-status")
            with gr.Column(visible=False) as self.detail:
                self.facts = gr.HTML("", elem_id="history-facts")
                with gr.Row():
                    self.settings = gr.Button("Same settings", size="sm", min_width=120, elem_id="history-settings")
                    self.start = gr.Button("Start from it", size="sm", min_width=120, elem_id="history-start")
                    self.like = gr.Button("Favourite", size="sm", min_width=120, elem_id="history-like")
                    self.delete = gr.Button("Delete", size="sm", min_width=120, elem_id="history-delete")
            self.undo = gr.Button("Undo: put it back", size="sm", visible=False, elem_id="history-undo")

    def outputs(self) -> list[Any]:
        """What `look` shows."""
        return [self.cards, self.names, self.hint, self.more, self.detail, self.facts, self.like, self.chosen]

    def look(self, only_favourites: bool, count: int, name: str | None) -> News:
        """The pictures as the disk has them now, and the one of this name."""
        found = self.history.find(only_favourites)
        shown = found[:count]
        here = [one.name for one in shown]
        chosen = next((one for one in found if one.name == name), None)
        return {
            self.cards: gr.Gallery(
                [(one.thumbnail, one.caption) for one in shown],
                selected_index=here.index(chosen.name) if chosen is not None and chosen.name in here else None,
            ),
            self.names: here,
            self.hint: "" if found else ("No favourites yet." if only_favourites else "Nothing has been drawn yet."),
            self.more: gr.Button(f"Show more ({len(found) - len(shown)})", visible=len(found) > len(shown)),
            **self._detail(chosen),
        }

    def _detail(self, chosen: Drawn | None) -> News:
        if chosen is None:
            return {self.chosen: None, self.detail: gr.Column(visible=False), self.facts: "", self.like: gr.skip()}
        try:
            facts = chosen.facts or f"{chosen.name} does not say how it was drawn."
        except PictureError as error:
            facts = str(error)
        return {
            self.chosen: chosen.name,
            self.detail: gr.Column(visible=True),
            self.facts: html.escape(facts),
            self.like: gr.Button("No longer a favourite" if chosen.is_favourite else "Favourite"),
        }

    def wire(
        self,
        restore: Callable[[str], Iterator[Any]],
        restored: list[Any],
        origin: FromPicture,
        drawn: Callable[..., Any],
    ) -> None:
        """Connect all of it.

        Args:
            restore: puts the settings of a picture into `restored`.
            drawn: lets a handler run each time there may be new pictures.
        """
        seen, asked = self.outputs(), [self.favourites, self.count, self.chosen]
        changed = [*seen, self.status, self.deleted, self.undo]

        def unfold() -> News:
            return {self.is_open: True, self.count: PAGE, **self.look(False, PAGE, None), self.favourites: False}

        def more(only_favourites: bool, count: int, name: str | None) -> News:
            return {self.count: count + PAGE, **self.look(only_favourites, count + PAGE, name)}

        def pick(event: gr.SelectData, names: list[str]) -> News:
            return {**self._detail(or_refusal(self.history.get, names[event.index])), self.status: ""}

        def like(only_favourites: bool, count: int, name: str) -> News:
            self.history.like(name, not self.history.get(name).is_favourite)
            return {**self.look(only_favourites, count, name), self.status: ""}

        def delete(only_favourites: bool, count: int, name: str, earlier: list[str]) -> News:
            key = self.history.delete(name)
            said = status_line(f"{name} is in the trash, the folder .trash beside the pictures.")
            return {
                **self.look(only_favourites, count, None), self.status: said, self.deleted: [key, *earlier],
                self.undo: gr.Button(visible=True),
            }  # fmt: skip

        def undo(only_favourites: bool, count: int, deleted: list[str]) -> News:
            last, *earlier = deleted
            name = self.history.put_back(last)
            return {
                **self.look(only_favourites, count, name), self.status: status_line(f"{name} is back."),
                self.deleted: earlier, self.undo: gr.Button(visible=bool(earlier)),
            }  # fmt: skip

        def begin(name: str) -> News:
            path = origin.picture.move_resource_to_block_cache(self._path(name))
            return {origin.picture: path, origin.box: gr.Accordion(open=True)}

        def refresh(is_open: bool, only_favourites: bool, count: int, name: str | None) -> News:
            return self.look(only_favourites, count, name) if is_open else dict.fromkeys(seen, gr.skip())

        def same(name: str) -> Iterator[Any]:
            yield from restore(str(or_refusal(self._path, name)))

        self.fold.expand(unfold, None, [self.is_open, self.count, self.favourites, *seen], **QUIET)
        self.fold.collapse(lambda: False, None, self.is_open, **QUIET)
        self.favourites.input(self.look, asked, seen, **QUIET)
        self.more.click(more, asked, [self.count, *seen], **QUIET)
        about_one = [self.chosen, self.detail, self.facts, self.like, self.status]
        self.cards.select(pick, self.names, about_one, **QUIET)
        self.like.click(with_status(like, self.status), asked, changed, **QUIET)
        self.delete.click(with_status(delete, self.status), [*asked, self.deleted], changed, **QUIET)
        self.undo.click(with_status(undo, self.status), [self.favourites, self.count, self.deleted], changed, **QUIET)
        self.settings.click(same, self.chosen, restored, **QUIET)
        self.start.click(
            with_status(begin, self.status), self.chosen, [origin.picture, origin.box, self.status], **QUIET
        ).success(origin.size_of, origin.picture, origin.sides, **QUIET)
        drawn(refresh, [self.is_open, *asked], seen, **QUIET)

    def _path(self, name: str) -> Path:
        return self.history.get(name).path
