"""An editor to paint in over a picture, with one brush: what is painted is a mask."""

from typing import Any

import gradio as gr
from PIL import Image, ImageChops

# Gradio's editor begins a stroke only where it has seen the pointer move before. A finger does not, and its place is
# forgotten with every stroke; a mouse may not have since the picture came. So a press is told to it as a move first.
SCRIPT = """<script>
window.addEventListener("pointerdown", (event) => {
  if (event.target.closest?.(".pixi-target")) event.target.dispatchEvent(new PointerEvent("pointermove", event));
}, true);
</script>"""


def paint_editor(label: str, elem_id: str) -> gr.ImageEditor:
    """The editor, out of sight until there is a picture to paint over (see `canvas`)."""
    return gr.ImageEditor(
        label=label,
        show_label=False,
        type="pil",
        format="png",
        sources=(),
        transforms=(),
        layers=False,
        brush=_brush(1),
        buttons=[],
        visible=False,
        elem_id=elem_id,
    )


def canvas(picture: Image.Image | None) -> gr.ImageEditor:
    """What an editor shows: a picture to paint over, with nothing painted yet; without one, nothing."""
    if picture is None:
        return gr.ImageEditor(None, visible=False)
    value: Any = {"background": picture, "layers": [], "composite": None}
    return gr.ImageEditor(value, brush=_brush(min(picture.size)), visible=True)


def painted(drawn: dict[str, Any] | None, size: tuple[int, int]) -> Image.Image | None:
    """What was painted in the editor, mode L, in the size of the picture; None where nothing was."""
    found = None
    for layer in (drawn or {}).get("layers", ()):
        alpha = layer.getchannel("A")
        found = alpha if found is None else ImageChops.lighter(found, alpha)
    if found is None or found.getextrema()[1] == 0:
        return None
    return found if found.size == size else found.resize(size, Image.Resampling.BILINEAR)


def _brush(side: int) -> gr.Brush:
    """A brush for a picture of so many pixels, its smaller side."""
    return gr.Brush(default_size=max(1, side // 12), colors=["#f97316"], color_mode="fixed")
