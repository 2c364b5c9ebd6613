"""The average of what is learned over the last steps: what a subject is saved as, where that is wanted.

The newest steps count most (exponential moving average), and while there are few all count nearly alike.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """Follows parameters step by step.

    Args:
        parameters: what is trained, by name.
        decay: how much of the average a step keeps, at most.

    Attributes:
        values: the average by name, under names of its own: what a checkpoint keeps beside the parameters.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.parameters, self.decay = dict(parameters), decay
        self.values = {f"average/{name}": value.detach().clone() for name, value in parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After each step; the first is 1."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, parameter in self.parameters.items():
            self.values[f"average/{name}"].lerp_(parameter, share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The parameters have the average's values within."""
        own: dict[str, Tensor] = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(self.values[f"average/{name}"])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    parameter.copy_(own[name])
