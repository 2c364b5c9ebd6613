"""Several passes of one drawing, told as one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from .request import DrawProgress

OnStep = Callable[[DrawProgress], None]


@dataclass(frozen=True)
class Pass:
    """One pass.

    Attributes:
        calls: how often it calls the denoiser.
        cost: of a call, in those of the first pass.
    """

    calls: int
    cost: float = 1.0


def told_as_one(on_step: OnStep | None, passes: Sequence[Pass]) -> list[OnStep | None]:
    """What each of the passes is to report to."""
    return [None if on_step is None else _part(on_step, passes, number) for number in range(len(passes))]


def _part(on_step: OnStep, passes: Sequence[Pass], number: int) -> OnStep:
    own, total = passes[number], sum(one.calls for one in passes)
    before = sum(one.calls for one in passes[:number])
    later = sum(one.calls * one.cost for one in passes[number + 1 :])

    def report(progress: DrawProgress) -> None:
        step = before + progress.step
        left = own.cost * (own.calls - progress.step) + later  # in calls of the first pass
        seconds = progress.seconds_per_step / own.cost * left / max(1, total - step)
        on_step(replace(progress, step=step, total=total, seconds_per_step=seconds))

    return report
