"""The loss of a training as a curve that can be read."""

from collections.abc import Mapping, Sequence

import numpy as np

from ..training.validation import best_step

WINDOW = 25  # steps in the mean: the loss of one step says little, its timesteps are drawn at random
POINTS = 300  # of each line: more than a page shows
EACH, MEAN, VALIDATION, BEST, MARK = "each", "mean", "val", "best", "here"  # a phone shows five names as short as these


def loss_curve(
    losses: Sequence[float], mark: int | None = None, validation: Mapping[int, float] | None = None
) -> list[tuple[int, float, str]]:
    """Points `(step, loss, line)`: the loss of each step, its trailing mean, and what was measured on fixed noise, with
    an upright line at the step that is the best by that.

    Args:
        losses: of the steps from 1.
        mark: a step to point at: one more line, upright.
        validation: the losses that were measured on the way, by step.
    """
    if not losses:
        return []
    values = np.asarray(losses, dtype=np.float64)
    sums = np.concatenate([[0.0], values.cumsum()])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - WINDOW)
    means = (sums[ends] - sums[starts]) / (ends - starts)
    shown = np.unique(np.linspace(0, len(values) - 1, min(POINTS, len(values))).round().astype(int))
    points = [
        (int(i) + 1, float(f"{line[i]:.4g}"), name) for line, name in ((values, EACH), (means, MEAN)) for i in shown
    ]
    measured = sorted((validation or {}).items())
    few = {int(i) for i in np.linspace(0, len(measured) - 1, min(POINTS, len(measured))).round()}
    points += [(step, float(f"{loss:.4g}"), VALIDATION) for i, (step, loss) in enumerate(measured) if i in few]
    low, high = float(values.min()), float(values.max())
    if measured:  # of no length before there is a best step: a plot learns the names of its lines from what comes first
        best = best_step(dict(measured))
        points += [(best or 0, low, BEST), (best or 0, low if best is None else high, BEST)]
    if mark is not None:
        points += [(mark, low, MARK), (mark, high, MARK)]
    return points


def curve_words(losses: Sequence[float], validation: Mapping[int, float] | None = None) -> str:
    """What the curve shows, in a sentence for those who do not see it."""
    if not losses:
        return ""
    last = losses[-WINDOW:]
    told = f"After step {len(losses)}, mean loss of the last {len(last)}: {sum(last) / len(last):.4f}"
    if validation and (best := best_step(validation)) is not None:
        before = f" ({validation[0]:.4f} before training)" if 0 in validation else ""
        told += f"; best: step {best}, validation loss {validation[best]:.4f}{before}"
    return told
