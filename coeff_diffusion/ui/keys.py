"""What the keyboard does on any tab, what the browser's tab says while something is drawn, and what fingers need."""

# Buttons are called after their tab: draw-button, draw-cancel, ... (see `job_bar`). Only what is to be seen is pressed.
SCRIPT = """<script>
(() => {
  const press = (end) => {
    const all = [...document.querySelectorAll(`button[id$="-${end}"]`)];
    const found = all.find((one) => one.offsetParent && !one.disabled);
    if (found) found.click();
    return Boolean(found);
  };
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      // A number is brought within its ends when its field is left; one that is not yet, no button of gradio's takes.
      if (event.target.type === "number") event.target.blur();
      setTimeout(() => { press("button"); event.target.focus?.(); });
    }
    const list = event.target.getAttribute?.("aria-expanded") === "true";  // of choices, which Escape closes first
    if (event.key === "Escape" && !list && event.isTrusted) press("cancel");
  });
  // A list of choices that one leaves by Tab would stay open over what comes next.
  document.addEventListener("focusout", ({ target }) => setTimeout(() => {
    if (target.getAttribute?.("aria-expanded") === "true" && document.activeElement !== target) {
      target.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape", bubbles: true }));
    }
  }, 150));
  const name = "coeff-diffusion";
  setInterval(() => {
    const bar = document.querySelector('[id$="-status"] progress');
    const share = bar && bar.max ? `${Math.round((100 * bar.value) / bar.max)} % - ` : "";
    if (document.title !== share + name) document.title = share + name;
    // What gradio shows where there is no picture yet has a name, but nothing that says what it is.
    document.querySelectorAll(".empty[aria-label]:not([role])").forEach((one) => one.setAttribute("role", "img"));
  }, 500);
})();
</script>"""
CSS = """
@media (max-width: 820px) {
  button:not(.icon-button):not([aria-label]), [role="tab"], input:not([type="checkbox"]):not([type="radio"]), select {
    min-height: 44px; }
  .tab-like-container { height: auto !important; } /* a slider's number and its reset */
  button.label-wrap { align-items: center; }
  label:has(> input[type="checkbox"]), label:has(> input[type="radio"]) { min-height: 44px; }
}
"""
