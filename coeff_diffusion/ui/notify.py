"""A word from the browser when something long has ended while nobody was looking; only for who asked for it."""

import gradio as gr

from .common import QUIET

LABEL = "Tell me when long work is done"
# Work shows in the line of its tab: by its bar, or where there is none, by a mark (`AT_WORK`).
AT_WORK = "<i data-at-work hidden></i>"
SCRIPT = """<script>
(() => {
  const LONG = 10000, KEY = "coeff-diffusion-tell";  // milliseconds
  const can = () => window.Notification && window.isSecureContext;
  const wanted = () => can() && Notification.permission === "granted" && localStorage.getItem(KEY) === "on";
  const label = () => wanted() ? "You will be told when long work is done; press to leave it" : LABEL;
  window.coeffDiffusionTell = {
    label,
    press: async () => {
      if (!can()) return "This browser tells of nothing here: it does so for pages of this computer, or over https";
      if (wanted()) localStorage.removeItem(KEY);
      else if (await Notification.requestPermission() !== "granted") {
        return "The browser does not allow it; its settings for this page say so";
      } else localStorage.setItem(KEY, "on");
      return label();
    },
  };
  const since = new Map();  // when the work of a line was seen first
  setInterval(() => {
    for (const line of document.querySelectorAll('[id$="-status"]')) {
      const begun = since.get(line.id);
      if (line.querySelector("progress, [data-at-work]")) since.set(line.id, begun ?? Date.now());
      else if (begun !== undefined) {
        since.delete(line.id);
        const words = line.textContent.trim();
        if (Date.now() - begun > LONG && document.hidden && wanted()) new Notification("Done", { body: words });
      }
    }
  }, 500);
})();
</script>""".replace("LABEL", repr(LABEL))


def build(page: gr.Blocks) -> None:
    """Put the button that asks for it on the page that is being built."""
    button = gr.Button(LABEL, size="sm", variant="secondary", elem_id="page-tell")
    page.load(None, None, button, js="() => window.coeffDiffusionTell.label()", **QUIET)
    button.click(None, None, button, js="() => window.coeffDiffusionTell.press()", **QUIET)
