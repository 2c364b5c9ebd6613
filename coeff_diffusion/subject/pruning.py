"""A subject with its strongest matrices alone: smaller files, where a base has many layers."""

from dataclasses import replace

from torch import Tensor

from .coefficients import Coefficients
from .errors import CoefficientsError
from .places import LayerKinds, text_encoder_of


def average_change(coeff: Tensor) -> float:
    """How much a layer's coefficients `[H, H]` change a head's map on average: `||C||_F / sqrt(H)`.

    Layers of many and of few heads can be compared by it; the identity would have 1.
    """
    return float(coeff.norm()) / len(coeff) ** 0.5


def keep_strongest(subject: Coefficients, share: float) -> Coefficients:
    """The subject with the strongest of its layers (see `average_change`): as many as fit into a share of its numbers.

    Layers are kept or left out as a whole: single zeros in a matrix make no file smaller. What the trigger has learned
    stays.

    Args:
        share: of the numbers in all matrices, 0 to 1; 0 leaves only what the trigger has learned.

    Raises:
        CoefficientsError: the share is out of bounds, or nothing would be left.
    """
    if not 0 <= share <= 1:
        raise CoefficientsError(f"the share to keep is {share:.0%}, expected 0 to 100%")
    room = round(share * sum(coeff.numel() for coeff in subject.values()), 6)  # 29 % of 100 are 29
    kept = set()
    for path in sorted(subject, key=lambda path: average_change(subject[path]), reverse=True):
        if (room := room - subject[path].numel()) < 0:
            break
        kept.add(path)
    if len(kept) == len(subject):
        return subject
    if not kept and not subject.tokens:
        first = max(subject, key=lambda path: average_change(subject[path]))
        raise CoefficientsError(
            f"{share:.0%} of its coefficients is less than its strongest layer, {first}, and it has no learned word; "
            "keep more"
        )
    # Which layers are meant is written down by name: one that is missing among them is an error at load.
    paths = tuple(path for path in subject if path in kept)
    layers: LayerKinds = "all+text" if any(map(text_encoder_of, paths)) else "all"
    info = replace(subject.info, layers=layers, blocks=paths)
    return subject.replace(coeffs={path: subject[path] for path in info.blocks}, info=info)
