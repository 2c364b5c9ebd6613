"""The loss curve, as the Train tab and the Timeline tab show it."""

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from ..service.loss_curve import BEST, EACH, MARK, MEAN, VALIDATION, curve_words, loss_curve

# From the palette of Okabe and Ito, which colour-blind people can tell apart; each is readable on light and on dark.
COLOURS = {EACH: "#56B4E9", MEAN: "#D55E00", VALIDATION: "#CC79A7", BEST: "#0072B2", MARK: "#009E73"}
KINDS = {"step": "quantitative", "loss": "quantitative", "line": "nominal"}


def curve_plot(elem_id: str, visible: bool = True) -> gr.LinePlot:
    """An empty plot. It has no height of its own: gradio would cut the legend off.

    Args:
        visible: one that is shown empty first draws no lines later: gradio takes their names from what it shows first.
    """
    return gr.LinePlot(
        x="step",
        y="loss",
        color="line",
        color_title="loss",
        color_map=COLOURS,
        label="Loss",
        tooltip="all",
        visible=visible,
        elem_id=elem_id,
    )


def words_below(elem_id: str) -> gr.HTML:
    """What stands below a plot: the same in words. A caption of the plot's own, changed with its data, would have
    gradio draw the old ones again.
    """
    return gr.HTML(elem_id=elem_id, padding=False)


def curve_data(
    losses: Sequence[float], mark: int | None = None, validation: Mapping[int, float] | None = None
) -> dict[str, Any]:
    """The plot's value: these losses, what was measured on fixed noise, and an upright line at the step `mark`."""
    points = loss_curve(losses, mark, validation)
    return {"columns": list(KINDS), "data": points, "datatypes": KINDS, "mark": "line"}


def curve_text(losses: Sequence[float], validation: Mapping[int, float] | None = None) -> str:
    """The same in words, as `words_below` shows it."""
    words = curve_words(losses, validation)
    return words and f"<p>{words}</p>"
