"""Masks painted over pictures: what was kept stays until something else is painted there."""

import pytest
from PIL import Image

pytest.importorskip("gradio")

from coeff_diffusion.ui.looked import Looked
from coeff_diffusion.ui.paint import painted


def drawn(*strokes: tuple[int, int, int, int]) -> dict:
    """What the editor holds: a picture of 8 x 8 pixels and a layer for each stroke."""
    layers = [Image.new("RGBA", (8, 8)) for _ in strokes]
    for layer, box in zip(layers, strokes, strict=True):
        layer.paste((249, 115, 22, 255), box)
    return {"background": Image.new("RGB", (8, 8)), "layers": layers, "composite": None}


def test_all_strokes_together_are_the_mask() -> None:
    mask = painted(drawn((0, 0, 4, 4), (4, 4, 8, 8)), (16, 16))
    assert mask is not None
    assert mask.size == (16, 16)
    assert [mask.getpixel(at) for at in ((1, 1), (14, 14), (14, 1))] == [255, 255, 0]
    assert painted(drawn(), (8, 8)) is None


def test_a_kept_mask_is_lost_only_to_another_one() -> None:
    first = painted(drawn((0, 0, 4, 4)), (8, 8))
    assert first is not None
    looked = Looked(("a.png", "b.png"), masks={"a.png": first}, painting="a.png")
    assert looked.with_mask(drawn()) == {"a.png": first}
    assert looked.with_mask(None) == {"a.png": first}
    assert looked.with_mask(drawn((4, 4, 8, 8)))["a.png"].tobytes() != first.tobytes()
    assert Looked(("a.png",)).with_mask(drawn((4, 4, 8, 8))) == {}  # no picture is being painted over
