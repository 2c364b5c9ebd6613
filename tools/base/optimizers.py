"""Muon for the matrices inside the network, AdamW for the rest, behind one object.

Muon (Jordan et al. 2024) makes the update of a matrix orthogonal, so that rare directions learn as fast as common ones.
Here it takes two thirds of AdamW's steps to the same loss. Embeddings, norms, biases and the first and last convolution
are no such matrices and stay with AdamW.
"""

import re
from typing import Any

import torch
from torch import Tensor, nn

NO_HIDDEN_MATRIX = re.compile(r"embedding|conv_in|conv_out")


def as_matrix(weight: Tensor) -> Tensor:
    """A convolution's weight [out, in, h, w] as [out, h * w * in], a view where its memory is channels-last."""
    return weight.permute(0, 2, 3, 1).reshape(len(weight), -1) if weight.ndim == 4 else weight


class MuonAdamW:
    """Both optimizers over the parameters of one model, which has to be channels-last already.

    Args:
        learning_rate: of AdamW.
        muon_learning_rate: of Muon, whose updates are scaled to the size of AdamW's; 0 gives all to AdamW.
    """

    def __init__(self, model: nn.Module, learning_rate: float, muon_learning_rate: float, weight_decay: float) -> None:
        named = list(model.named_parameters())
        matrices = [p for name, p in named if p.ndim >= 2 and not NO_HIDDEN_MATRIX.search(name)]
        self.hidden = matrices if muon_learning_rate else []
        hidden = {id(p) for p in self.hidden}
        self.matrices = [
            nn.Parameter(as_matrix(p.data)) for p in self.hidden
        ]  # torch's Muon takes nothing but matrices
        if any(m.data_ptr() != p.data_ptr() for m, p in zip(self.matrices, self.hidden, strict=True)):
            raise ValueError("Muon would train copies; bring the model to torch.channels_last first")
        rest = [p for _, p in named if id(p) not in hidden]
        adamw = torch.optim.AdamW(rest, lr=learning_rate, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True)
        self.optimizers: dict[str, torch.optim.Optimizer] = {"adamw": adamw}
        if self.matrices:
            self.optimizers["muon"] = torch.optim.Muon(
                self.matrices, lr=muon_learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
            )
        self.rates = {"adamw": learning_rate, "muon": muon_learning_rate}

    def step(self, factor: float) -> None:
        """One update at `factor` times the learning rates; uses up the gradients."""
        for matrix, parameter in zip(self.matrices, self.hidden, strict=True):
            matrix.grad = as_matrix(parameter.grad)
            parameter.grad = None
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
