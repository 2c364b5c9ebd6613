"""A frozen causal language model moved to another kind of text: what coefficients reach, alone and with adapters.

    python examples/paper/language.py           # under half an hour; goes on where it was stopped
    python examples/paper/language.py --quick   # a look: no search, one seed, few steps

A small Llama of transformers learns the characters of Python's manual here first (`pydoc_data.topics`, which comes with
Python) and is moved to Python code, of which it sees 8,192 characters. Nothing learns beside what a method tunes. Each
method takes the learning rate that is best for it on other code, climbing from where such rates usually are.
"""

import inspect
import sys
import textwrap
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from runs import Results, best_rate, first_rate, mean_and_spread, table
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from tuning import METHODS, Learner, adapters, best_rates, fit

from coeff_diffusion.cli import guarded, parse
from coeff_diffusion.method.traced_sites import trace_sites

LENGTH, BATCH = 64, 16
SEEN = 8_192  # characters of code that a training sees
SPANS = 128  # of `LENGTH` characters, in the search and in the test each
LETTERS = "\n" + "".join(map(chr, range(32, 127)))
ADAPTERS = adapters(norms=r".*norm", last="down_proj")
NAMES = tuple(name for name in METHODS if name != "probe")


@dataclass(frozen=True)
class Settings:
    """Compare ways to tune a frozen language model with few characters of another text."""

    seeds: int = 3
    """Trainings of each method, each on another part of the code."""
    steps: int = 50
    """Updates of every training, of 16 spans of 64 characters."""
    pretrain_steps: int = 600
    """Updates of the model's own training on Python's manual."""
    quick: bool = False
    """A look: no search for learning rates, one seed, 5 steps, a hardly trained model."""
    threads: int = 1
    """Of PyTorch."""
    output_dir: str = "outputs/paper"
    """Where the model and the results are kept."""


@dataclass(frozen=True)
class Run:
    """One training; method "nothing" is the model as it is."""

    method: str
    rate: float = 0.0
    adapter_rate: float = 0.0
    seed: int = 0


def manual() -> Tensor:
    """Python's manual as numbers of `LETTERS`."""
    from pydoc_data.topics import topics

    return _numbers("\n".join(text for _, text in sorted(topics.items())))


def code() -> Tensor:
    """Python code as numbers of `LETTERS`: modules of the standard library."""
    import argparse
    import tarfile

    return _numbers("".join(inspect.getsource(module) for module in (argparse, inspect, tarfile, textwrap)))


def _numbers(text: str) -> Tensor:
    known = {letter: number for number, letter in enumerate(LETTERS)}
    return torch.tensor([known[letter] for letter in text if letter in known])


def network() -> LlamaForCausalLM:
    """A Llama of 4 layers of 8 heads, not trained; every layer has 64 coefficients."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(LETTERS),
            hidden_size=64,
            intermediate_size=192,
            num_hidden_layers=4,
            num_attention_heads=8,
            num_key_value_heads=8,
            max_position_embeddings=LENGTH,
            bos_token_id=None,
            eos_token_id=None,
        )
    )


def spans(text: Tensor, count: int) -> Tensor:
    """Random parts of a text, `[count, LENGTH]`."""
    starts = torch.randint(len(text) - LENGTH + 1, (count,))
    return torch.stack([text[start : start + LENGTH] for start in starts])


def loss_of(model: Any, tokens: Tensor) -> Tensor:
    """Nats for a character of spans `[N, LENGTH]`, each guessed from those before it."""
    return model(input_ids=tokens, labels=tokens, use_cache=False).loss


@torch.no_grad()
def bits(model: Any, tokens: Tensor) -> float:
    """Bits for a character of spans `[N, LENGTH]`."""
    model.eval()
    return float(torch.stack([loss_of(model, part) for part in tokens.split(32)]).mean() / torch.log(torch.tensor(2.0)))


def pretrained(folder: Path, steps: int) -> dict[str, Tensor]:
    """The weights of `network` after training on the manual, kept in `folder`."""
    file = folder / f"manual-{steps}.safetensors"
    if not file.is_file():
        torch.manual_seed(0)
        model, text = network(), manual()
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
        for _ in range(steps):
            optimizer.zero_grad()
            loss_of(model, spans(text, 2 * BATCH)).backward()
            optimizer.step()
            schedule.step()
        print(f"the manual: {bits(model, spans(text, SPANS)):.2f} bits for a character", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), file)
    return load_file(file)


class Comparison:
    """The trainings of one model."""

    def __init__(self, settings: Settings) -> None:
        if settings.quick:
            folder = str(Path(settings.output_dir) / "quick")
            settings = replace(settings, seeds=1, steps=5, pretrain_steps=10, output_dir=folder)
        self.settings, self.folder = settings, Path(settings.output_dir)
        self.results = Results(self.folder / "language.jsonl")
        self.search = first_rate if settings.quick else best_rate
        self.weights = pretrained(self.folder, settings.pretrain_steps)
        text, held = code(), SPANS * LENGTH
        self.tried, self.test = (text[-2 * held : -held].view(-1, LENGTH), text[-held:].view(-1, LENGTH))
        self.text = text[: -2 * held]

    def tuned(self, run: Run) -> Learner:
        """A model that has learned what a run asks for."""
        torch.manual_seed(run.seed)
        model, method = network(), METHODS.get(run.method)
        model.load_state_dict(self.weights)
        places = trace_sites(model, lambda: model(input_ids=self.test[:1]))
        adapter = ADAPTERS[method.adapter] if method and method.adapter else None
        learner = Learner(model, places, adapter, bool(method and method.coefficients))
        start = int(torch.randint(len(self.text) - SEEN, ()))
        seen = self.text[start : start + SEEN]
        if method:
            groups = learner.groups(run.adapter_rate, run.rate)
            fit(learner, groups, lambda step: loss_of(model, spans(seen, BATCH)), self.settings.steps)
        return learner

    def figures(self, run: Run) -> dict[str, float]:
        """Bits for a character of a run, and how many numbers learned."""
        learner = self.tuned(run)
        found = {name: bits(learner.model, part) for name, part in (("search", self.tried), ("test", self.test))}
        return {**found, "values": learner.values}

    def result(self, run: Run) -> dict[str, float]:
        """The same, from the file where it was run before."""
        sizes = {"steps": self.settings.steps, "pretrain_steps": self.settings.pretrain_steps}
        return self.results.get(partial(self.figures, run), **vars(run), **sizes)

    def score(self, method: str, adapter_rate: float, rate: float) -> float:
        """How good a method is at these rates on the code of the search."""
        return -self.result(Run(method, rate, adapter_rate))["search"]

    def table(self) -> str:
        """The table of all methods."""
        rows = [["nothing", "0", "–", f"{self.result(Run('nothing'))['test']:.3f}"]]
        for name in NAMES:
            adapter_rate, rate = best_rates(name, self.score, self.search)
            run = Run(name, rate, adapter_rate)
            found = [self.result(replace(run, seed=seed)) for seed in range(self.settings.seeds)]
            rates = " + ".join(f"{rate:g}" for rate in (run.adapter_rate, run.rate) if rate)
            values = f"{int(found[0]['values']):,}"
            rows.append([METHODS[name].label, values, rates, mean_and_spread([one["test"] for one in found], 3)])
        return table(["tuned", "values", "rate", "bits for a character"], rows)


def main(arguments: list[str]) -> int:
    settings = parse("language", Settings, arguments)
    torch.set_num_threads(settings.threads)
    print(Comparison(settings).table())
    return 0


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))
