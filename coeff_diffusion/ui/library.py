"""The Library tab: the subjects on disk as cards, and all that can be done with one of them."""

from typing import Any

import gradio as gr

from ..service import StudioService
from .common import QUIET, or_refusal, status_line, with_status
from .library_detail import Detail

MOST_CARDS = 120  # more are found by searching
# Cards of one size, however many there are, with their words below the picture instead of on it.
CSS = """
#library-cards .grid-wrap { height: auto; min-height: 0; max-height: 40rem; padding-top: 2.6rem; }
#library-cards .grid-container { grid-template-columns: repeat(auto-fill, minmax(110px, 1fr));
  grid-template-rows: none; grid-auto-rows: auto; align-items: start; }
#library-cards .thumbnail-item { display: flex; flex-direction: column; height: auto;
  aspect-ratio: auto; }
#library-cards .thumbnail-item img { aspect-ratio: 1; height: auto; }
#library-cards .caption-label { position: static; width: 100%; max-width: none; border: 0; white-space: normal;
  overflow-wrap: anywhere; text-align: start; }
#library-facts dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.2rem 1rem; margin: 0.5rem 0; }
#library-facts dt { color: var(--body-text-color-subdued); }
#library-facts dd { margin: 0; }
#library-facts dd, #library-facts h3, #library-facts p { overflow-wrap: anywhere; }
#library-status p { margin: 0 0 var(--spacing-sm); overflow-wrap: anywhere; }
#library-rename, #library-fetch { align-self: end; }
"""
Values = dict[Any, Any]


def build(service: StudioService, page: gr.Blocks, tab: gr.Tab) -> None:
    """Put the tab's controls on the page and wire them to the service."""
    names, chosen = gr.State([]), gr.State(None)  # what the cards stand for, and which one is looked at
    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            search = gr.Textbox(
                "", label="Search", info="By name, trigger or class word", elem_id="library-search", max_length=200
            )
            cards = gr.Gallery(
                label="Subjects",
                format="jpeg",
                columns=None,
                object_fit="cover",
                allow_preview=False,
                interactive=False,
                buttons=[],
                elem_id="library-cards",
            )
            hint = gr.Markdown("", elem_id="library-hint")
            importing = _Import(service.import_export.folders)
            trash = _Trash()
        with gr.Column(scale=2, min_width=320):
            status = gr.HTML(status_line("Pick a card to see what can be done with it."), elem_id="library-status")
            detail = Detail()
    seen = [cards, names, hint, *trash.outputs, chosen, *detail.outputs]

    def find(text: str, name: str | None) -> Values:
        """The cards for a search, and which of them is looked at."""
        found = or_refusal(service.library_view.entries, text)
        shown = found[:MOST_CARDS]
        return {
            cards: gr.Gallery(
                [(service.library_view.picture(entry), entry.caption) for entry in shown],
                selected_index=next((i for i, entry in enumerate(shown) if entry.name == name), None),
            ),
            names: [entry.name for entry in shown],
            hint: _hint(len(found), bool(text.strip())),
        }

    def look(text: str, name: str | None, open_trash: bool = False) -> Values:
        """Everything that shows the library's state, as the disk has it now."""
        current = next((entry for entry in service.library_view.entries() if entry.name == name), None)
        return {
            **find(text, name),
            chosen: current.name if current else None,
            **trash.show(service, open_trash),
            **detail.show(service, current),
        }

    def pick(event: gr.SelectData, listed: list[str]) -> Values:
        entry = or_refusal(service.library_view.entry, listed[event.index])
        return {chosen: entry.name, **detail.show(service, entry)}

    tab.select(look, [search, chosen], seen, **QUIET)
    search.change(find, [search, chosen], [cards, names, hint], trigger_mode="always_last", **QUIET)
    cards.select(pick, [names], [chosen, *detail.outputs], **QUIET)
    changed = [*seen, status]
    importing.wire(service, look, search, changed, status)
    trash.wire(service, look, search, changed, status)
    detail.wire(service, look, search, chosen, changed, status)


class _Import:
    """The fold-out that takes subjects in."""

    def __init__(self, folders: bool) -> None:
        with gr.Accordion("Import", open=False, elem_id="library-import"):
            self.file = gr.File(
                label="A subject's file, a card or a picture of its QR code",
                height=120,
                elem_id="library-file",
            )
            with gr.Row(equal_height=False):
                self.source = gr.Textbox(
                    "",
                    label="From the Hub",
                    info="An id such as user/my-dog"
                    + (", or the path of a folder with the same files" if folders else ""),
                    elem_id="library-source",
                    min_width=220,
                    scale=3,
                )
                self.fetch = gr.Button("Fetch", elem_id="library-fetch", min_width=100, scale=1)

    def wire(self, service: StudioService, look: Any, search: gr.Textbox, changed: list[Any], status: Any) -> None:
        def take(file: str) -> Values:
            added = service.import_export.add(file)
            done = status_line(f"In the library now: {', '.join(f'“{name}”' for name in added)}")
            return {**look("", added[-1]), search: "", status: done, self.file: None}

        def fetch(source: str) -> Values:
            name = service.import_export.pull(source)
            return {**look("", name), search: "", status: status_line(f"In the library now: “{name}”"), self.source: ""}

        def wait() -> str:
            return status_line("Asking for it; all of it is checked before anything is written ...")

        self.file.upload(with_status(take, status, self.file), self.file, [*changed, search, self.file], **QUIET)
        gr.on([self.fetch.click, self.source.submit], wait, None, status, **QUIET).then(
            with_status(fetch, status), self.source, [*changed, search, self.source], **QUIET
        )


class _Trash:
    """The fold-out from which deleted subjects come back."""

    def __init__(self) -> None:
        with gr.Accordion("Trash", open=False, visible=False, elem_id="library-trash") as self.fold:
            self.choice = gr.Dropdown(
                label="Deleted subjects",
                info="Nothing is erased: the folder .trash of the library keeps them",
                elem_id="library-deleted",
            )
            self.back = gr.Button("Put back", elem_id="library-put-back")
        self.outputs = [self.fold, self.choice]

    def show(self, service: StudioService, unfold: bool) -> Values:
        gone = or_refusal(service.library.deleted)
        choices = [(f"{one.name}, deleted {one.when:%Y-%m-%d %H:%M:%S}", one.key) for one in gone]
        opened: dict[str, Any] = {"open": True} if unfold else {}
        return {
            self.fold: gr.Accordion(f"Trash ({len(gone)})", visible=bool(gone), **opened),
            self.choice: gr.Dropdown(choices=choices, value=choices[0][1] if choices else None),
        }

    def wire(self, service: StudioService, look: Any, search: gr.Textbox, changed: list[Any], status: Any) -> None:
        def put_back(key: str | None) -> Values:
            name = service.library.put_back(key or "")
            return {**look("", name), search: "", status: status_line(f"“{name}” is back")}

        self.back.click(with_status(put_back, status), self.choice, [*changed, search], **QUIET)


def _hint(found: int, searched: bool) -> str:
    """A sentence where the cards alone do not say it."""
    if found > MOST_CARDS:
        return f"{found:,} subjects; the first {MOST_CARDS} are shown. Search to see others."
    if found:
        return ""
    return (
        "Nothing is called so."
        if searched
        else ("No subjects yet: try a ready one on the Draw tab, teach yours on the Train tab, or import one below.")
    )
