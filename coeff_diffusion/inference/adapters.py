"""The adapters that subjects learned with, in a pipeline: how strongly each acts in a batch.

Legend: B rows of the denoiser's batch, S subjects.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from ..method.adapter_hooks import attach_adapters, projections
from ..method.sites import Site
from ..subject.adapter import Adapter
from ..subject.coefficients import Coefficients


def attach_adapter(denoiser: Any, subject: Coefficients, sites: Mapping[str, Site]) -> None:
    """Let the adapter of a subject change a denoiser, if it has one. It does not act yet."""
    if subject.adapter is not None:
        attach_adapters(denoiser, projections(sites.values()))


def acting_adapters(
    subjects: Iterable[Coefficients], weights: Tensor, factor: float
) -> list[tuple[Adapter, float | Tensor]]:
    """The adapters that act, each with its strength: of all rows, or `[B]`.

    Args:
        weights: the strength of each subject, `[S]`, or `[B, S]` for each row.
        factor: on all of them.
    """
    found: list[tuple[Adapter, float | Tensor]] = []
    for number, subject in enumerate(subjects):
        strength = weights[..., number] * factor
        if subject.adapter is not None and strength.any():
            found.append((subject.adapter, strength if strength.ndim else float(strength)))
    return found
