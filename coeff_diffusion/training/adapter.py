"""An adapter that learns beside the coefficients: how it starts, and what is kept of it.

It changes every attention layer of the denoiser, also those that get no coefficients: that is what people mean by a
LoRA of a rank.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ..method.low_rank import attach_low_rank, projections, set_low_rank
from ..method.sites import Site
from ..subject.adapter import DOWN, MAGNITUDE, UP, Adapter, Factors
from ..subject.adapter_kind import AdapterKind
from .seeds import mixed_seed


class LearningAdapter:
    """Factors of a denoiser's attention projections, in training. At first they change nothing.

    Args:
        denoiser: frozen; the factors act in it from now on.
        sites: its attention layers.
        kind: of the adapter.
        seed: decides where the factors start.
        device: where they are trained.

    Attributes:
        parameters: float32, by projection and name ("mid_block....attn1.to_q.lora_A.weight").
    """

    def __init__(
        self, denoiser: Any, sites: Iterable[Site], kind: AdapterKind, seed: int, device: torch.device
    ) -> None:
        self.kind, layers = kind, projections(sites)
        generator = torch.Generator().manual_seed(mixed_seed(seed, -5))
        self.factors: dict[str, Factors] = {}
        for path, layer in layers.items():
            bound = 1 / math.sqrt(layer.in_features)  # as PEFT starts them
            down = torch.empty(kind.rank, layer.in_features).uniform_(-bound, bound, generator=generator)
            length = layer.weight.detach().norm(dim=1) if kind.method == "dora" else None
            learned = [down, torch.zeros(layer.out_features, kind.rank), length]
            self.factors[path] = Factors(
                *(None if one is None else nn.Parameter(one.to(device, torch.float32)) for one in learned)  # type: ignore[arg-type]
            )
        attach_low_rank(denoiser, layers)
        set_low_rank(denoiser, [(self.factors, 1.0)])

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        return {
            f"{path}.{name}": parameter
            for path, one in self.factors.items()
            for name, parameter in zip((DOWN, UP, MAGNITUDE), one, strict=True)
            if isinstance(parameter, nn.Parameter)
        }

    def snapshot(self) -> Adapter:
        """What is learned so far, as its file has it: the factors rounded to float16, magnitudes as they are."""
        kept = {}
        for path, (down, up, magnitude) in self.factors.items():
            length = None if magnitude is None else magnitude.detach().cpu().clone()
            kept[path] = Factors(down.detach().half().cpu(), up.detach().half().cpu(), length)
        return Adapter(self.kind, kept)


def is_rounded(name: str) -> bool:
    """Whether the file of a subject has a parameter of this name in float16: all but the magnitudes of a DoRA.

    These are the lengths of the base's own weights, nearly, and to round them is to change the base.
    """
    return not name.endswith(MAGNITUDE)
