"""Choosing the step by measurement: what measuring costs, and what the chosen step is worth on unseen pictures.

    python benchmarks/validation.py cost                      # a minute
    python benchmarks/validation.py choice                    # some minutes for each of the example subjects
    python benchmarks/validation.py choice --subjects dog cat --max_train_steps 300

`choice` teaches the embedded base each subject twice, from all its five pictures and from four with one held out, and
measures every twentieth step on the subject's twelve pictures in `benchmarks/unseen`, which no training has seen.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from timing import in_turns, machine

from coeff_diffusion.families.load import load_base
from coeff_diffusion.training.config import TrainConfig
from coeff_diffusion.training.preparation import prepare_data
from coeff_diffusion.training.reports import StepReport, own_random_state
from coeff_diffusion.training.trainer import Trainer
from coeff_diffusion.training.validation import Validation, best_step

ROOT = Path(__file__).parents[1]
SUBJECTS, UNSEEN = ROOT / "examples" / "subjects", ROOT / "benchmarks" / "unseen"
EVERY = 20  # steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["cost", "choice"])
    parser.add_argument("--subjects", nargs="+", default=sorted(path.name for path in UNSEEN.iterdir()))
    parser.add_argument("--max_train_steps", type=int, default=TrainConfig.max_train_steps)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    with own_random_state(), tempfile.TemporaryDirectory() as scratch:
        if args.what == "cost":
            cost(settings(args, args.subjects[0], scratch), args.repeats)
        else:
            choice(args, scratch)
    print(machine())


def settings(args: argparse.Namespace, subject: str, scratch: str) -> TrainConfig:
    """The defaults, measured every `EVERY` steps."""
    about = yaml.safe_load((SUBJECTS / subject / "subject.yaml").read_text(encoding="utf-8"))
    return TrainConfig(
        instance_data_dir=str(SUBJECTS / subject),
        facing="as_is",  # as the figures in docs/ were taken
        class_word=about["class_word"],
        trigger=about["trigger"],
        output_dir=scratch,
        max_train_steps=args.max_train_steps,
        seed=args.seed,
        validate_every_n_steps=EVERY,
        validation_steps=0,
        timeline_steps=0,
    ).resolve()


def cost(config: TrainConfig, repeats: int) -> None:
    """A measurement beside a step of training, in turns."""
    trainer = Trainer(config, say=silent)
    trainer.setup()
    trainer.learner.train(True)
    validation, start = trainer.validation, trainer.validation.latest

    def measure() -> None:
        validation.latest = start  # else it would remember
        validation.measure(EVERY)

    found = in_turns({"step": trainer.train_step, "measurement": measure}, repeats)
    pictures, ratio = len(validation.probe.pictures), found["measurement"].ratio
    step, measurement = found["step"].median, found["measurement"].median
    print(
        f"a step {step:.3f} s, a measurement of {pictures} pictures {measurement:.3f} s: {ratio:.2f} steps, "
        f"{ratio / EVERY:.1%} of training when made every {EVERY} steps"
    )


def choice(args: argparse.Namespace, scratch: str) -> None:
    """The loss on unseen pictures of the last step and of the step that was chosen, in two ways."""
    print("subject, pictures trained on: unseen loss of the base, the last step, the chosen one, the best there is")
    pipe = load_base()
    for subject in args.subjects:
        for held_out in (0, 1):
            config = replace(settings(args, subject, scratch), validation_split=held_out)
            own, unseen = curves(config, UNSEEN / subject, pipe)
            last, chosen = max(own), best_step(own)
            assert chosen is not None
            least = min((loss, step) for step, loss in unseen.items() if step)
            print(
                f"{subject}, {5 - held_out}: {unseen[0]:.4f}, {unseen[last]:.4f} at {last}, {unseen[chosen]:.4f} at "
                f"{chosen}, {least[0]:.4f} at {least[1]}",
                flush=True,
            )


def curves(config: TrainConfig, unseen_folder: Path, pipe: Any) -> tuple[dict[int, float], dict[int, float]]:
    """The losses by step of one training: on what it measures itself, and on unseen pictures."""
    trainer = Trainer(config, pipe, say=silent)
    trainer.setup()
    others = replace(trainer.config, validation_split=0, validation_data_dir=str(unseen_folder))
    data = prepare_data(others, trainer.learner, trainer.studio, silent, show_progress=False).data
    wide = replace(trainer.config, validate_every_n_steps=10 * EVERY)  # as many noised pictures as there may be
    unseen = Validation(trainer.learner, data, trainer.schedule, wide, float)

    def watch(report: StepReport) -> None:
        if trainer.validation.due(report.step):
            unseen.measure(report.step)

    trainer.on_step = watch
    trainer.fit()
    return trainer.validation.losses, unseen.losses


def silent(line: str) -> None:
    """The trainer has nothing to say here."""


if __name__ == "__main__":
    main()
