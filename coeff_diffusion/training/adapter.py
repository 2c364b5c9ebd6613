"""An adapter that learns beside the coefficients: how it starts, and what is kept of it.

It changes every attention layer of the denoiser, also those that get no coefficients: that is what people mean by a
LoRA of a rank.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..method.adapter_hooks import attach_adapters, projections, set_adapters
from ..method.sites import Site
from ..subject.adapter import Adapter
from ..subject.adapter_kind import AdapterKind
from ..subject.adapter_methods import REGISTRY, Start
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
        self.kind = kind
        layers = {path: layer for path, layer in projections(sites).items() if path.endswith(kind.about.projections)}
        generator = torch.Generator().manual_seed(mixed_seed(seed, -5))
        self.factors: dict[str, dict[str, nn.Parameter]] = {}
        for path, layer in layers.items():
            self.factors[path] = {
                name: nn.Parameter(started(kind.about.starts[name], shape, layer, generator).to(device, torch.float32))
                for name, shape in kind.shapes(layer.out_features, layer.in_features).items()
            }
        attach_adapters(denoiser, layers)
        set_adapters(denoiser, [(self, 1.0)])

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        return {f"{path}.{name}": one for path, named in self.factors.items() for name, one in named.items()}

    def snapshot(self) -> Adapter:
        """What is learned so far, as its file has it (see `is_rounded`)."""
        kept = {
            path: {
                name: (one.detach().half() if is_rounded(name) else one.detach().clone()).cpu()
                for name, one in named.items()
            }
            for path, named in self.factors.items()
        }
        return Adapter(self.kind, kept)


def started(start: Start, shape: tuple[int, ...], layer: Any, generator: torch.Generator) -> Tensor:
    """What a tensor of a projection begins with."""
    if start == "length":
        return layer.weight.detach().norm(dim=1)
    if start == "uniform":
        bound = 1 / math.sqrt(shape[-1])
        return torch.empty(shape).uniform_(-bound, bound, generator=generator)
    return torch.zeros(shape) if start == "zero" else torch.ones(shape)


EXACT = tuple(
    name for method in REGISTRY.values() for name, start in method.starts.items() if start in ("one", "length")
)


def is_rounded(name: str) -> bool:
    """Whether the file of a subject has a parameter of this name in float16 (see `Start`)."""
    return not name.endswith(EXACT)
