"""Teach every example subject with the defaults and draw the strip of the README: five pictures, then five scenes.

    python tools/showcase.py                         # five trainings; what is taught already is only drawn
    python tools/showcase.py --subjects DIR --strip strip.webp

Nothing is picked: one seed for everything.
"""

import argparse
from pathlib import Path

import yaml
from PIL import Image

from coeff_diffusion import load_base
from coeff_diffusion.images.photo import read_image
from coeff_diffusion.inference.request import DrawRequest
from coeff_diffusion.inference.studio import Studio
from coeff_diffusion.subject.safetensors_file import FILE_NAME
from coeff_diffusion.training.config import TrainConfig
from coeff_diffusion.training.picture_folder import find_pictures
from coeff_diffusion.training.trainer import train

SCENES = ("in the snow", "on a blue background", "on grass", "on a beach", "on a wooden table")
SIDE, GAP = 128, 12  # pixels


def teach(folder: Path, run: Path) -> None:
    """Train a subject with the defaults, unless it is there."""
    if not (run / FILE_NAME).exists():
        about = yaml.safe_load((folder / "subject.yaml").read_text(encoding="utf-8"))
        train(
            TrainConfig(
                instance_data_dir=str(folder),
                class_word=about["class_word"],
                trigger=about["trigger"],
                output_dir=str(run),
                overwrite_output_dir=True,
                validation_steps=0,
            )
        )


def row(studio: Studio, folder: Path, run: Path) -> Image.Image:
    """What a subject was taught from, and what it looks like."""
    name = studio.load(run)
    trigger = studio.subjects[name].info.trigger
    requests = [
        DrawRequest(f"a {trigger} {scene}", subjects={name: 1.0}, seed=seed) for seed, scene in enumerate(SCENES)
    ]
    drawn = [picture.image for picture in studio.draw_batch(requests)]
    studio.unload(name)
    seen = [read_image(path) for path in find_pictures(folder).paths]
    strip = Image.new("RGB", ((len(seen) + len(drawn)) * SIDE + GAP, SIDE), "white")
    for number, picture in enumerate([*seen, *drawn]):
        strip.paste(picture.resize((SIDE, SIDE)), (number * SIDE + GAP * (number >= len(seen)), 0))
    return strip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=Path, default=Path("examples/subjects"))
    parser.add_argument("--runs", type=Path, default=Path("outputs/showcase"))
    parser.add_argument("--strip", type=Path, default=Path("docs/images/subjects.webp"))
    args = parser.parse_args()
    folders = sorted(path.parent for path in args.subjects.glob("*/subject.yaml"))
    for folder in folders:
        teach(folder, args.runs / folder.name)
    studio = Studio(load_base())
    rows = [row(studio, folder, args.runs / folder.name) for folder in folders]
    strip = Image.new("RGB", (rows[0].width, len(rows) * SIDE), "white")
    for number, one in enumerate(rows):
        strip.paste(one, (0, number * SIDE))
    strip.save(args.strip, quality=88, method=6)
    print(args.strip)


if __name__ == "__main__":
    main()
