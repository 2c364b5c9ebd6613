"""The page's head: which base is drawn with, and the way to another one."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from ..service import Bases
from .common import QUIET, REFUSALS, refusal, status_line

# A browser that has the page open when its base is changed, or the program is started anew, is told so; what someone
# wrote there can still be copied.
SCRIPT = """<script>
(() => {
  const told = () => document.querySelector("#base-changed");
  const tell = () => {
    const note = document.createElement("div");
    note.id = "base-changed";
    note.setAttribute("role", "alert");
    note.append("The base was changed, or the program was started anew; this page is from before. ");
    const button = document.createElement("button");
    button.textContent = "Load the page again";
    button.onclick = () => location.reload();
    note.append(button);
    document.body.append(note);
  };
  setInterval(async () => {
    const { root, api_prefix, app_id } = window.gradio_config ?? {};
    if (!app_id || document.hidden || told()) return;
    try {
      const answer = await (await fetch(`${root.replace(/\\/$/, "")}${api_prefix}/app_id`)).json();
      if (answer.app_id !== app_id && !told()) tell();
    } catch { /* the page is closed, or being opened */ }
  }, 2000);
})();
</script>"""
RELOAD = "() => location.reload()"
CSS = """
#base-choose { margin-top: var(--spacing-sm); }
#base-status p { margin: 0 0 var(--spacing-sm); overflow-wrap: anywhere; }
#base-changed { position: fixed; inset: auto 0 0 0; z-index: 1000; padding: var(--spacing-lg); text-align: center;
  font-family: var(--font); background: var(--button-primary-background-fill);
  color: var(--button-primary-text-color); }
#base-changed button { min-height: 44px; margin-left: var(--spacing-md); padding: 0 var(--spacing-lg); font: inherit;
  color: inherit; background: none; border: 1px solid currentcolor; border-radius: var(--radius-md); cursor: pointer; }
"""


def build(bases: Bases) -> None:
    """Put the head on the page that is being built."""
    shown, studio = bases.shown(), bases.current.studio
    gr.Markdown(f"# coeff-diffusion\nDrawing on the base *{studio.base}*: {bases.about()}.", elem_id="page-head")
    with gr.Accordion("Another base", open=False, elem_id="base-choose"):
        choice = gr.Dropdown(
            bases.choices(),
            value=shown,
            label="Base",
            info="embedded, a folder or a .safetensors file of this computer, or an id on the Hub such as user/base"
            if bases.anyone
            else "Those that were used on this computer; others are named where the page is opened, with --base",
            allow_custom_value=bases.anyone,
            elem_id="base-choice",
        )
        status = gr.HTML(status_line(*filter(None, [bases.look(shown), bases.remark])), elem_id="base-status")
        load = gr.Button("Draw with this base", elem_id="base-load")

    def look(name: str | None) -> str:
        try:
            return status_line(bases.look(name or ""))
        except REFUSALS as error:
            return status_line(str(error), refused=True)

    def switch(name: str | None) -> Iterator[Any]:
        try:
            for sentence in bases.watch(name or ""):
                yield status_line(sentence), gr.Button(interactive=False)
        except REFUSALS as error:
            yield status_line(str(error), refused=True), gr.Button(interactive=True)
            raise refusal(error) from error
        yield status_line("It is there; the page loads again."), gr.Button(interactive=False)

    choice.change(look, choice, status, **QUIET)
    load.click(switch, choice, [status, load], **QUIET).success(None, None, None, js=RELOAD)
