"""A few of a base's weights: they tell a base from its fine-tunes, wherever it is loaded."""

import torch
from torch import Tensor

from .errors import cut
from .info import CoefficientsInfo

# Rounding to bfloat16 changes a weight by up to 0.4 % of itself; a fine-tune changes most by more. Below the second
# number float16 has no steps of that size any more.
SAME_WEIGHTS_TOLERANCE = (0.005, 1e-7)


def same_weights(first: tuple[float, ...], second: tuple[float, ...]) -> bool:
    """Whether two samples are of the same weights, give or take the rounding to float16 or bfloat16.

    The shorter one may be every nth number of the longer one: a QR code has room for a few.
    """
    relative, absolute = SAME_WEIGHTS_TOLERANCE
    first, second = sorted((first, second), key=len)
    second = second[:: max(1, len(second) // max(1, len(first)))]
    return len(first) == len(second) and all(
        abs(a - b) <= relative * max(abs(a), abs(b)) + absolute for a, b in zip(first, second, strict=True)
    )


def other_weights(info: CoefficientsInfo, sample: tuple[float, ...]) -> str:
    """A sentence for the user where a subject comes from other weights of the same structure, such as a fine-tune.

    Args:
        sample: `weight_sample` of the base at hand. Where either side has none, nobody can tell: no sentence.
    """
    if not info.base_sample or not sample or same_weights(info.base_sample, sample):
        return ""
    return (
        f"the subject was trained on {cut(info.base_model) or 'a base'}, which is of the same kind as this base but "
        "has other weights; it may look different here"
    )


def spread(weight: Tensor, count: int) -> list[float]:
    """`count` numbers of a tensor, from its first to its last, evenly spread; six digits of each."""
    flat = weight.detach().flatten()
    # In integers: float32 cannot count to the last of 49,408 x 768 weights, and rounds it to one past the end.
    index = torch.tensor([i * (flat.numel() - 1) // (count - 1) for i in range(count)], device=flat.device)
    return [float(f"{value:.6g}") for value in flat[index].float().tolist()]
