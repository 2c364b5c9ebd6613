"""What do coefficients add to an adapter, those of the text encoder to the UNet's, those of each kind of layer? What do
their start and their dropout do?

    python benchmarks/joins.py                                          # two subjects, one seed; goes on where it was
    python benchmarks/joins.py --subject cat --max_train_steps 100      # a look
    python benchmarks/joins.py --way word coefficients lora4            # some ways alone
    python benchmarks/joins.py --table                                  # only what is measured so far
    python benchmarks/joins.py --what layers --subject cat              # self-attention, cross-attention, both
    python benchmarks/joins.py --what text --subject cat                # the text encoder's heads
    python benchmarks/joins.py --what start --subject cat               # where the coefficients start
    python benchmarks/joins.py --what dropout --subject cat             # how many of them are left out of a step

All ways learn on the same pictures and noise for as many steps; "as usual" also what stages read at the trigger. Each
row is a line of `results.jsonl` in
`outputs/joins`, and its files lie beside it. What the columns are, `docs/fidelity.md` says: the measures are those of
`fidelity.py`, the drift with the gate open, as if what is learned acted on every prompt.
"""

import argparse
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fidelity_measure import Measurement, grounds
from fidelity_methods import Meter, train_config
from fidelity_plan import Results, Run, append_result, read_results
from fidelity_settings import NOTHING, Settings
from starts import Start, WholeTrainer

from coeff_diffusion.families.load import best_device, load_base
from coeff_diffusion.inference.studio import Studio
from coeff_diffusion.training.config import TrainConfig
from coeff_diffusion.training.reports import own_random_state
from coeff_diffusion.training.trainer import Trainer

Train = Literal["coefficients+token", "coefficients", "token"]
Layers = Literal["auto", "all", "self", "cross", "text", "auto+text"]


@dataclass(frozen=True)
class Way:
    """What learns: settings of `train`."""

    label: str
    train: Train = "token"
    adapter: str | None = None
    layers: Layers = "auto"
    stage_tokens: bool = False
    start: Start = "residual"
    dropout: float = TrainConfig.coeff_dropout


BOTH: Train = "coefficients+token"
ALONE: Train = "coefficients"
WAYS = {
    "word": Way("the word"),
    "coefficients": Way("the word + coefficients", BOTH),
    "lora4": Way("the word + LoRA of rank 4", adapter="lora:4"),
    "lora4+coefficients": Way("the word + LoRA of rank 4 + coefficients", BOTH, "lora:4"),
    "dora4": Way("the word + DoRA of rank 4", adapter="dora:4"),
    "dora4+coefficients": Way("the word + DoRA of rank 4 + coefficients", BOTH, "dora:4"),
    "loha4": Way("the word + LoHa of rank 4", adapter="loha:4"),
    "loha4+coefficients": Way("the word + LoHa of rank 4 + coefficients", BOTH, "loha:4"),
    "lokr4": Way("the word + LoKr of rank 4", adapter="lokr:4"),
    "lokr4+coefficients": Way("the word + LoKr of rank 4 + coefficients", BOTH, "lokr:4"),
    "ia3": Way("the word + IA3", adapter="ia3"),
    "ia3+coefficients": Way("the word + IA3 + coefficients", BOTH, "ia3"),
    "ssf": Way("the word + SSF", adapter="ssf"),
    "ssf+coefficients": Way("the word + SSF + coefficients", BOTH, "ssf"),
    "adapter8": Way("the word + adapter of 8 channels", adapter="adapter:8"),
    "adapter8+coefficients": Way("the word + adapter of 8 channels + coefficients", BOTH, "adapter:8"),
    "self": Way("coefficients of self-attention", "coefficients", layers="self"),
    "cross": Way("coefficients of cross-attention", "coefficients", layers="cross"),
    "both": Way("coefficients of both", "coefficients", layers="all"),
    "word+self": Way("the word + coefficients of self-attention", BOTH, layers="self"),
    "word+cross": Way("the word + coefficients of cross-attention", BOTH, layers="cross"),
    "word+both": Way("the word + coefficients of both", BOTH, layers="all"),
    "residual": Way("residual from zero, dropout 0.2", ALONE),
    "identity": Way("identity without the residual form", ALONE, start="identity"),
    "random": Way("random without the residual form", ALONE, start="random"),
    "dropout0": Way("dropout 0", ALONE, dropout=0.0),
    "dropout0.1": Way("dropout 0.1", ALONE, dropout=0.1),
    "dropout0.4": Way("dropout 0.4", ALONE, dropout=0.4),
    "text": Way("the word + coefficients of the text encoder", BOTH, layers="text"),
    "coefficients+text": Way("the word + coefficients of the UNet and the text encoder", BOTH, layers="auto+text"),
    "usual": Way("as usual", BOTH, stage_tokens=True),
    "usual+text": Way("as usual + coefficients of the text encoder", BOTH, layers="auto+text", stage_tokens=True),
}
ASKED = {
    "joins": [name for name in WAYS if name in ("word", "coefficients") or WAYS[name].adapter],
    "layers": ["word", "self", "cross", "both", "word+self", "word+cross", "word+both"],
    "start": ["residual", "identity", "random"],
    "dropout": ["dropout0", "dropout0.1", "residual", "dropout0.4"],
    "text": ["word", "coefficients", "text", "coefficients+text", "usual", "usual+text"],
}


def trainer_of(run: Run, settings: Settings, folder: str, pipe: Any) -> Trainer:
    """What trains one row; `run.rates` are the learning rates of adapter and coefficients."""
    way = WAYS[run.method]
    config = train_config(
        run,
        settings,
        folder,
        train=way.train,
        layers=way.layers,
        stage_tokens=way.stage_tokens,
        with_adapter=way.adapter,
        coeff_dropout=way.dropout,
        adapter_learning_rate=run.rates[0],
        learning_rate=run.rates[1],
    )
    if way.start == "residual":
        return Trainer(config, pipe, say=lambda line: None)
    trainer = WholeTrainer(config, pipe, say=lambda line: None)
    trainer.start = way.start
    return trainer


def measured(run: Run, settings: Settings) -> dict[str, Any]:
    """Train, save, load what was saved, and measure it."""
    pipe = load_base(run.base).to("cpu" if settings.device == "cpu" else best_device())
    if run.method == NOTHING:
        return Measurement(run, settings, pipe, None).figures()
    with tempfile.TemporaryDirectory() as scratch:
        trainer, meter = trainer_of(run, settings, scratch, pipe), Meter()
        with own_random_state():
            trainer.setup()
            with meter:
                trainer.fit()
        file = Path(settings.output_dir) / "files" / run.stem / "coefficients.safetensors"
        file.parent.mkdir(parents=True, exist_ok=True)
        subject = trainer.snapshot()
        subject.save(file)
    measurement = Measurement(run, settings, pipe, Studio(pipe).load(file.parent))
    words, unseen = measurement.subject.words(run.method), measurement.subject.unseen
    pictures = measurement.draw([f"{words} {ground}" for ground in grounds()], 0)
    measurement.keep(pictures, "subject")
    return {
        **meter.figures,
        "values": sum(parameter.numel() for parameter in trainer.learner.parameters.values()),
        "bytes": sum(path.stat().st_size for path in file.parent.iterdir()),
        "subject_loss": measurement.loss(unseen, [words] * len(unseen)),
        **measurement.likeness(pictures),
        **measurement.drift("always"),
    }


def runs(settings: Settings, ways: Sequence[str], rates: tuple[float, float]) -> list[Run]:
    """All rows, a subject and seed after the other, what they are compared with first.

    Args:
        rates: of the adapters and of the coefficients.
    """
    found = []
    for subject in settings.subject:
        found.append(Run.make(settings, NOTHING, subject))
        for seed in range(settings.seeds):
            found += [Run.make(settings, way, subject, seed=seed, rates=rates) for way in ways]
    return found


def table(wanted: Sequence[Run], results: Results) -> str:
    """The mean of each way over the subjects and seeds for which all ways are there."""
    ways = dict.fromkeys(run.method for run in wanted)
    whole = [
        key
        for key in dict.fromkeys((run.subject, run.seed) for run in wanted if run.method != NOTHING)
        if all(run in results for run in wanted if run.subject == key[0] and run.seed in (key[1], 0))
    ]
    lines = [
        f"{len(whole)} training(s) of each way: {', '.join(f'{subject} (seed {seed})' for subject, seed in whole)}\n",
        "| what learns | values | bytes | loss | similarity | drift: loss | drift: pixels | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for way in ways if whole else ():
        rows = [
            results[run]
            for subject, seed in whole
            for run in wanted
            if (run.method, run.subject) == (way, subject) and (way == NOTHING or run.seed == seed)
        ]
        label = "nothing (class word)" if way == NOTHING else WAYS[way].label
        cells = [_mean(rows, name, shape) for name, shape in COLUMNS.items()]
        lines.append(f"| {' | '.join([label, *cells])} |")
    return "\n".join(lines)


COLUMNS = {
    "values": ",.0f",
    "bytes": ",.0f",
    "subject_loss": ".4f",
    "similarity": ".3f",
    "drift_loss": ".4f",
    "drift_change": ".1f",
    "seconds": ".0f",
}


def _mean(rows: Sequence[Mapping[str, Any]], name: str, shape: str) -> str:
    found = [row[name] for row in rows if name in row]
    return format(statistics.fmean(found), shape) if found else "–"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subject", nargs="+", default=["cat", "penguin"], help="folders of examples/subjects")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each way and subject")
    parser.add_argument("--max_train_steps", type=int, default=TrainConfig.max_train_steps)
    parser.add_argument("--adapter_learning_rate", type=float, default=1e-3, help="ten times train's default")
    parser.add_argument("--learning_rate", type=float, default=TrainConfig.learning_rate, help="of coefficients")
    parser.add_argument("--what", choices=ASKED, default="joins", help="which question")
    parser.add_argument("--way", nargs="+", choices=WAYS, help="these alone instead")
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--output_dir", default="outputs/joins")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    asked = parser.parse_args()
    settings = Settings(
        base=asked.base,
        subject=asked.subject,
        seeds=asked.seeds,
        max_train_steps=asked.max_train_steps,
        output_dir=asked.output_dir,
    ).resolve()
    path = Path(settings.output_dir) / "results.jsonl"
    rates = asked.adapter_learning_rate, asked.learning_rate
    wanted = runs(settings, asked.way or ASKED[asked.what], rates)
    path.parent.mkdir(parents=True, exist_ok=True)
    results = read_results(path)
    for run in () if asked.table else wanted:
        if run not in results:
            figures = measured(run, settings)
            append_result(path, run, figures)
            results[run] = figures
            print(f"{run.subject}, {run.method}: {figures}", flush=True)
    print(table(wanted, results))


if __name__ == "__main__":
    main()
