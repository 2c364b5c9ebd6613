"""Several loaded subjects in one layer: the sum of their matrices, each at its strength.

Legend: B rows of a batch, S subjects, H heads.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor


def weights_of(strengths: Sequence[Mapping[str, float]], names: Sequence[str]) -> Tensor:
    """The strength of each subject in each row, `[B, S]` float32; `[S]` where all rows are alike.

    Args:
        strengths: by name, one mapping for each row; a subject that is not named has none.
    """
    weights = torch.tensor([[float(one.get(name, 0)) for name in names] for one in strengths])  # [B, S]
    return weights[0] if (weights == weights[0]).all() else weights


def blended(
    subjects: Sequence[Mapping[str, Tensor]], weights: Tensor, factor: Callable[[str], float]
) -> dict[str, Tensor]:
    """What acts in each layer that a subject has coefficients for, `[H, H]` or `[B, H, H]` by path.

    Args:
        subjects: matrices `[H, H]` by path of each.
        weights: see `weights_of`.
        factor: on all strengths, of a layer by its path.
    """
    stacks: dict[str, list[tuple[int, Tensor]]] = {}
    for number, coeffs in enumerate(subjects):
        for path, coeff in coeffs.items():
            stacks.setdefault(path, []).append((number, coeff))
    return {
        path: torch.tensordot(weights[..., [number for number, _ in stack]], torch.stack([c for _, c in stack]), 1)
        * factor(path)
        for path, stack in stacks.items()
    }
