"""What the fidelity benchmark compares, and its settings: one field is the flag and its help."""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Self

from coeff_diffusion.families.usual import OF_EMBEDDED
from coeff_diffusion.subject.errors import UserError
from coeff_diffusion.training.config import TrainConfig

ROOT = Path(__file__).resolve().parents[1]
NOTHING = "nothing"


@dataclass(frozen=True)
class Method:
    """A way to teach a subject.

    Attributes:
        label: for people.
        start: where the search for its learning rates begins: one, or those of coefficients and token; empty where they
            are the defaults of `train`.
        rank: of the LoRA, where it is one.
        tuned: the weights of the base that learn, where some do: "attention", "unet", "unet+text_encoder".
    """

    label: str
    start: tuple[float, ...] = ()
    rank: int = 0
    tuned: str = ""


METHODS = {
    NOTHING: Method("nothing (class word)"),
    "coefficients": Method("coefficients", (5e-3,)),
    "token": Method("token", (1e-2,)),
    "coefficients+token": Method("coefficients + token", (1e-3, 1e-2)),
    "all": Method("what `train` does"),
    "every_stage": Method("the same in every stage"),
    "lora1": Method("LoRA rank 1", (5e-4,), rank=1),
    "lora4": Method("LoRA rank 4", (2e-4,), rank=4),
    "lora16": Method("LoRA rank 16", (1e-4,), rank=16),
    "attention": Method("all attention weights", (2e-5,), tuned="attention"),
    "unet": Method("the whole UNet", (5e-6,), tuned="unet"),
    "unet+text": Method("the whole UNet and text encoder", (5e-6,), tuned="unet+text_encoder"),
}
WITH_STAGE_TOKENS = ("all", "every_stage")
OURS = ("coefficients", "token", "coefficients+token", *WITH_STAGE_TOKENS)  # what the library itself trains


class BenchmarkError(UserError, ValueError):
    """The benchmark cannot run as asked, or one of its runs failed."""


@dataclass(frozen=True)
class Settings:
    """Compare ways to teach a subject: the same steps, batches and noise, each at its best learning rate."""

    base: str = "embedded"
    """The base to teach: "embedded", a diffusers folder, a single checkpoint or a Hub id."""
    subject: list[str] = field(default_factory=list)
    """A folder of `subjects_dir`; give it again for more. Default: all of them."""
    method: list[str] = field(default_factory=list)
    """One of nothing, coefficients, token, coefficients+token, all (what `train` does), every_stage (the same with
    `--layers all`), lora1, lora4, lora16, attention, unet, unet+text (all its weights, and the text encoder's); give it
    again for more. Default: all of them. Nothing always takes part: the others are compared with it."""
    seeds: int = 3
    """Trainings of each method and subject."""
    sweep_subjects: int = 2
    """Subjects whose unseen pictures choose each method's learning rates, with seed 0; 0 takes the rates that the
    search would begin with."""
    learning_rate: float | None = None
    """The rate of methods that have a single one (LoRAs, weights of the base), in place of a search."""
    max_train_steps: int = TrainConfig.max_train_steps
    """Updates of every training."""
    train_batch_size: int = TrainConfig.train_batch_size
    """Pictures of an update."""
    draw_steps: int = OF_EMBEDDED.steps
    """Denoising steps of every picture drawn."""
    guidance_scale: float = OF_EMBEDDED.guidance_scale
    """Guidance of every picture drawn."""
    scheduler: str = str(OF_EMBEDDED.scheduler)
    """Sampler of every picture drawn."""
    jobs: int = 1
    """Runs at once. Seconds are only comparable where each has cores of its own."""
    threads: int = 0
    """Threads of a run; 0 shares the machine's cores among the jobs."""
    device: Literal["auto", "cpu"] = "auto"
    """Where to run: on the GPU where there is one, or on the CPU in any case."""
    quick: bool = False
    """A look: one subject, one seed, 60 steps, no search for learning rates."""
    output_dir: str = "outputs/fidelity"
    """Where results, trained files, pictures and logs go."""
    docs_dir: str = "docs"
    """Where `report` writes its table and its picture grid."""
    subjects_dir: str = str(ROOT / "examples" / "subjects")
    """One folder per subject: training pictures and subject.yaml."""
    unseen_dir: str = str(ROOT / "benchmarks" / "unseen")
    """One folder per subject: pictures that no training sees."""

    def resolve(self) -> Self:
        """The same settings with everything open filled in.

        Raises:
            BenchmarkError: an unknown subject or method, a count below one, or a subject without unseen pictures.
        """
        there = sorted(path.parent.name for path in Path(self.subjects_dir).glob("*/subject.yaml"))
        found = replace(self, subject=self.subject or there, method=[NOTHING, *self.trained_methods()])
        if self.quick:
            output = str(Path(self.output_dir) / "quick")
            found = replace(found, subject=found.subject[:1], seeds=1, max_train_steps=60, sweep_subjects=0)
            found = replace(found, docs_dir=output, output_dir=output)
        wrong = [f"no method {name!r}; there is {', '.join(METHODS)}" for name in self.method if name not in METHODS]
        wrong += [f"no subject {name!r} in {self.subjects_dir}" for name in found.subject if name not in there]
        wrong += [
            f"no unseen pictures of {name!r} in {self.unseen_dir}"
            for name in found.subject
            if not (Path(self.unseen_dir) / name).is_dir()
        ]
        least = {"seeds": 1, "sweep_subjects": 0, "max_train_steps": 1, "train_batch_size": 1, "draw_steps": 1}
        least |= {"jobs": 1, "threads": 0}
        wrong += [
            f"--{name} is {getattr(self, name)}, expected at least {bound}"
            for name, bound in least.items()
            if getattr(self, name) < bound
        ]
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            wrong.append(f"--learning_rate is {self.learning_rate}, expected a number above 0")
        if not found.subject:
            wrong.append(f"no subjects in {self.subjects_dir}")
        if wrong:
            raise BenchmarkError("; ".join(wrong))
        return found

    def trained_methods(self) -> list[str]:
        """The methods that train something, in the order of the table."""
        return [name for name in METHODS if name != NOTHING and (not self.method or name in self.method)]

    def search_subjects(self) -> list[str]:
        """The subjects that choose the learning rates: spread over all, since the first ones may be alike."""
        count = min(self.sweep_subjects, len(self.subject))
        return self.subject[:: len(self.subject) // count][:count] if count else []
