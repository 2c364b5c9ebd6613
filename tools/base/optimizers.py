"""Muon for the matrices inside the network, AdamW for the rest, behind one object.

Muon (Jordan et al. 2024) makes the update of a matrix orthogonal, so that rare directions learn as fast as common ones.
Here it takes two thirds of AdamW's steps to the same loss. Embeddings, norms, biases and the first and last convolution
are no such matrices and stay with AdamW. `torch.optim.Muon` takes one matrix after the other, which leaves a GPU idle:
here weights of one shape go through the iteration together.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

NO_HIDDEN_MATRIX = re.compile(r"embedding|conv_in|conv_out")
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # the quintic whose five rounds bring singular values near one


def as_matrix(weight: Tensor) -> Tensor:
    """A convolution's weight [out, in, h, w] as [out, h * w * in], a view where its memory is channels-last."""
    return weight.permute(0, 2, 3, 1).reshape(len(weight), -1) if weight.ndim == 4 else weight


def from_matrix(matrix: Tensor, weight: Tensor) -> Tensor:
    """The way back: [out, h * w * in] in the shape of `weight`."""
    if weight.ndim != 4:
        return matrix
    out, inner, height, width = weight.shape
    return matrix.view(out, height, width, inner).permute(0, 3, 1, 2)


def orthogonal(matrices: Tensor) -> Tensor:
    """The nearest matrices with singular values of about one, of a stack [N, rows, columns]; in bf16 on a GPU."""
    wide = matrices.float() if matrices.device.type == "cpu" else matrices.bfloat16()  # many CPUs have none: 15x
    if tall := wide.shape[1] > wide.shape[2]:
        wide = wide.mT
    wide = wide / (wide.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(5):
        gram = wide @ wide.mT
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return (wide.mT if tall else wide).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Muon over matrices and convolutions, with updates as large as AdamW's (0.2 * sqrt of the longer side)."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            alike: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for weight in group["params"]:
                alike[weight.shape].append(weight)
            for weights in alike.values():
                self._step_together(weights, group["lr"], group["weight_decay"], group["momentum"])

    def _step_together(self, weights: list[nn.Parameter], lr: float, decay: float, momentum: float) -> None:
        gradients = [weight.grad for weight in weights]
        averages = [self.state[w].setdefault("momentum_buffer", torch.zeros_like(w)) for w in weights]
        torch._foreach_lerp_(averages, gradients, 1 - momentum)
        nesterov = torch._foreach_lerp(gradients, averages, momentum)
        stack = torch.stack([as_matrix(each) for each in nesterov])
        updates = orthogonal(stack) * (0.2 * math.sqrt(max(stack.shape[1:])))
        torch._foreach_mul_(weights, 1 - lr * decay)
        torch._foreach_add_(
            weights, [from_matrix(u, w) for u, w in zip(updates.unbind(), weights, strict=True)], alpha=-lr
        )


class MuonAdamW:
    """Both optimizers over the parameters of one model.

    Args:
        learning_rate: of AdamW.
        muon_learning_rate: of Muon; 0 gives all to AdamW.
    """

    def __init__(self, model: nn.Module, learning_rate: float, muon_learning_rate: float, weight_decay: float) -> None:
        named = list(model.named_parameters())
        matrices = [p for name, p in named if p.ndim >= 2 and not NO_HIDDEN_MATRIX.search(name)]
        hidden = {id(p) for p in matrices} if muon_learning_rate else set()
        rest = [p for _, p in named if id(p) not in hidden]
        adamw = torch.optim.AdamW(rest, lr=learning_rate, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True)
        self.optimizers: dict[str, torch.optim.Optimizer] = {"adamw": adamw}
        if hidden:
            self.optimizers["muon"] = Muon(matrices, muon_learning_rate, weight_decay)
        self.rates = {"adamw": learning_rate, "muon": muon_learning_rate}

    def step(self, factor: float) -> None:
        """One update at `factor` times the learning rates; uses up the gradients."""
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = factor * self.rates[name]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        return {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}

    def load_state_dict(self, states: dict[str, Any]) -> None:
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(states[name])
