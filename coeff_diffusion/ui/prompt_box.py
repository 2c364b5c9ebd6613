"""The prompt of the Draw tab, a chip for the word of each subject, and what the base makes of them."""

import html
import time
from collections.abc import Sequence
from typing import Any

import gradio as gr

from ..images.drawing_settings import DrawRequest
from ..inference.trigger import contains_trigger
from ..service import MAX_SUBJECTS, StudioService
from .common import QUIET, REFUSALS, status_line

CSS = """
#draw-chips { flex-wrap: wrap; gap: var(--spacing-sm); }
#draw-chips button { flex: none; width: auto; min-width: 0; border-radius: 999px; overflow-wrap: anywhere; }
#draw-reading p { margin: 0; font-size: var(--text-sm); overflow-wrap: anywhere;
  color: var(--body-text-color-subdued); }
#draw-reading [role="status"] p { color: var(--body-text-color); }
"""
# What is written is kept as it is written: events of gradio come later, and on a busy computer after a reload.
SCRIPT = """<script>
(() => {
  const KEY = "coeff-diffusion-draw-prompt";
  const keep = (text) => localStorage.setItem(KEY, text);
  window.coeffDiffusionPrompt = { keep, kept: (text) => text || localStorage.getItem(KEY) || "" };
  document.addEventListener("input", ({ target }) => { if (target.closest("#draw-prompt")) keep(target.value); });
})();
</script>"""
READING = ("negative_prompt", "prompt_2", "guidance_scale")  # what is looked at beside the prompt
Values = dict[Any, Any]
TAKE_OVER = "(now, asked) => (asked && asked[0] === now ? asked[1] : now)"


class PromptBox:
    """Its controls.

    Attributes:
        before: the subjects of the rows whose words have been written into the prompt.
        proposal: what the prompt was, and what shall stand there if it is still that: who types on is not disturbed.
        rows: of the subjects, `fields` the controls of the settings, and `styles` of those; once it is wired.
    """

    def __init__(self, service: StudioService) -> None:
        self.service, self.prompts = service, service.drawings.prompts
        self.rows: Sequence[Any] = ()
        self.fields: dict[str, Any] = {}
        self.text = gr.Textbox(  # of one line that grows: Enter draws, Shift+Enter begins a new line
            "",
            label="Prompt",
            info="What you want to see; a subject comes by the words that call it up",
            placeholder="a photo of a dog on a beach",
            max_lines=6,
            autofocus=True,
            elem_id="draw-prompt",
        )
        with gr.Row(elem_id="draw-chips", visible=False) as self.box:
            self.chips = [
                gr.Button("", size="sm", visible=False, min_width=0, elem_id=f"draw-chip-{number}")
                for number in range(1, MAX_SUBJECTS + 1)
            ]
        self.reading = gr.HTML("", elem_id="draw-reading")
        self.before = gr.State([""] * MAX_SUBJECTS)
        self.proposal = gr.JSON(None, visible="hidden")

    def wire(self, page: gr.Blocks, rows: Sequence[Any], fields: dict[str, Any], styles: gr.Dropdown) -> None:
        """Follow what is written and chosen.

        Args:
            rows: of the subjects, with their `use`, `name` and `strength`.
            fields: controls by the settings that they set.
            styles: chosen to stand around the prompt.
        """
        self.styles = styles
        self.rows, self.fields = rows, {name: fields[name] for name in READING if name in fields}
        watched = [styles, *self.fields.values(), *(part for row in rows for part in (row.use, row.name, row.strength))]
        gr.on(
            [page.load, *(one.change for one in (self.text, *watched))],
            self.look,
            {self.text, *watched},
            [self.box, *self.chips, self.reading],
            trigger_mode="always_last",
            queue=False,
            **QUIET,
        )
        for number, (chip, row) in enumerate(zip(self.chips, rows, strict=True)):
            chip.click(
                self._press(number), [self.text, *(one.name for one in rows)], [self.proposal, row.name], **QUIET
            )
        self.proposal.change(None, [self.text, self.proposal], self.text, js=TAKE_OVER, **QUIET)
        self._keep(page)

    def look(self, values: Values) -> Values:
        """The chips, and what is to be said of the prompt as it stands."""
        prompt, shown = values[self.text], False
        news: Values = {}
        for chip, row in zip(self.chips, self.rows, strict=True):
            trigger = self.prompts.trigger(values[row.name]) if values[row.name] and values[row.use] else ""
            label = f"{trigger} ✕" if contains_trigger(prompt, trigger) else f"Add “{trigger}”"
            news[chip] = gr.Button(label if trigger else "", visible=bool(trigger))
            shown = shown or bool(trigger)
        return news | {self.box: gr.Row(visible=shown), self.reading: self._read(values)}

    def _read(self, values: Values) -> str:
        if not values[self.text].strip():
            return ""
        rows = [(values[row.name], values[row.strength]) for row in self.rows if values[row.use]]
        given = {name: values[control] for name, control in self.fields.items()}
        try:  # of wildcards any line, as the seed is not known yet
            subjects = self.service.drawings.strengths(rows)
            asked = DrawRequest(values[self.text], subjects=subjects, seed=0, **given)
            asked = self.service.drawings.templates.applied(asked, values[self.styles] or ())
        except REFUSALS as error:
            return status_line(str(error))
        found = self.prompts.read(asked)
        return f"<p>{html.escape(str(found))}</p>{status_line(*found.notes)}"

    def write(self, prompt: str, before: Sequence[str], chosen: Sequence[str]) -> Any:
        """Propose a prompt with the words of subjects that are chosen now, without those of subjects that were."""
        news = [name for old, name in zip(before, chosen, strict=True) if name and name != old]
        gone = [name for name in before if name and name not in chosen]
        return _proposed(prompt, self.prompts.written(prompt, news, gone)) if news or gone else gr.skip()

    def _press(self, number: int) -> Any:
        """What a chip does: a word that is there goes with its subject, one that is missing is written."""

        def press(prompt: str, *chosen: str) -> tuple[Any, Any]:
            name = chosen[number]
            if contains_trigger(prompt, self.prompts.trigger(name)):
                return gr.skip(), ""  # its word goes with it
            return _proposed(prompt, self.prompts.written(prompt, [name])), gr.skip()

        return press

    def _keep(self, page: gr.Blocks) -> None:
        """What is being written survives that the page is loaded again: the browser keeps it, for this page alone."""
        self.text.change(None, self.text, None, js="(text) => window.coeffDiffusionPrompt.keep(text)", **QUIET)
        page.load(None, self.text, self.text, js="(text) => window.coeffDiffusionPrompt.kept(text)", **QUIET)


def _proposed(old: str, new: str) -> Any:
    """A proposal; the same one twice is two."""
    return [old, new, time.time_ns()]
