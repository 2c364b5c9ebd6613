"""Other starts of the coefficients than the library's, for the paper's ablation of them.

Legend: H heads of a layer.
"""

from typing import Literal

import torch
from torch import Tensor

from coeff_diffusion.method.attachment import activate
from coeff_diffusion.method.override import dropped
from coeff_diffusion.training.seeds import mixed_seed
from coeff_diffusion.training.trainer import Trainer

Start = Literal["residual", "identity", "random"]


class WholeTrainer(Trainer):
    """A training run in which the mixing matrices have no residual form: each starts as a whole and drops out as one.

    What learns is still the difference to the identity, `W - I`, which is what the file holds; so only the start and
    the dropout are others. The rate of the dropout is the config's.
    """

    start: Start = "identity"

    def setup(self) -> None:
        super().setup()
        generator = torch.Generator().manual_seed(mixed_seed(self.config.seed, -6))
        with torch.no_grad():
            for coeff in self.learner.coefficients.values():
                coeff.copy_(started(len(coeff), self.start, generator) - torch.eye(len(coeff)))

    def batch_loss(self, number: int) -> Tensor:
        torch.manual_seed(mixed_seed(self.config.seed, number, -6))
        rate, whole = self.config.coeff_dropout, {}
        for path, coeff in self.learner.coefficients.items():
            eye = torch.eye(len(coeff), device=coeff.device)
            whole[path] = dropped(coeff + eye, rate) - eye
        activate(self.learner.denoiser, whole)
        self.learner.train(False)  # the library's own dropout, of what is beside the identity
        return super().batch_loss(number)


def started(heads: int, start: Start, generator: torch.Generator) -> Tensor:
    """`[H, H]`, where a mixing matrix begins; random: of variance 1 / H."""
    return torch.eye(heads) if start != "random" else torch.randn(heads, heads, generator=generator) / heads**0.5
