"""What it does to turn a subject's pictures so that it faces one way in all of them (`train --facing`).

    python benchmarks/facing.py                       # the cat: two trainings, unless they are there; ten minutes
    python benchmarks/facing.py --subject penguin

Prints the loss on unseen pictures and the similarity of 20 drawn pictures for both, by the measures of `fidelity.py`,
and draws ten of these in two rows: taught from the pictures as they are, and turned.
"""

import argparse
from pathlib import Path
from typing import Literal

import yaml
from fidelity_measure import Measurement, grounds
from fidelity_plan import Run
from fidelity_settings import Settings
from PIL import Image

from coeff_diffusion import load_base
from coeff_diffusion.inference.studio import Studio
from coeff_diffusion.subject.safetensors_file import FILE_NAME
from coeff_diffusion.training.config import TrainConfig
from coeff_diffusion.training.trainer import train

SUBJECTS = Path(__file__).parents[1] / "examples" / "subjects"
WAYS: tuple[Literal["as_is", "one_way"], ...] = ("as_is", "one_way")
SIDE = 128  # pixels


def teach(subject: str, way: Literal["as_is", "one_way"], run: Path) -> None:
    """Train it with the defaults, unless it is there."""
    if not (run / FILE_NAME).exists():
        about = yaml.safe_load((SUBJECTS / subject / "subject.yaml").read_text(encoding="utf-8"))
        train(
            TrainConfig(
                instance_data_dir=str(SUBJECTS / subject),
                class_word=about["class_word"],
                trigger=about["trigger"],
                facing=way,
                output_dir=str(run),
                overwrite_output_dir=True,
                validation_steps=0,
            )
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subject", default="cat", help="a folder of examples/subjects")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/facing"))
    parser.add_argument("--strip", type=Path, help="where the two rows go; default: into the output folder")
    args = parser.parse_args()
    runs = {way: args.output_dir / f"{args.subject}-{way}" for way in WAYS}
    for way, run in runs.items():
        teach(args.subject, way, run)
    settings = Settings(subject=[args.subject], output_dir=str(args.output_dir)).resolve()
    pipe = load_base()
    rows = []
    for way, run in runs.items():
        name = Studio(pipe).load(run)
        measurement = Measurement(Run.make(settings, "all", args.subject), settings, pipe, name)
        words, unseen = measurement.subject.words("all"), measurement.subject.unseen
        drawn = measurement.draw([f"{words} {ground}" for ground in grounds()], 0)
        loss, found = measurement.loss(unseen, [words] * len(unseen)), measurement.likeness(drawn)
        print(f"{way}: loss {loss:.4f}, similarity {found['similarity']:.3f}", flush=True)
        measurement.studio.unload(name)
        rows.append(drawn[::2])
    strip = Image.new("RGB", (len(rows[0]) * SIDE, len(rows) * SIDE))
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            strip.paste(picture, (column * SIDE, row * SIDE))
    path = args.strip or args.output_dir / f"{args.subject}.webp"
    strip.save(path, quality=88, method=6)
    print(path)


if __name__ == "__main__":
    main()
