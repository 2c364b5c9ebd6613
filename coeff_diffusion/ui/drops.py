"""Files that are dropped on the page: each place takes them or shows that it does not, and none is opened instead."""

# Where nothing takes a file, browsers leave the page for it, or open it beside. Gradio takes files where there are none
# yet: a field of several that has some took no more of them, and one of a picture was emptied.
SCRIPT = """<script>
(() => {
  const handle = (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    const taker = event.target.closest?.(".block:not(:has(.block))")?.querySelector('input[type="file"]');
    if (taker?.closest("button")?.contains(event.target)) return;  // gradio's own place for them
    event.preventDefault();
    event.stopPropagation();
    if (!taker) event.dataTransfer.dropEffect = "none";
    else if (event.type === "drop") {
      taker.files = event.dataTransfer.files;
      taker.dispatchEvent(new Event("change", { bubbles: true }));
    }
  };
  for (const moment of ["dragenter", "dragover", "drop"]) document.addEventListener(moment, handle, true);
})();
</script>"""
