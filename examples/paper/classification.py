"""A frozen vision transformer, forty labelled pictures of each class: what coefficients reach, alone and with adapters.

    python examples/paper/classification.py                  # under half an hour; goes on where it was stopped
    python examples/paper/classification.py --what ablations # starts, dropout, blocks; as long
    python examples/paper/classification.py --quick          # a look: no search, one seed, few steps

The transformer learns printed letters here first and is moved to handwritten digits (`letters.py`). Every method learns
the new head at the rate that is best for the head alone, and what it tunes at the rate that is best for it: on pictures
that neither training nor the test sees, climbing from where such rates usually are.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import letters
import torch
from runs import Results, best_rate, first_rate, mean_and_spread, table
from torch import Tensor
from torch.nn import functional as F
from tuning import COEFFICIENTS, METHODS, STARTS, Learner, adapters, best_rates, fit

from coeff_diffusion.cli import guarded, parse

PER_CLASS, CLASSES, BATCH = 40, 10, 32
POOL, VALIDATION = 700, 1000  # digits before the first may be labelled, then come those of the search, then the test
ADAPTERS = adapters(norms=r".*layernorm.*", last="fc2")
HEAD_START = 1e-2


@dataclass(frozen=True)
class Settings:
    """Compare ways to tune a frozen vision transformer with few labels."""

    what: Literal["methods", "ablations"] = "methods"
    """All methods, or variants of the coefficients alone."""
    seeds: int = 3
    """Trainings of each method, each with other labelled pictures."""
    steps: int = 100
    """Updates of every training, of 32 pictures."""
    pretrain_steps: int = 2000
    """Updates of the transformer's own training on printed letters."""
    quick: bool = False
    """A look: no search for learning rates, one seed, 10 steps, a hardly trained transformer."""
    threads: int = 1
    """Of PyTorch."""
    output_dir: str = "outputs/paper"
    """Where the transformer and the results are kept."""


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        blocks: layers whose coefficients learn, as shell patterns; empty for all.
    """

    method: str
    head_rate: float
    rate: float = 0.0
    adapter_rate: float = 0.0
    seed: int = 0
    dropout: float = 0.2
    start: str = "residual"
    blocks: tuple[str, ...] = ()


class Comparison:
    """The trainings of one transformer."""

    def __init__(self, settings: Settings) -> None:
        if settings.quick:
            folder = str(Path(settings.output_dir) / "quick")
            settings = replace(settings, seeds=1, steps=10, pretrain_steps=20, output_dir=folder)
        self.settings, self.folder = settings, Path(settings.output_dir)
        self.results = Results(self.folder / "classification.jsonl")
        self.search = first_rate if settings.quick else best_rate
        self.weights = letters.pretrained(self.folder, settings.pretrain_steps)
        self.pictures, self.labels = letters.digits()

    def labelled(self, seed: int) -> Tensor:
        """The pictures that a training sees, `PER_CLASS` of each class."""
        order = torch.randperm(POOL, generator=torch.Generator().manual_seed(seed))
        return torch.cat([order[self.labels[order] == label][:PER_CLASS] for label in range(CLASSES)])

    def tuned(self, run: Run) -> Learner:
        """A transformer that has learned what a run asks for."""
        torch.manual_seed(run.seed)
        model, method = letters.network(CLASSES), METHODS[run.method]
        kept = {name: weight for name, weight in self.weights.items() if not name.startswith("classifier")}
        model.load_state_dict(kept, strict=False)
        places = {
            path: site
            for path, site in letters.sites(model).items()
            if not run.blocks or any(part in path.split(".") for part in run.blocks)
        }
        adapter = ADAPTERS[method.adapter] if method.adapter else None
        learner = Learner(model, places, adapter, method.coefficients, run.dropout, run.start)  # type: ignore[arg-type]
        head: Any = model.classifier
        head.requires_grad_(True)
        groups = learner.groups(run.adapter_rate, run.rate)
        groups.append({"params": list(head.parameters()), "lr": run.head_rate})
        rows = self.labelled(run.seed)

        def loss(step: int) -> Tensor:
            some = rows[torch.randint(len(rows), (BATCH,))]
            return F.cross_entropy(model(pixel_values=self.pictures[some]).logits, self.labels[some])

        fit(learner, groups, loss, self.settings.steps)
        return learner

    def figures(self, run: Run) -> dict[str, float]:
        """The loss on the digits of the search, the accuracy of the test in percent, how many numbers learned beside
        the head."""
        learner = self.tuned(run)
        search, test = slice(POOL, VALIDATION), slice(VALIDATION, None)
        with torch.no_grad():
            found = F.cross_entropy(learner.model(pixel_values=self.pictures[search]).logits, self.labels[search])
        accuracy = letters.accuracy(learner.model, self.pictures[test], self.labels[test])
        return {"search": float(found), "test": 100 * accuracy, "values": learner.values}

    def result(self, run: Run) -> dict[str, float]:
        """The same, from the file where it was run before."""
        sizes = {"steps": self.settings.steps, "pretrain_steps": self.settings.pretrain_steps}
        return self.results.get(partial(self.figures, run), **vars(run), **sizes)

    def head_rate(self) -> float:
        """The best learning rate of the head alone."""
        return self.search(lambda rate: -self.result(Run("probe", rate))["search"], HEAD_START)

    def chosen(self, name: str, **variant: Any) -> Run:
        """The run of a method, or of a variant of it, at its best rates."""
        run = Run(name, self.head_rate(), **variant)

        def score(method: str, adapter_rate: float, rate: float) -> float:
            return -self.result(replace(run, method=method, adapter_rate=adapter_rate, rate=rate))["search"]

        adapter_rate, rate = best_rates(name, score, self.search)
        return replace(run, adapter_rate=adapter_rate, rate=rate)

    def over_seeds(self, run: Run) -> tuple[list[float], int]:
        """Test accuracies with each seed, and how many numbers learned beside the head."""
        found = [self.result(replace(run, seed=seed)) for seed in range(self.settings.seeds)]
        return [one["test"] for one in found], int(found[0]["values"])

    def methods(self, names: Sequence[str] = tuple(METHODS)) -> str:
        """The table of all methods."""
        rows = []
        for name in names:
            run = self.chosen(name)
            accuracies, values = self.over_seeds(run)
            rates = " + ".join(f"{rate:g}" for rate in (run.adapter_rate, run.rate) if rate)
            rows.append([METHODS[name].label, f"{values:,}", rates or "–", mean_and_spread(accuracies)])
        return table(["tuned beside the head", "values", "rate", "accuracy, %"], rows)

    def ablations(self) -> str:
        """The table of what the coefficients are made of."""
        usual = self.chosen(COEFFICIENTS)
        starts = [(f"start: {start}", self.chosen(COEFFICIENTS, start=start)) for start in STARTS]
        drops = [(f"dropout: {rate:g}", replace(usual, dropout=rate)) for rate in (0.0, 0.1, 0.2, 0.4)]
        layers = [(f"layer {number} alone", replace(usual, blocks=(str(number),))) for number in range(4)]
        rows = []
        for label, run in starts + drops + layers:
            accuracies, values = self.over_seeds(run)
            rows.append([label, f"{values:,}", f"{run.rate:g}", mean_and_spread(accuracies)])
        return table(["variant", "values", "rate", "accuracy, %"], rows)


def main(arguments: list[str]) -> int:
    settings = parse("classification", Settings, arguments)
    torch.set_num_threads(settings.threads)
    comparison = Comparison(settings)
    print(comparison.methods() if settings.what == "methods" else comparison.ablations())
    return 0


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))
