"""What it does to turn a subject's pictures so that it faces one way in all of them (`train --facing`).

    python benchmarks/facing.py                       # the cat: two trainings, unless they are there; ten minutes
    python benchmarks/facing.py --subject penguin

Prints which pictures, of those to train on and of the unseen ones, are told to face the other way; then the loss on
unseen pictures and the similarity of 20 drawn ones, taught from the pictures as they are and turned, by the measures of
`fidelity.py`. All 20 are saved beside each training; ten of them become the two rows of the strip.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import yaml
from fidelity_measure import Measurement, grounds
from fidelity_plan import Run
from fidelity_settings import Settings
from PIL import Image

from coeff_diffusion import load_base
from coeff_diffusion.inference.studio import Studio
from coeff_diffusion.subject.safetensors_file import FILE_NAME
from coeff_diffusion.training.config import TrainConfig
from coeff_diffusion.training.facing import turned_away
from coeff_diffusion.training.latents import encode_pictures
from coeff_diffusion.training.picture_folder import find_pictures
from coeff_diffusion.training.trainer import train
from coeff_diffusion.training.views import PictureViews

ROOT = Path(__file__).parents[1]
SUBJECTS, UNSEEN = ROOT / "examples" / "subjects", ROOT / "benchmarks" / "unseen"
WAYS: tuple[Literal["as_is", "one_way"], ...] = ("as_is", "one_way")
SIDE = 128  # pixels


def told(pipe: Any, folder: Path, class_word: str) -> list[str]:
    """The names of a folder's pictures that face the other way than most."""
    pictures = find_pictures(folder).pictures
    both = [*pictures, *(replace(picture, mirrored=True) for picture in pictures)]
    plain, mirrored = encode_pictures(pipe.vae, PictureViews(both, SIDE, True, False, 1, 0)).groups[0].mean.chunk(2)
    away = turned_away(pipe, plain, mirrored, f"a {class_word}")
    return [picture.path.name for picture, is_away in zip(pictures, away, strict=True) if is_away]


def about(subject: str) -> dict[str, str]:
    """What `subject.yaml` says."""
    return dict(yaml.safe_load((SUBJECTS / subject / "subject.yaml").read_text(encoding="utf-8")))


def teach(subject: str, way: Literal["as_is", "one_way"], run: Path) -> None:
    """Train it with the defaults, unless it is there."""
    if not (run / FILE_NAME).exists():
        said = about(subject)
        train(
            TrainConfig(
                instance_data_dir=str(SUBJECTS / subject),
                class_word=said["class_word"],
                trigger=said["trigger"],
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
    pipe, class_word = load_base(), about(args.subject)["class_word"]
    for folder in (SUBJECTS / args.subject, UNSEEN / args.subject):
        away = told(pipe, folder, class_word)
        print(f"{folder.relative_to(ROOT)}: facing the other way: {', '.join(away) or 'none'}", flush=True)
    runs = {way: args.output_dir / f"{args.subject}-{way}" for way in WAYS}
    for way, run in runs.items():
        teach(args.subject, way, run)
    settings = Settings(subject=[args.subject], output_dir=str(args.output_dir)).resolve()
    rows = []
    for way, run in runs.items():
        name = Studio(pipe).load(run)
        measurement = Measurement(Run.make(settings, "all", args.subject), settings, pipe, name)
        words, unseen = measurement.subject.words("all"), measurement.subject.unseen
        drawn = measurement.draw([f"{words} {ground}" for ground in grounds()], 0)
        loss, found = measurement.loss(unseen, [words] * len(unseen)), measurement.likeness(drawn)
        print(f"{way}: loss {loss:.4f}, similarity {found['similarity']:.3f}", flush=True)
        measurement.studio.unload(name)
        for number, picture in enumerate(drawn):
            picture.save(run / f"drawn-{number:02d}.png")
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
