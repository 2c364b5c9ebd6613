"""What the page opens with, where the first picture will be: a ready subject to try, a way to one's own, a card."""

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from ..images.photo import read_image
from ..service import StudioService
from .common import QUIET

EMPTY = "Write what you want to see and press Draw."
ELSEWHERE = "The ready subjects are for the embedded base; on this one, teach your own."
DRAW = "() => document.querySelector('#draw-button').click()"
CSS = """
#draw-empty { display: grid; place-items: center; padding: var(--spacing-xl); text-align: center;
  border: 1px dashed var(--border-color-primary); border-radius: var(--block-radius); font-size: var(--text-lg);
  color: var(--body-text-color-subdued); }
#start-ready .grid-wrap { height: auto; min-height: 0; max-height: none; padding-top: 2.6rem; }
#start-ready .grid-container { grid-template-columns: repeat(auto-fill, minmax(130px, 1fr)); grid-template-rows: none; }
"""


class Start:
    """The panel; hidden from the first picture on."""

    def __init__(self, service: StudioService) -> None:
        self.cards = service.ready_cards
        with gr.Column(elem_id="draw-start") as self.panel:
            gr.HTML(f'<div id="draw-empty">{EMPTY}</div>', padding=False)
            self.ready = gr.Gallery(
                [(read_image(card), card.stem.replace("_", " ")) for card in self.cards],
                label="Or try a ready subject",
                visible=bool(self.cards),
                format="png",
                columns=None,
                height="auto",
                object_fit="cover",
                allow_preview=False,
                interactive=False,
                buttons=[],
                elem_id="start-ready",
            )
            if not self.cards:
                gr.Markdown(ELSEWHERE)
            with gr.Row():
                self.teach = gr.Button("Teach yours: five pictures", elem_id="start-teach", min_width=150)
                self.open = gr.UploadButton("Open a card", elem_id="start-open", min_width=150)

    def wire(self, restore: Callable[[str], Iterator[Any]], outputs: list[Any], tabs: Any) -> None:
        """A ready subject and a card are opened, and drawn at once.

        Args:
            restore: puts the settings of a picture, and its subjects, into `outputs`.
            tabs: the page's, one of which is called "Train".
        """

        def pick(event: gr.SelectData) -> Iterator[Any]:
            yield from restore(str(self.cards[event.index]))

        for moment, handler, given in ((self.ready.select, pick, None), (self.open.upload, restore, self.open)):
            moment(handler, given, outputs, **QUIET).success(None, None, None, js=DRAW)
        self.teach.click(lambda: gr.Tabs(selected="Train"), None, tabs, **QUIET)
