from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from PIL import Image

matplotlib = pytest.importorskip("matplotlib")

from coeff_diffusion.inference.attention_maps import WordMap  # noqa: E402
from coeff_diffusion.service.charts import coefficient_chart, norm_chart, render, titles, word_chart  # noqa: E402

PLACES = {"down_blocks.1": 1, "up_blocks.0": 2, "mid_block": 1}  # attentions of each block
PATHS = [
    f"{block}.attentions.{i}.transformer_blocks.0.attn{kind}"
    for block, count in PLACES.items()
    for i in range(count)
    for kind in (1, 2)
]


def panels(figure: Any) -> list[Any]:
    """The axes that show something, colour bars left out."""
    return [axes for axes in figure.axes if axes.images]


def test_layers_have_readable_names_in_the_order_of_the_unet() -> None:
    named = titles([*PATHS, "elsewhere.attn1"])
    assert list(named.values()) == [
        *("down 1 · self", "down 1 · cross", "mid · self", "mid · cross"),
        *("up 0a · self", "up 0a · cross", "up 0b · self", "up 0b · cross", "elsewhere.attn1"),
    ]
    assert list(named)[:2] == PATHS[:2]
    deep = [f"down_blocks.2.attentions.0.transformer_blocks.{i}.attn2" for i in (10, 9, 0)]
    assert list(titles(deep).values()) == ["down 2.1 · cross", "down 2.10 · cross", "down 2.11 · cross"]
    assert list(titles(["up_blocks.10", "mid_block", "up_blocks.9"]).values()) == ["mid", "up 9", "up 10"]
    reading = [f"text_encoder{n}/text_model.encoder.layers.{i}.self_attn" for n in ("_2", "") for i in (10, 9)]
    assert list(titles([PATHS[0], *reading]).values())[:4] == ["text · 10", "text · 11", "text 2 · 10", "text 2 · 11"]
    assert list(titles(["mid_block", "text_encoder_2", "text_encoder"]).values()) == ["text", "text 2", "mid"]


@pytest.mark.parametrize("heads", [(2, 8), (5, 20)])
def test_coefficients_share_one_scale_around_zero(heads: tuple[int, int]) -> None:
    coeffs = {path: torch.randn(n, n) for path, n in zip(PATHS, heads * 4, strict=True)}
    coeffs[PATHS[3]][1, 0] = -9.5
    figure = coefficient_chart(coeffs)
    shown = {axes.get_title(): axes.images[0] for axes in panels(figure)}
    assert list(shown) == list(titles(PATHS).values())
    assert {image.get_clim() for image in shown.values()} == {(-9.5, 9.5)}
    array = shown["up 0a · cross"].get_array()
    assert array[1, 0] == -9.5  # row: the head that receives
    bars = [axes for axes in figure.axes if "coefficient" in axes.get_xlabel()]
    assert len(bars) == 1
    rows = {axes.get_title(): axes.get_subplotspec().rowspan.start for axes in panels(figure)}
    assert [rows[name] for name in ("down 1 · cross", "mid · self", "mid · cross", "up 0b · cross")] == [0, 1, 1, 2]


def test_of_many_layers_only_new_sizes_are_numbered() -> None:
    """As SDXL has them: text is what takes the time of a large chart."""
    heads = [10] * 20 + [20] * 120
    paths = [f"down_blocks.2.attentions.0.transformer_blocks.{i // 2}.attn{1 + i % 2}" for i in range(140)]
    figure = coefficient_chart({path: torch.zeros(n, n) for path, n in zip(paths, heads, strict=True)})
    assert len(panels(figure)) == 140
    numbered = [axes.get_title() for axes in panels(figure) if axes.axison]
    first = list(titles(paths).values())[::6]
    assert numbered == sorted([*first, "down 2.11 · self"], key=list(titles(paths).values()).index)


def test_coefficients_of_zero_are_white() -> None:
    image = panels(coefficient_chart({PATHS[0]: torch.zeros(4, 4)}))[0].images[0]
    assert min(image.cmap(image.norm(0.0))) > 0.9


def test_norms_are_the_lengths_of_the_bars() -> None:
    norms = {"up_blocks.1": {"self": 2.0}, "down_blocks.0": {"self": 1.0, "cross": 3.0}, "text_encoder": {"text": 4.0}}
    (axes,) = norm_chart(norms).axes
    lengths = {bars.get_label(): [bar.get_height() for bar in bars] for bars in axes.containers}
    assert lengths == {"text encoder": [4.0], "self-attention": [1.0, 2.0], "cross-attention": [3.0]}
    assert [label.get_text() for label in axes.get_xticklabels()] == ["text", "down 0", "up 1"]
    assert len({bars[0].get_facecolor() for bars in axes.containers}) == 3


def test_maps_before_and_after_share_their_scale() -> None:
    fine = WordMap(torch.tensor([[0.0, 0.2], [0.1, 0.1]]), torch.tensor([[-0.1, 1.2], [0.1, 0.1]]), 3)
    coarse = WordMap(torch.tensor([[0.5]]), torch.tensor([[0.5]]), 1)
    figure = word_chart(Image.new("RGB", (16, 16), "white"), [fine, coarse])
    limits = [axes.images[1].get_clim() for axes in panels(figure)]
    assert limits[:3] == [pytest.approx(pair) for pair in ((-0.1, 1.2), (-0.1, 1.2), (-1.0, 1.0))]
    assert [axes.get_ylabel() for axes in panels(figure)][::3] == ["2 × 2, 3 layers", "1 × 1, 1 layer"]
    assert limits[3:] == [(0.0, 0.5), (0.0, 0.5), (-0.001, 0.001)]
    assert all(axes.images[1].get_alpha() < 1 for axes in panels(figure))
    assert {axes.get_xlabel() for axes in figure.axes} == {"", "share of attention", "after − before"}
    ticks = [label.get_text() for axes in figure.axes for label in axes.get_xticklabels()]
    assert {"0%", "50%", "100%"} <= set(ticks)
    render(figure)


def test_charts_are_drawn_in_any_thread() -> None:
    def draw(_: int) -> bytes:
        return render(coefficient_chart({path: torch.eye(4) for path in PATHS[:2]})).tobytes()

    with ThreadPoolExecutor(3) as threads:
        assert len(set(threads.map(draw, range(6)))) == 1
