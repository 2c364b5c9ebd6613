"""What was tried on top of what `train` does: each trial alone, on the same pictures, noise and steps.

    python benchmarks/fidelity.py --method all --seeds 1 --sweep_subjects 0
    python benchmarks/trials.py                          # two hours on one core; goes on where it was
    python benchmarks/trials.py --trial timed dco        # some alone
    python benchmarks/trials.py --subject cat            # a subject alone; several commands may run at once
    python benchmarks/trials.py --trial usual pairs --rates 1e-3 2e-2 3e-2        # coefficients, token, stage tokens
    python benchmarks/trials.py --table                  # only what is measured so far

Results are lines of `results.jsonl` in the output folder, beside those of the first command, which they are compared
with. Measured are the loss on unseen pictures, similarity and background; see docs/fidelity.md. Trials that need to
know where the subject is in its pictures take them from `.work/cut-out`:

    python tools/base/fetch.py
    python tools/base/make_subjects.py --masks --subjects .work/cut-out/masked --unseen .work/unseen
    python tools/base/make_subjects.py --grounds 4 --subjects .work/cut-out/grounds --unseen .work/unseen
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import trial_parts as parts
from fidelity_measure import COLOURS, Measurement, grounds, nearest_colour
from fidelity_methods import chosen, train_config
from fidelity_plan import Results, Run, append_result, read_results
from fidelity_settings import NOTHING, BenchmarkError, Settings
from trial_trainers import Noisier, OneBypass, Preserving, Quieter, TrialTrainer

from coeff_diffusion.cli import guarded
from coeff_diffusion.families.load import best_device, load_base
from coeff_diffusion.inference.studio import Studio
from coeff_diffusion.training.config import TrainConfig
from coeff_diffusion.training.model import Learner
from coeff_diffusion.training.reports import own_random_state

USUAL = "all"  # what `fidelity.py` calls what `train` does
CUT_OUT = Path(".work/cut-out")


@dataclass(frozen=True)
class Trial:
    """One change of what `train` does.

    Attributes:
        settings: of `train`, in place of its defaults.
        pictures: the folder in `CUT_OUT` that the pictures come from, if not the usual ones.
        part: makes what learns besides, from the learner.
        trainer: where the training itself is another one.
    """

    label: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    pictures: str = ""
    part: Callable[[Learner], parts.Part] | None = None
    trainer: type[TrialTrainer] = TrialTrainer


TRIALS = {
    "usual": Trial("nothing more"),
    "timed_tokens": Trial("stage tokens that know the noise level", part=parts.TimedTokens),
    "timed": Trial("coefficients `C0 + g(t) C1`", part=parts.TimedCoefficients),
    "locked_keys": Trial("stage tokens in the values alone", part=parts.LockedKeys),
    "masked": Trial("loss masked to the subject", pictures="masked"),
    "grounds": Trial("each picture on four more grounds", pictures="grounds"),
    "preserving": Trial("DCO's loss instead of the squared error", trainer=Preserving),
    "prior": Trial("prior preservation", {"with_prior_preservation": True, "num_class_images": 40}),
    "one_bypass": Trial("one vector at the text encoder's output for all stages", trainer=OneBypass),
    "noisy_dropout": Trial("dropout that rises with the noise", {"coeff_dropout": 0.0}, part=parts.NoisyDropout),
    "mixed_values": Trial("values and outputs of heads recombined, too", part=parts.MixedValues),
    "temperature": Trial("a temperature for each head", part=parts.Temperature),
    "fast": Trial("coefficients at 5e-3 instead of 1e-3", {"learning_rate": 5e-3}),
    "text": Trial("coefficients of the text encoder, too", {"layers": "auto+text"}),
    "vectors": Trial("two vectors for the token", {"num_vectors": 2}),
    "min_snr": Trial("min-SNR weights, gamma 5", {"snr_gamma": 5.0}),
    "noisier": Trial("more weight where there is more noise", trainer=Noisier),
    "quieter": Trial("more weight where there is less noise", trainer=Quieter),
    "facing": Trial("pictures turned to face one way", {"facing": "auto"}),
    "pairs": Trial("600 steps of 2 pictures", {"train_batch_size": 2, "max_train_steps": 600}),
    "cosine": Trial("rates that fall along a cosine", {"lr_scheduler": "cosine"}),
    "mirrored": Trial("mirrored at random", {"random_flip": True}),
    "last": Trial("the state after the last step, not the mean of the last ones", {"use_ema": False}),
    "long": Trial("1,000 steps", {"max_train_steps": 1000}),
}


def trained(run: Run, settings: Settings, pipe: Any, folder: Path) -> TrialTrainer:
    """The finished training of a trial."""
    trial = TRIALS[run.method]
    config = train_config(run, settings, str(folder), **chosen(replace(run, method=USUAL)))
    config = replace(config, **trial.settings)
    if config.with_prior_preservation:
        config = replace(config, class_data_dir=str(folder / "class"))
    if trial.pictures:
        pictures = CUT_OUT / trial.pictures / run.subject
        if not pictures.is_dir():
            raise BenchmarkError(
                f"no {pictures}; tools/base/make_subjects.py makes it, see the first lines of {__file__}"
            )
        config = replace(config, instance_data_dir=str(pictures))
    trainer = trial.trainer(config, pipe, trial.part)
    with own_random_state():
        trainer.setup()
        trainer.fit()
    return trainer


def measured(run: Run, settings: Settings) -> dict[str, Any]:
    """Train, save, load what was saved with the rest beside it, and measure."""
    started = time.monotonic()
    pipe = load_base(run.base).to("cpu" if settings.device == "cpu" else best_device())
    with tempfile.TemporaryDirectory() as scratch:
        trainer = trained(run, settings, pipe, Path(scratch))
        file = Path(scratch) / "coefficients.safetensors"
        trainer.snapshot().save(file)
        name = Studio(pipe).load(file)
    trainer.part.training = False
    trainer.part.install(pipe.unet)
    measurement = Measurement(run, settings, pipe, name)
    words, unseen = measurement.subject.words(run.method), measurement.subject.unseen
    pictures = measurement.draw([f"{words} {ground}" for ground in grounds()], 0)
    measurement.keep(pictures, "subject")
    learned = {*trainer.learner.parameters.values(), *trainer.part.parameters.values()}
    right = [nearest_colour(picture) == colour for picture, colour in zip(pictures, COLOURS, strict=False)]
    return {
        "values": sum(parameter.numel() for parameter in learned),
        "subject_loss": measurement.loss(unseen, [words] * len(unseen)),
        "colours": statistics.fmean(right),
        **measurement.likeness(pictures),
        "wall_seconds": time.monotonic() - started,
    }


def table(
    results: Results, settings: Settings, trials: Sequence[str], seed: int = 0, rates: tuple[float, ...] = ()
) -> str:
    """A line for each trial that is there for every subject, the nearest first, beside what `train` does.

    Args:
        seed, rates: of the trainings; what `train` does is shown at its own rates.

    Raises:
        BenchmarkError: there is nothing to compare with.
    """
    lines: dict[str, float] = {}
    subjects = settings.subject
    way = {NOTHING: 0.0}
    for method in (NOTHING, USUAL, *trials):
        own = 0 if method == NOTHING else seed
        at = rates if method in TRIALS else ()
        rows = [results.get(Run.make(settings, method, subject, seed=own, rates=at)) for subject in subjects]
        if any(row is None for row in rows):
            if method in (NOTHING, USUAL):
                raise BenchmarkError(f"{method} is not there for each of {', '.join(subjects)}; run fidelity.py first")
            continue
        figures = [row for row in rows if row is not None]
        if method == NOTHING:
            starts, ends = ([one[name] for one in figures] for name in ("similarity", "ceiling"))
            continue
        ways = [
            (one["similarity"] - start) / (end - start) for one, start, end in zip(figures, starts, ends, strict=True)
        ]
        mean = sum(one["similarity"] for one in figures) - sum(starts)
        way[method] = mean / (sum(ends) - sum(starts))
        label = "**what `train` does**" if method == USUAL else TRIALS[method].label
        cells = [f"{figures[0]['values']:,}", *(f"{statistics.fmean(one[n] for one in figures):{f}}" for n, f in SHOWN)]
        lines[f"| {' | '.join([label, *cells, *(f'{one:.0%}' for one in ways), f'{way[method]:.0%}'])} |"] = way[method]
    head = f"| on top | values | loss | similarity | background right | {' | '.join(subjects)} | of the way |"
    return "\n".join([head, "| --- " * (6 + len(subjects)) + "|", *sorted(lines, key=lambda line: -lines[line])])


SHOWN = (("subject_loss", ".4f"), ("similarity", ".3f"), ("colours", ".0%"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subject", nargs="+", default=["cat", "penguin"], help="of examples/subjects")
    parser.add_argument("--trial", nargs="+", choices=TRIALS, default=list(TRIALS), help="these alone")
    parser.add_argument("--seed", type=int, default=0, help="of the trainings")
    parser.add_argument("--max_train_steps", type=int, default=TrainConfig.max_train_steps, help="of every training")
    parser.add_argument(
        "--rates", nargs=3, type=float, default=[], help="of coefficients, token and stage tokens, in every training"
    )
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--output_dir", default=Settings.output_dir, help="with what fidelity.py has measured")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    asked = parser.parse_args()
    settings = Settings(
        base=asked.base,
        subject=asked.subject,
        max_train_steps=asked.max_train_steps,
        output_dir=asked.output_dir,
    ).resolve()
    path = Path(settings.output_dir) / "results.jsonl"
    results = read_results(path)
    for subject in () if asked.table else asked.subject:
        for trial in asked.trial:
            run = Run.make(settings, trial, subject, seed=asked.seed, rates=tuple(asked.rates))
            if run in results:
                continue
            figures = measured(run, settings)
            append_result(path, run, figures)
            results[run] = figures
            print(f"{subject}, {trial}: {figures}", flush=True)
    print(table(results, settings, asked.trial, asked.seed, tuple(asked.rates)))
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
