"""What an adapter makes of a projection's output `y = W x + b`, at a strength `s`.

    LoRA (arXiv 2106.09685)       y + s B A x
    DoRA (arXiv 2402.09353)       y + s (m / |W + B A| (W + B A) - W) x         norms of the rows; m starts as |W|
    LoHa (arXiv 2108.06098)       y + s (A1 B1 * A2 B2) x                       * of entries
    LoKr (arXiv 2309.14859)       y + s (W1 kron W2) x
    (IA)3 (arXiv 2205.05638)      (1 + s (l - 1)) y
    SSF (arXiv 2210.08823)        (1 + s (g - 1)) y + s h
    Adapter (arXiv 1902.00751)    y + s (U relu(D y + d) + u)

At `s = 0` each gives `y`, bitwise. PEFT computes the same for those that it has, bit by bit at `s = 1` (the tests hold
one to the other). What each learns says `subject/adapter_methods.py`.

Legend: B rows of the batch; R rank; I, O channels into a projection and out of it.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, relu
from torch.utils.checkpoint import checkpoint

from ..subject.adapter_methods import DOWN, MAGNITUDE, UP

Strength = float | Tensor  # `[B, 1, ...]`, as many axes as the output
Act = Callable[[Any, Tensor, Tensor, Mapping[str, Tensor], Strength], Tensor]
"""From the projection, its input `[B, ..., I]`, its output so far `[B, ..., O]`, what is learned of it, and the
strength to the new output."""


def _lora(layer: Any, x: Tensor, output: Tensor, learned: Mapping[str, Tensor], strength: Strength) -> Tensor:
    return output + linear(linear(x, learned[DOWN].to(x)), learned[UP].to(x)) * strength


def _dora(layer: Any, x: Tensor, output: Tensor, learned: Mapping[str, Tensor], strength: Strength) -> Tensor:
    down, up = learned[DOWN].to(x), learned[UP].to(x)
    with torch.no_grad():  # as in the paper: no gradient passes through the norm
        eye = torch.eye(down.shape[1], device=x.device, dtype=x.dtype)
        length = torch.linalg.norm(layer.weight + linear(linear(eye, down), up).T, dim=1).to(x.dtype)  # [O]
    scale = learned[MAGNITUDE].to(x) / length
    bare = output if layer.bias is None else output - layer.bias
    change = (scale - 1) * bare + scale * linear(linear(x, down), up)
    return output + change * strength


def _loha(layer: Any, x: Tensor, output: Tensor, learned: Mapping[str, Tensor], strength: Strength) -> Tensor:
    parts = [learned[f"hada_w{number}"].to(x) for number in ("1_a", "1_b", "2_a", "2_b")]
    # The two products are as large as the base's weights: they are made again for the gradients, not kept.
    weight = checkpoint(_hadamard, *parts, use_reentrant=False, preserve_rng_state=False)  # [O, I]
    return output + linear(x, weight) * strength


def _hadamard(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    return (a @ b) * (c @ d)


def _lokr(layer: Any, x: Tensor, output: Tensor, learned: Mapping[str, Tensor], strength: Strength) -> Tensor:
    large = learned.get("lokr_w2")
    large = learned["lokr_w2_a"].to(x) @ learned["lokr_w2_b"].to(x) if large is None else large.to(x)
    return output + linear(x, torch.kron(learned["lokr_w1"].to(x), large)) * strength


def _ia3(layer: Any, x: Tensor, output: Tensor, learned: Mapping[str, Tensor], strength: Strength) -> Tensor:
    return _scaled(output, learned["ia3_l"].flatten(), strength)


def _ssf(layer: Any, x: Tensor, output: Tensor, learned: Mapping[str, Tensor], strength: Strength) -> Tensor:
    return _scaled(output, learned["ssf_scale"], strength) + learned["ssf_shift"].to(x) * strength


def _scaled(output: Tensor, scale: Tensor, strength: Strength) -> Tensor:
    """A factor is near one, where half precision is coarse: it keeps its own until it has acted."""
    scale = scale.to(output.device)
    if isinstance(strength, Tensor):
        strength = strength.to(scale)
    return (output * torch.lerp(torch.ones_like(scale), scale, strength)).to(output.dtype)  # exact at 0 and at 1


def _bottleneck(layer: Any, x: Tensor, output: Tensor, learned: Mapping[str, Tensor], strength: Strength) -> Tensor:
    down, up = ([learned[f"adapter_{side}.{part}"].to(x) for part in ("weight", "bias")] for side in ("down", "up"))
    return output + linear(relu(linear(output, *down)), *up) * strength


ACTS: dict[str, Act] = {
    "lora": _lora,
    "dora": _dora,
    "loha": _loha,
    "lokr": _lokr,
    "ia3": _ia3,
    "ssf": _ssf,
    "adapter": _bottleneck,
}
