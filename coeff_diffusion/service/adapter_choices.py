"""The adapters that a training may have learn beside the coefficients: what is offered, and what each costs."""

from typing import Any

import torch

from ..families.layout import layout_of
from ..families.registry import sites_of
from ..subject.adapter_kind import METHODS, AdapterKind
from ..subject.errors import CoefficientsError
from ..training.adapter import LearningAdapter, is_rounded

RANK, LARGER = 4, 16  # where a method has ranks; the larger one of the first method, which people know best
ENTRY = 80  # bytes of a file's header for each tensor, beside its name
BROUGHT = (
    "Any other rank can be typed. On the embedded base neither a LoRA nor a DoRA made pictures measurably more like "
    "the subject (docs/paper.md)."
)


def offered() -> list[AdapterKind]:
    """One of each method, at a usual rank where it has ranks, and the first one larger."""
    written = [text for method in METHODS for text in (method, f"{method}:{RANK}")]
    return [kind for text in [*written, f"{METHODS[0]}:{LARGER}"] if (kind := _kind(text)) is not None]


def adapter_choices(pipe: Any) -> list[tuple[str, str]]:
    """What is offered for a base, in words and as `TrainConfig.with_adapter` has it; none is empty."""
    return [
        ("none", ""),
        *((f"{one}: a second file of {_words(adapter_bytes(pipe, one))}", str(one)) for one in offered()),
    ]


def adapter_bytes(pipe: Any, kind: AdapterKind) -> int:
    """About how large the file of an adapter for this base is. No weight is looked at or made."""
    denoiser = layout_of(pipe).apart().denoiser
    learning = LearningAdapter(denoiser, sites_of(denoiser).values(), kind, 0, torch.device("meta"))
    tensors = learning.parameters
    return sum(one.numel() * (2 if is_rounded(name) else 4) + len(name) + ENTRY for name, one in tensors.items())


def _kind(text: str) -> AdapterKind | None:
    """None for a method that wants a rank and has none here, or the other way round."""
    try:
        return AdapterKind.parse(text)
    except CoefficientsError:
        return None


def _words(size: int) -> str:
    return f"about {size / 1e6:,.1f} MB" if size >= 1e6 else f"about {size / 1e3:,.0f} KB"
