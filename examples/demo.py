"""From five pictures to a drawn subject: train an example subject on the embedded base, draw a grid, open the page.

make demo                                   # or: python examples/demo.py
python examples/demo.py --subject NAME      # another folder of examples/subjects
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

from coeff_diffusion.cli import guarded, parse
from coeff_diffusion.commands.generate import generate
from coeff_diffusion.commands.generate_config import GenerateConfig
from coeff_diffusion.training.config import TrainConfig
from coeff_diffusion.training.trainer import train

SUBJECTS = Path(__file__).parent / "subjects"
SCENES = ("on a blue background", "on grass", "on a beach", "in the snow")


@dataclass
class DemoConfig:
    """Train an example subject on the embedded base and draw a grid: base beside subject, one row per prompt."""

    subject: str | None = None
    """A folder of examples/subjects; left out, the first one."""
    output_dir: str = "outputs"
    """Where the subject and the pictures go."""
    max_train_steps: int = TrainConfig.max_train_steps
    """Training steps."""
    seed: int = 0
    """Decides training and pictures."""


def main() -> int:
    config = parse("demo", DemoConfig, sys.argv[1:])
    started = time.monotonic()
    folder = find_subject(config.subject)
    about = yaml.safe_load((folder / "subject.yaml").read_text(encoding="utf-8"))
    trigger = about.get("trigger") or f"sks {about['class_word']}"
    run = free_folder(Path(config.output_dir), folder.name)
    print(f"Teaching the embedded base {trigger!r} from the pictures in {folder}", flush=True)
    result = train(
        TrainConfig(
            instance_data_dir=str(folder),
            class_word=about["class_word"],
            trigger=trigger,
            output_dir=str(run),
            seed=config.seed,
            max_train_steps=config.max_train_steps,
            keep_best=True,
        )
    )
    print("Drawing the grid", flush=True)
    prompts = [f"a {trigger} {scene}" for scene in SCENES]
    pictures = generate(
        GenerateConfig(
            prompt=prompts,
            subject=[str(run)],
            settings={"seed": config.seed},
            grid=True,
            output_dir=str(run / "pictures"),
        )
    )
    command = Path(sys.executable).parent / "coeff-diffusion"
    print(
        f"\nDone in {time.monotonic() - started:.0f} s."
        f"\n  the subject   {result.file} ({result.file.stat().st_size} bytes)"
        f"\n  the grid      {pictures[-1]}"
        f"\n  the pictures  {run / 'pictures'}"
        f"\nOpen the page to draw more:\n  {command} studio --subjects_dir {config.output_dir}"
    )
    return 0


def find_subject(name: str | None) -> Path:
    """The folder of an example subject."""
    found = {path.parent.name: path.parent for path in sorted(SUBJECTS.glob("*/subject.yaml"))}
    if not found:
        raise SystemExit(f"no example subjects in {SUBJECTS}")
    if name is not None and name not in found:
        raise SystemExit(f"no example subject {name!r}; there is {', '.join(found)}")
    return found[name or next(iter(found))]


def free_folder(parent: Path, name: str) -> Path:
    """`parent/name`, or with the next free number behind it: an earlier demo stays."""
    number, folder = 2, parent / name
    while folder.exists():
        number, folder = number + 1, parent / f"{name}-{number}"
    return folder


if __name__ == "__main__":
    sys.exit(guarded(main))
