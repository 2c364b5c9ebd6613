"""Ways to tune a frozen transformer of transformers: coefficients, adapters of PEFT, and both together.

Legend: H heads of a layer.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import IA3Config, LNTuningConfig, LoraConfig, PeftConfig, VeraConfig, get_peft_model
from torch import Tensor, nn

from coeff_diffusion.method.attachment import activate, attach_heads, trainable_parameters
from coeff_diffusion.method.override import dropped
from coeff_diffusion.method.sites import Site

Start = Literal["residual", "identity", "random"]
STARTS: tuple[Start, ...] = ("residual", "identity", "random")
COEFFICIENTS = "coefficients"


@dataclass(frozen=True)
class Method:
    """A way to tune.

    Attributes:
        start: the learning rate at which the search begins; that of the coefficients where both learn.
        adapter: a key of `adapters`; empty where there is none.
        coefficients: whether they learn, too.
    """

    label: str
    start: float = 0.0
    adapter: str = ""
    coefficients: bool = False


METHODS = {
    "probe": Method("head alone (linear probe)"),
    COEFFICIENTS: Method("**coefficients**", 1e-2, coefficients=True),
    "ln": Method("LN-tuning", 3e-3, "ln"),
    "ia3": Method("IA3", 1e-2, "ia3"),
    "vera": Method("VeRA, rank 64", 1e-2, "vera"),
    "lora": Method("LoRA, rank 4", 3e-3, "lora"),
    "ln+coefficients": Method("LN-tuning + coefficients", 1e-2, "ln", coefficients=True),
    "lora+coefficients": Method("LoRA + coefficients", 1e-2, "lora", coefficients=True),
}


def adapters(norms: str, last: str) -> dict[str, PeftConfig]:
    """PEFT's settings by name.

    Args:
        norms: a pattern of the names of the norms.
        last: the name of the last layer of an MLP.
    """
    attention = ["q_proj", "v_proj"]
    return {
        "lora": LoraConfig(r=4, lora_alpha=4, target_modules=attention),
        "vera": VeraConfig(r=64, target_modules=attention, d_initial=0.1),
        "ln": LNTuningConfig(target_modules=norms),
        "ia3": IA3Config(target_modules=["k_proj", "v_proj", last], feedforward_modules=[last]),
    }


class Learner:
    """What learns in a frozen model; the model is used up by it.

    Args:
        sites: the attention layers whose coefficients learn.
        adapter: of PEFT, or None.
        coefficients: whether the coefficients learn.
        dropout: of the coefficients.
        start: "residual": `I + coeff`, where `coeff` starts at zero and drops out. "identity" and "random": one matrix
            that starts so and drops out as a whole.
    """

    def __init__(
        self,
        model: Any,
        sites: Mapping[str, Site],
        adapter: PeftConfig | None,
        coefficients: bool,
        dropout: float = 0.2,
        start: Start = "residual",
    ) -> None:
        self.model, self.dropout, self.start = model, dropout, start
        model.requires_grad_(False)
        if adapter is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that norms are of no known type, and names that transformers gives up
                get_peft_model(model, adapter)  # in place
        self.adapter = [weight for weight in model.parameters() if weight.requires_grad]
        self.coeffs: dict[str, nn.Parameter] = {}
        if coefficients and start == "residual":
            attach_heads(model, sites, dropout=dropout)
            self.coeffs = trainable_parameters(model)
        elif coefficients:
            attach_heads(model, sites, trainable=False)
            self.coeffs = {path: nn.Parameter(matrix(site.heads, start)) for path, site in sites.items()}

    @property
    def values(self) -> int:
        """How many numbers learn."""
        return sum(weight.numel() for weight in (*self.adapter, *self.coeffs.values()))

    def groups(self, adapter_rate: float, coeff_rate: float) -> list[dict[str, Any]]:
        """For an optimizer."""
        groups = [(self.adapter, adapter_rate), (list(self.coeffs.values()), coeff_rate)]
        return [{"params": weights, "lr": rate} for weights, rate in groups if weights]

    def ready(self, training: bool) -> None:
        """Before each forward: dropout or none, and what has no residual form is handed over."""
        self.model.train(training)
        if self.coeffs and self.start != "residual":
            acting = {path: self._whole(weight, training) for path, weight in self.coeffs.items()}
            activate(self.model, acting)

    def _whole(self, weight: Tensor, training: bool) -> Tensor:
        mixing = dropped(weight, self.dropout) if training and self.dropout else weight
        return mixing - torch.eye(len(weight))  # the method adds the identity


def best_rates(
    name: str, score: Callable[[str, float, float], float], search: Callable[[Callable[[float], float], float], float]
) -> tuple[float, float]:
    """The learning rates of a method's adapter and coefficients; 0 where it has none.

    Of a join the adapter's is the one that is best for it alone, and only that of the coefficients is searched anew.

    Args:
        score: of a method at two such rates; higher is better.
        search: `best_rate`, or something that takes the start for the best.
    """
    method, adapter_rate = METHODS[name], 0.0
    if method.adapter and method.coefficients:
        adapter_rate, _ = best_rates(method.adapter, score, search)
    elif method.adapter:
        adapter_rate = search(lambda rate: score(name, rate, 0.0), method.start)
    if not method.coefficients:
        return adapter_rate, 0.0
    return adapter_rate, search(lambda rate: score(name, adapter_rate, rate), method.start)


def matrix(heads: int, start: Start) -> Tensor:
    """`[H, H]`, where a mixing matrix without residual form starts; random: of variance 1 / H."""
    return torch.eye(heads) if start == "identity" else torch.randn(heads, heads) / heads**0.5


def fit(learner: Learner, groups: list[dict[str, Any]], loss: Callable[[int], Tensor], steps: int) -> None:
    """Train what the groups hold with AdamW; the rates rise for a tenth of the steps and fall along a cosine.

    Args:
        loss: of a step, computed by the learner's model.
    """
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    rise = max(1, steps // 10)

    def share(step: int) -> float:
        falling = torch.pi * max(0, step - rise) / max(1, steps - rise)
        return min(1.0, (step + 1) / rise) * (1 + float(torch.cos(torch.tensor(falling)))) / 2

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    for step in range(steps):
        learner.ready(training=True)
        optimizer.zero_grad()
        loss(step).backward()
        optimizer.step()
        schedule.step()
    learner.ready(training=False)
