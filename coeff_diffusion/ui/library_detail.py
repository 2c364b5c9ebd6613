"""The subject of the library that is looked at: what it is, and its actions."""

import html
from collections.abc import Iterator, Mapping
from typing import Any

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache

from ..service import Entry, Export, PushRequest, ReplaceError, StudioService
from . import draw_with
from .common import QUIET, REFUSALS, or_refusal, refusal, status_line, with_status

Values = dict[Any, Any]


class Detail:
    """The panel for one subject; hidden while none is chosen."""

    def __init__(self) -> None:
        with gr.Column(visible=False, elem_id="library-detail") as self.panel:
            self.facts = gr.HTML("", elem_id="library-facts")
            self.draw = gr.Button(draw_with.LABEL, variant="primary", elem_id="library-draw")
            with gr.Row(equal_height=False):
                self.name = gr.Textbox(
                    "",
                    label="Name",
                    info="Letters, digits, space, dot, dash and underscore",
                    elem_id="library-name",
                    min_width=200,
                    scale=3,
                )
                self.rename = gr.Button("Rename", elem_id="library-rename", min_width=90, scale=1)
            with gr.Row():
                self.file = gr.DownloadButton("Download", elem_id="library-download", min_width=150)
                self.delete = gr.Button("Delete", variant="stop", elem_id="library-delete", min_width=90)
            with gr.Accordion("Card or QR code", open=False, elem_id="library-share") as self.share:
                gr.Markdown(
                    "A card is a picture that carries the subject exactly; without one of yours it is the newest "
                    "sample. A QR code rounds the numbers and survives screenshots; a picture of yours stands above it."
                )
                self.picture = gr.File(
                    label="Your own picture (optional)",
                    height=120,
                    elem_id="library-picture",
                )
                with gr.Row():
                    self.card = gr.Button("Make card", elem_id="library-card", min_width=120)
                    self.qr = gr.Button("Make QR code", elem_id="library-qr", min_width=120)
                self.made = gr.File(label="Ready: send it as a file", visible=False, elem_id="library-made")
            with gr.Accordion("Push to the Hub", open=False, elem_id="library-push") as self.push_fold:
                self._build_push()
        self.outputs = [
            self.panel, self.facts, self.draw, self.name, self.file, self.share, self.push_fold, self.picture,
            self.made, self.replace,
        ]  # fmt: skip

    def _build_push(self) -> None:
        self.repo = gr.Textbox("", label="Repository", info="An id such as user/my-dog", elem_id="library-repo")
        self.private = gr.Checkbox(
            False, label="Private", info="A new repository is seen by you alone", elem_id="library-private"
        )
        self.token = gr.Textbox(
            "",
            label="Access token",
            info="Left empty: the login of the computer this page runs on. What is typed is forgotten at once",
            type="password",
            html_attributes=gr.InputHTMLAttributes(autocomplete="off"),
            elem_id="library-token",
        )
        self.push = gr.Button("Push", elem_id="library-push-button")
        self.replace = gr.Button(
            "Replace the subject that is there", variant="stop", visible=False, elem_id="library-replace"
        )

    def show(self, service: StudioService, entry: Entry | None) -> Values:
        """The panel for a subject, or no panel."""
        if entry is None:
            return {self.panel: gr.Column(visible=False), self.replace: gr.Button(visible=False)}
        file = None if entry.damaged else _cached(self.file, or_refusal(service.import_export.file, entry.name))
        return {
            self.panel: gr.Column(visible=True),
            self.facts: _table(entry.name, entry.remark, entry.facts()),
            self.draw: gr.Button(interactive=not entry.problem),
            self.name: entry.name.rpartition("/")[2],
            self.file: gr.DownloadButton(value=file, interactive=file is not None),
            self.share: gr.Accordion(visible=file is not None),
            self.push_fold: gr.Accordion(visible=file is not None),
            self.picture: None,
            self.made: gr.File(value=None, visible=False),
            self.replace: gr.Button(visible=False),
        }

    def wire(
        self, service: StudioService, look: Any, search: Any, chosen: Any, changed: list[Any], status: Any
    ) -> None:
        def rename(text: str, old: str, new: str) -> Values:
            name = service.library_view.rename(old, new)
            return {**look(text, name), status: status_line(f"“{old}” is called “{name}” now")}

        def delete(text: str, name: str) -> Values:
            service.library_view.delete(name)
            done = status_line(f"“{name}” is in the trash; “Put back” undoes it")
            return {**look(text, None, open_trash=True), status: done}

        def make_card(name: str, picture: str | None) -> Values:
            return self._made(service.import_export.card(name, picture), status)

        def make_qr(name: str, picture: str | None) -> Values:
            return self._made(service.import_export.qr(name, picture), status)

        draw_with.send(self.draw, chosen, service.library)
        asked = [search, chosen, self.name]
        gr.on([self.rename.click, self.name.submit], with_status(rename, status), asked, changed, **QUIET)
        self.delete.click(with_status(delete, status), [search, chosen], changed, **QUIET)
        self.card.click(with_status(make_card, status), [chosen, self.picture], [self.made, status], **QUIET)
        self.qr.click(with_status(make_qr, status), [chosen, self.picture], [self.made, status], **QUIET)
        self._wire_push(service, chosen, status)

    def _made(self, export: Export, status: gr.HTML) -> Values:
        return {self.made: gr.File(_cached(self.made, export), visible=True), status: status_line(*export.notes)}

    def _wire_push(self, service: StudioService, chosen: Any, status: Any) -> None:
        def push(name: str, repo: str, private: bool, token: str, replace: bool = False) -> Iterator[Values]:
            yield {status: status_line("Talking to the Hub ..."), self.replace: gr.Button(visible=False)}
            try:
                lines = service.import_export.push(PushRequest(name, repo, private, token, replace))
            except ReplaceError as question:  # the token stays in its field for the answer
                yield {status: status_line(str(question)), self.replace: gr.Button(visible=True)}
            except REFUSALS as error:
                yield {status: status_line(str(error), refused=True), self.token: ""}
                raise refusal(error) from error
            else:
                yield {status: status_line(*lines), self.token: ""}

        def push_over(name: str, repo: str, private: bool, token: str) -> Iterator[Values]:
            yield from push(name, repo, private, token, replace=True)

        asked, answered = [chosen, self.repo, self.private, self.token], [status, self.token, self.replace]
        gr.on([self.push.click, self.repo.submit], push, asked, answered, **QUIET)
        self.replace.click(push_over, asked, answered, **QUIET)


def _table(name: str, remark: str, facts: Mapping[str, str]) -> str:
    """What there is to know about a subject; its words are text, never markup."""
    rows = "".join(f"<dt>{html.escape(what)}</dt><dd>{html.escape(value)}</dd>" for what, value in facts.items())
    note = f'<p role="note">{html.escape(remark)}</p>' if remark else ""
    return f"<h3>{html.escape(name)}</h3>{note}<dl>{rows}</dl>"


def _cached(component: Any, export: Export) -> str:
    """A file in the page's own cache, which is all that it serves."""
    return str(save_bytes_to_cache(export.content, export.file_name, component.GRADIO_CACHE))
