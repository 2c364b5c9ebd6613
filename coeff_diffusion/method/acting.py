"""Coefficients as a layer needs them.

Legend: B samples, H heads.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .kernels import diagonal_of


class Acting(NamedTuple):
    """The coefficients that act in a layer."""

    coeff: Tensor  # [H, H], or [B, H, H], one matrix per sample
    diagonal: Tensor | None = None  # [H] or [B, H], where `coeff` is zero elsewhere
    rows: Tensor | None = None  # indices of the samples to act on, if not on all; the others are the base's, bitwise

    @classmethod
    def of(cls, coeff: Tensor, device: torch.device | str | None = None) -> "Acting | None":
        """What of `coeff` acts; None where all of it is zero. A parameter acts in any case: it needs its gradient."""
        if coeff.requires_grad:
            return cls(coeff)
        on = coeff.flatten(-2).any(-1)  # [] or [B]
        if not on.any():
            return None
        found = cls(coeff.to(torch.float32), diagonal_of(coeff), None if on.all() else on.nonzero().squeeze(1))
        return found if device is None else found.to(device)

    def to(self, device: torch.device | str) -> "Acting":
        """The same on a device."""
        coeff, diagonal, rows = self
        diagonal = None if diagonal is None else diagonal.to(device)
        return Acting(coeff.to(device), diagonal, None if rows is None else rows.to(device))

    def of_rows(self, rows: Tensor) -> "Acting":
        """What acts on some samples; `rows` None."""
        return Acting(self.coeff[rows], None if self.diagonal is None else self.diagonal[rows])

    def of_first(self, count: int) -> "Acting | None":
        """What acts where a batch has the first samples alone; None where nothing does."""
        coeff, diagonal, rows = self
        rows = None if rows is None else rows[rows < count]
        if rows is not None and not len(rows):
            return None
        return Acting(coeff[:count], None if diagonal is None else diagonal[:count], rows)

    def repeated(self, times: int) -> "Acting":
        """The same for a batch that holds several rows of each sample, one after another, such as frames of a video."""
        coeff, diagonal, rows = self
        if rows is not None:
            rows = (rows.unsqueeze(1) * times + torch.arange(times, device=rows.device)).flatten()
        diagonal = None if diagonal is None else diagonal.repeat_interleave(times, 0)
        return Acting(coeff.repeat_interleave(times, 0), diagonal, rows)
