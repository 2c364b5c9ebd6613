"""What single heads have learned: how far each is from the base's, and a subject without one of them.

Legend: H heads of a layer.
"""

from typing import Literal

import torch
from torch import Tensor

from .coefficients import Coefficients
from .errors import CoefficientsError, cut, listed, shown

Part = Literal["row", "column"]


def head_changes(coeff: Tensor) -> Tensor:
    """How much each head's map is changed by a layer's coefficients `[H, H]`: the norms of their rows, `[H]`."""
    return coeff.norm(dim=1)


def without_head(subject: Coefficients, path: str, head: int, part: Part = "row") -> Coefficients:
    """The subject with the recombination of one head switched off.

    Row h of a layer's coefficients is all that decides what head h receives, so that with a row of zeros this head uses
    the base's own map again, as if nothing had been learned for it; the other heads may still use its map. Each
    coefficient stands in one row: switching off one head after the other takes a layer apart without a rest.

    Args:
        path: the attention layer.
        head: of that layer, from 0.
        part: "row", as said above; or "column", where the head keeps what it receives and nobody, itself included, gets
            more or less of its map than in the base.

    Raises:
        CoefficientsError: the subject has no coefficients of such a layer, or the layer no such head.
    """
    if path not in subject:
        there = listed(list(subject)) or "no layer"
        raise CoefficientsError(f"the subject has no coefficients of a layer {shown(path)}; it has those of {there}")
    coeff = subject[path]
    if not 0 <= head < len(coeff):
        raise CoefficientsError(f"{cut(path)} has no head {head}, expected 0 to {len(coeff) - 1}")
    lines = torch.arange(len(coeff)) == head
    off = lines[:, None] if part == "row" else lines[None, :]
    return subject.replace(coeffs={**subject, path: coeff.masked_fill(off, 0)})
