"""Behind a proxy that keeps to itself what the browser asked for: the page is told, as nothing on it could work."""

# Gradio makes its addresses of what the proxy says; those of another name or of http the browser does not ask.
SCRIPT = """<script>
(() => {
  const root = window.gradio_config?.root;
  if (!root || new URL(root, location.href).origin === location.origin) return;
  const note = document.createElement("div");
  note.id = "page-proxied";
  note.setAttribute("role", "alert");
  note.textContent = "This page cannot work: the proxy in front of it does not hand on what it is called here, "
    + `${location.origin}. It has to send the headers Host (or X-Forwarded-Host) and X-Forwarded-Proto.`;
  document.body.prepend(note);
})();
</script>"""
CSS = """
#page-proxied { padding: 12px 32px; font-family: var(--font); color: var(--body-text-color);
  background: var(--block-background-fill); border-bottom: 1px solid var(--border-color-primary); }
"""
