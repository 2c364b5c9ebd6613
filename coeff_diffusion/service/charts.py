"""Charts of a subject: its coefficients, their norms, and where a word acts in a picture.

Each is a figure of its own on white, readable on a light page and on a dark one; matplotlib's global state is not
touched. No text from a user gets into a chart, where it could be taken for markup. The colours are safe for colour
blindness: red-blue for signed values, viridis for amounts, Okabe and Ito's for kinds.
"""

import io
import re
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from ..inference.attention_maps import WordMap
from ..subject.errors import cut

if TYPE_CHECKING:  # loaded where a chart is drawn: nothing else needs it
    from matplotlib.figure import Figure

SIGNED, AMOUNT = "RdBu_r", "viridis"
KINDS = {"text": "#009E73", "self": "#0072B2", "cross": "#E69F00", "other": "#999999"}
KIND_OF = {"1": "self", "2": "cross"}
CALLED = {"text": "text encoder", "self": "self-attention", "cross": "cross-attention", "other": "other"}
STAGES = ("text", "down", "mid", "up")
TEXT = re.compile(r"text_encoder(?:_(?P<number>\d))?(?:/text_model\.encoder\.layers\.(?P<layer>\d{1,3})\.self_attn)?")
LAYER = re.compile(
    r"(?P<stage>down|mid|up)_blocks?(?:\.(?P<block>\d+))?"
    r"(?:\.attentions\.(?P<attention>\d+)\.transformer_blocks\.(?P<depth>\d+)\.attn(?P<kind>[12]))?"
)
WIDTH = 6.4  # inches
DPI = 160
MOST_NUMBERED = 40  # layers whose heads are all numbered; SDXL has 140, and text is what takes the time
LEAST = 0.001  # of the attention: where all is less, nothing is blown up to look like much
_lock = threading.Lock()  # matplotlib's fonts and layout are not made for several threads


class Place(NamedTuple):
    """Where in a text encoder or the UNet a layer or block is; sorts in the order the data flows."""

    stage: int
    block: int = 0
    attention: int = 0
    depth: int = 0
    kind: str = ""
    path: str = ""


def place(path: str) -> Place:
    """The place of an attention path, or of a block's (`down_blocks.1`); of any other path, behind all of these."""
    if text := TEXT.fullmatch(path):
        return Place(STAGES.index("text"), int(text["number"] or 0), int(text["layer"] or 0), path=path)
    found = LAYER.fullmatch(path)
    if found is None:
        return Place(len(STAGES), path=path)
    block, attention, depth = (int(found[name] or 0) for name in ("block", "attention", "depth"))
    return Place(STAGES.index(found["stage"]), block, attention, depth, found["kind"] or "", path)


def titles(paths: Sequence[str]) -> dict[str, str]:
    """Readable names of layers or blocks, in the order the data flows: "down 1 · self" is self-attention of
    `down_blocks.1`; "up 0b" is the second attention of `up_blocks.0`, "up 0b.3" the third layer of a deep one; "text 2
    · 5" is the fifth layer of the second text encoder.
    """
    places = sorted(map(place, paths))
    several = {at[:2] for at in places if at.attention}
    deep = {at[:3] for at in places if at.depth}
    named = {}
    for at in places:
        if at.stage == len(STAGES):
            named[at.path] = cut(at.path, 24)
            continue
        if STAGES[at.stage] == "text":
            number = f" {at.block}" if at.block else ""
            named[at.path] = f"text{number}" + (f" · {at.attention + 1}" if "/" in at.path else "")
            continue
        name = STAGES[at.stage] + (f" {at.block}" if STAGES[at.stage] != "mid" else "")
        if at.kind:
            name += chr(ord("a") + at.attention) if at[:2] in several else ""
            name += f".{at.depth + 1}" if at[:3] in deep else ""
            name += f" · {KIND_OF[at.kind]}"
        named[at.path] = name
    return named


def coefficient_chart(coeffs: Mapping[str, Tensor]) -> "Figure":
    """A heat map of each layer's coefficients, on one scale; each part of the UNet starts a new line.

    Args:
        coeffs: `[H, H]` by attention path, at least one.
    """
    named = titles(list(coeffs))
    columns = 4 if len(named) <= 16 else 6
    lines = [list(named)[i : i + columns] for i in _line_starts(list(named), columns)]
    lines = [[path for path in line if place(path).stage == place(line[0]).stage] for line in lines]
    figure = _figure(WIDTH, 1.2 + 1.05 * WIDTH / columns * len(lines))
    grid = figure.subplots(len(lines), columns, squeeze=False)
    limit = max(float(coeff.abs().max()) for coeff in coeffs.values()) or 1.0
    for axes, line in zip(grid, lines, strict=True):
        for number, (panel, path) in enumerate(zip(axes, line, strict=False)):
            heads = len(coeffs[path])
            shown = panel.imshow(coeffs[path].float().cpu().numpy(), cmap=SIGNED, vmin=-limit, vmax=limit)
            panel.set_title(named[path], fontsize=9 if columns == 4 else 8 if len(named) <= MOST_NUMBERED else 7)
            if len(named) > MOST_NUMBERED and number and heads == len(coeffs[line[number - 1]]):
                panel.set_axis_off()
                continue
            panel.set_xticks([0, heads - 1], ["1", str(heads)], fontsize=7)
            panel.set_yticks([0, heads - 1], ["1", str(heads)], fontsize=7)
            panel.tick_params(length=2, pad=2)
        for panel in axes[len(line) :]:
            panel.set_axis_off()
    bar = figure.colorbar(shown, ax=grid, location="top", aspect=40, shrink=0.9, pad=0.02)
    bar.set_label("coefficient: what the subject adds to the base's mixing weight", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    figure.supxlabel("column: the head whose map is used", fontsize=9)
    figure.supylabel("row: the head that receives", fontsize=9)
    return figure


def norm_chart(norms: Mapping[str, Mapping[str, float]]) -> "Figure":
    """Bars of how far each block is from the base.

    Args:
        norms: by block and kind of layer, as in `info.subject_facts`; at least one.
    """
    named = titles(list(norms))
    kinds = [kind for kind in KINDS if any(kind in found for found in norms.values())]
    figure = _figure(WIDTH, 3.0)
    axes = figure.subplots()
    own = {block: [kind for kind in kinds if kind in norms[block]] for block in named}
    width = 0.8 / max(map(len, own.values()))
    for kind in kinds:
        bars = axes.bar(
            [
                i + (found.index(kind) - (len(found) - 1) / 2) * width
                for i, found in enumerate(own.values())
                if kind in found
            ],
            [norms[block][kind] for block in named if kind in norms[block]],
            width,
            label=CALLED[kind],
            color=KINDS[kind],
        )
        if len(named) <= 10:
            axes.bar_label(bars, fmt="%.2g", fontsize=7, padding=1)
    axes.set_xticks(range(len(named)), list(named.values()), fontsize=8, rotation=0 if len(named) <= 10 else 90)
    axes.tick_params(axis="y", labelsize=8)
    axes.set_ylabel("norm of the coefficients", fontsize=9)
    axes.margins(y=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=len(kinds), fontsize=9, frameon=False)
    return figure


def word_chart(picture: Image.Image, maps: Sequence[WordMap]) -> "Figure":
    """Maps of a word over the picture: before, after, and what the coefficients change; a line for each resolution.

    Args:
        maps: at least one. Before and after share one scale, from 0 where nothing is negative.
    """
    figure = _figure(WIDTH, 0.3 + (0.6 + WIDTH / 3 * picture.height / picture.width) * len(maps))
    grid = figure.subplots(len(maps), 3, squeeze=False)
    for axes, one in zip(grid, maps, strict=True):
        change = one.after - one.before
        low, high = min(0.0, float(one.after.min())), float(torch.maximum(one.before, one.after).max())
        high, limit = max(high, LEAST), max(float(change.abs().max()), LEAST)
        _overlay(axes[0], picture, one.before, AMOUNT, low, high)
        amount = _overlay(axes[1], picture, one.after, AMOUNT, low, high)
        signed = _overlay(axes[2], picture, change, SIGNED, -limit, limit)
        height, width = change.shape
        axes[0].set_ylabel(f"{width} × {height}, {one.layers} layer{'s' * (one.layers > 1)}", fontsize=8)
        _bar(figure, amount, axes[:2], "share of attention")
        _bar(figure, signed, axes[2:], "after − before")
    for panel, title in zip(grid[0], ("before: the base", "after: recombined", "difference"), strict=True):
        panel.set_title(title, fontsize=9)
    return figure


def render(figure: "Figure") -> Image.Image:
    """The chart as a picture."""
    with _lock:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI)
    return Image.open(buffer).convert("RGB")


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def _overlay(panel: Any, picture: Image.Image, values: Tensor, colours: str, low: float, high: float) -> Any:
    """Lay values over the picture, which is grey and pale beneath, so that the colours stay those of the bar."""
    extent = (0, picture.width, picture.height, 0)
    panel.imshow(picture.convert("L"), cmap="gray", vmin=-128, vmax=255, extent=extent)
    panel.set_xticks([])
    panel.set_yticks([])
    return panel.imshow(
        values.numpy(), cmap=colours, vmin=low, vmax=high, extent=extent, interpolation="bilinear", alpha=0.65
    )


def _bar(figure: "Figure", shown: Any, axes: Any, label: str) -> None:
    """A colour bar below some panels of a line."""
    bar = figure.colorbar(
        shown,
        ax=axes,
        location="bottom",
        aspect=15 * len(axes),
        pad=0.02,
        format=lambda value, _: f"{100 * value:.3g}%",
    )
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)
    bar.ax.locator_params(nbins=2 * len(axes))  # as many as there is room for


def _line_starts(paths: Sequence[str], columns: int) -> list[int]:
    """Where in the sorted paths a new line starts: when one is full, or the next part of the UNet begins."""
    starts: list[int] = []
    for i, path in enumerate(paths):
        if not starts or i - starts[-1] == columns or place(path).stage != place(paths[starts[-1]]).stage:
            starts.append(i)
    return starts
