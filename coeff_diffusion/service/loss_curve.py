"""The loss of a training as a curve that can be read."""

from collections.abc import Mapping, Sequence

import numpy as np

WINDOW = 25  # steps in the mean: the loss of one step says little, its timesteps are drawn at random
POINTS = 300  # of each line: more than a page shows
EACH, MEAN, MARK = "each step", f"mean of {WINDOW} steps", "this step"
VALIDATION = "validation"


def loss_curve(
    losses: Sequence[float], mark: int | None = None, validation: Mapping[int, float] | None = None
) -> list[tuple[int, float, str]]:
    """Points `(step, loss, line)`: the loss of each step, its trailing mean, and what was measured on fixed noise.

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
    if mark is not None:
        points += [(mark, float(values.min()), MARK), (mark, float(values.max()), MARK)]
    return points
