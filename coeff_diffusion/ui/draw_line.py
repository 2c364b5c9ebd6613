"""The line of the Draw tab: what a browser has asked for and waits, each with what takes it out or lets it come sooner.

A line belongs to a browser: its tabs share one, and a page that is loaded again shows it.
"""

import html
from collections.abc import Sequence
from typing import Any

import gradio as gr

from ..service import Job, StudioService
from .common import QUIET
from .job_bar import JobBar

DRAW, ADD = "Draw", "Add to the line"
CSS = """
#draw-line p { margin: 0 0 var(--spacing-sm); font-size: var(--text-sm); color: var(--body-text-color-subdued); }
#draw-line ol { list-style: none; margin: 0; padding: 0; max-height: 16rem; overflow-y: auto; }
#draw-line li { display: flex; flex-wrap: wrap; align-items: center; gap: var(--spacing-sm); margin: 0;
  padding: var(--spacing-sm) 0; border-top: 1px solid var(--border-color-primary); }
#draw-line li span { flex: 1 1 7rem; min-width: 0; overflow-wrap: anywhere; font-size: var(--text-sm); }
#draw-line li div { display: flex; gap: var(--spacing-sm); margin-left: auto; }
#draw-line button { margin: 0; padding: var(--spacing-xs) var(--spacing-md); font-size: var(--text-sm);
  font-weight: 400; cursor: pointer; color: var(--button-secondary-text-color);
  background: var(--button-secondary-background-fill); border: 1px solid var(--button-secondary-border-color);
  border-radius: var(--radius-md); }
#draw-line button:hover { background: var(--button-secondary-background-fill-hover); }
@media (max-width: 820px) { #draw-line button { min-height: 44px; } }
"""
# A list that is drawn anew would lose the focus of the keyboard; it stays on the same button where that is still there.
PRESS = """
let pressed = "";
element.addEventListener("click", ({ target }) => {
  const button = target.closest("button[data-act]");
  if (!button) return;
  pressed = `[data-act="${button.dataset.act}"][data-number="${button.dataset.number}"]`;
  trigger("press", { act: button.dataset.act, number: Number(button.dataset.number) });
});
watch("value", () => {
  if (pressed && document.activeElement === document.body) element.querySelector(pressed)?.focus();
  pressed = "";
});
"""
Values = dict[Any, Any]


class DrawLine:
    """Its controls.

    Attributes:
        kept: what the browser calls itself.
        rung: the number of the newest drawing that this page put in line; whoever watches begins when it changes.
    """

    def __init__(self, service: StudioService, bar: JobBar) -> None:
        self.jobs, self.bar = service.jobs, bar
        self.kept = gr.BrowserState("", storage_key="coeff-diffusion-browser", secret="not a secret")
        self.listed = gr.HTML("", elem_id="draw-line", padding=False, js_on_load=PRESS)
        self.rung = gr.State(0)

    def parts(self) -> list[Any]:
        """What `news` may change."""
        return [self.listed, self.bar.start, self.bar.cancel]

    def owner(self, values: Values, request: gr.Request) -> str:
        """Whose line it is. A browser that comes for the first time is called as its first page is."""
        return values[self.kept] or str(request.session_hash)

    def news(self, owner: str) -> Values:
        """What waits, and what the buttons do now."""
        busy = self.jobs.current(owner) is not None
        return {
            self.listed: _list(self.jobs.waiting(owner)),
            self.bar.start: gr.Button(ADD if busy else DRAW),
            self.bar.cancel: gr.Button(interactive=busy),
        }

    def wire(self, page: gr.Blocks) -> None:
        """The buttons of the list, and the one that ends what is at work; the line then goes on."""

        def press(values: Values, event: gr.EventData, request: gr.Request) -> Values:
            owner = self.owner(values, request)
            if event.act == "sooner":
                self.jobs.sooner(owner, event.number)
            elif event.act == "out":
                self.jobs.take_out(owner, event.number)
            else:
                self.jobs.take_out(owner, *(job.number for job in self.jobs.waiting(owner)))
            return self.news(owner)

        def cancel(values: Values, request: gr.Request) -> None:
            self.jobs.cancel(self.owner(values, request))

        def leave(request: gr.Request) -> None:
            self.jobs.leave(str(request.session_hash))

        self.listed.press(press, {self.kept}, self.parts(), queue=False, **QUIET)
        self.bar.cancel.click(cancel, {self.kept}, None, queue=False, **QUIET)
        page.unload(leave)


def _list(waiting: Sequence[Job]) -> str:
    """What waits, each with its buttons; the first one is next already."""
    if not waiting:
        return ""
    rows = []
    for place, job in enumerate(waiting):
        about = html.escape(job.about)
        acts = {"sooner": "Sooner", "out": "Take out"} if place else {"out": "Take out"}
        buttons = "".join(_button(act, job.number, label, about) for act, label in acts.items())
        rows.append(f"<li><span>{about}</span><div>{buttons}</div></li>")
    count = "1 drawing waits" if len(waiting) == 1 else f"{len(waiting)} drawings wait"
    every = _button("all", 0, "Take all out", count) if len(waiting) > 1 else ""
    return f'<p role="status">{count}</p><ol>{"".join(rows)}</ol>{every}'


def _button(act: str, number: int, label: str, about: str) -> str:
    name = f'aria-label="{label}: {about}"'
    return f'<button type="button" data-act="{act}" data-number="{number}" {name}>{label}</button>'
