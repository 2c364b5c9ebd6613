"""The numbers of a subject in eight bits: whole steps, and one scale for each tensor (format version 2).

A scale has four significant bits, so steps times scale have eleven: what is read is exact in float16, and a file of
half precision that is written from it loses nothing more.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from .errors import CoefficientsError

SCALES = "scales"
"""The tensor that holds the scales: float32 `[tensors of int8]`, in the order of their sorted names."""
MOST_STEPS = 127
MAX_SCALE = 1.0  # no number of a subject is above 100


def to_steps(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every tensor in whole steps (int8), and `SCALES`; no number moves by more than half a step.

    The scale is the smallest of four significant bits that is not below a 127th of the tensor's largest magnitude.
    """
    names = sorted(tensors)
    fraction, exponent = torch.frexp(torch.stack([tensors[name].abs().max() for name in names]) / MOST_STEPS)
    scales = torch.ldexp(torch.ceil(fraction * 16) / 16, exponent)
    steps = {}
    for name, scale in zip(names, scales, strict=True):
        whole = torch.zeros_like(tensors[name]) if scale == 0 else (tensors[name] / scale).round()
        steps[name] = whole.clamp(-MOST_STEPS, MOST_STEPS).to(torch.int8)
    return {**steps, SCALES: scales}


def from_steps(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `to_steps`: what is int8 becomes float32, all else stays as it is, `SCALES` is gone.

    Raises:
        CoefficientsError: there is not one scale for each tensor of int8, or one that no subject can have.
    """
    names, scales = sorted(name for name in tensors if tensors[name].dtype == torch.int8), tensors.get(SCALES)
    if scales is None or scales.dtype != torch.float32 or scales.shape != (len(names),):
        found = "none" if scales is None else f"{list(scales.shape)} of {str(scales.dtype).removeprefix('torch.')}"
        raise CoefficientsError(
            f"its {len(names)} tensors of int8 need a tensor {SCALES!r} of as many float32 numbers, "
            f"but there is {found}"
        )
    if not bool(((scales >= 0) & (scales <= MAX_SCALE)).all()):
        raise CoefficientsError(f"{SCALES} are {scales.min()} to {scales.max()}, expected 0 to {MAX_SCALE:g}")
    widened = {name: tensors[name].float() * scale for name, scale in zip(names, scales, strict=True)}
    return {name: widened.get(name, tensor) for name, tensor in tensors.items() if name != SCALES}
