"""The way from a subject, wherever it is shown, to the Draw tab with that subject chosen."""

from collections.abc import Sequence
from typing import Any

import gradio as gr

from ..sources.library import Library
from .common import QUIET, or_refusal

LABEL = "Draw with it"
# The Draw tab listens to a field that nobody sees; any tab may write a subject's name into it.
SEND = """(name) => {
  const field = document.querySelector("#draw-with textarea, #draw-with input");
  field.value = name;
  field.dispatchEvent(new Event("input", { bubbles: true }));
}"""


def send(button: gr.Button, name: Any, library: Library) -> None:
    """Let a button open the Draw tab with a subject; one that is gone by now is said where the button is.

    Args:
        name: a component or state that holds the subject's name in the library.
    """

    def look(found: str) -> str:
        or_refusal(library.path, found)
        return found

    told = gr.Textbox("", visible="hidden")  # a state stays on the server, where the browser cannot read it
    button.click(look, name, told, **QUIET).success(None, told, None, js=SEND, **QUIET)


def receive(tab: gr.Tab, names: Sequence[gr.Dropdown], choices: Any) -> None:
    """What the Draw tab does then.

    Args:
        names: the rows' choices of a subject.
        choices: makes of all names of the library, and of one, what a row shows.
    """

    def take(name: str, *chosen: str) -> Any:
        if not name:  # it has been taken
            return gr.skip()
        rows = list(chosen)
        if name not in rows:
            rows[rows.index("") if "" in rows else 0] = name
        return ["", gr.Tabs(selected=tab.id), *map(choices, rows)]

    tabs: Any = tab.parent
    field = gr.Textbox("", visible="hidden", label="Draw with", elem_id="draw-with")
    field.change(take, [field, *names], [field, tabs, *names], **QUIET)
