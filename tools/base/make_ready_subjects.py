"""Teach the embedded base the example subjects with the defaults and write the cards that ship with it.

    python tools/base/make_ready_subjects.py                         # coeff_diffusion/base/subjects, a card each
    python tools/base/make_ready_subjects.py --names cat penguin

A card is a picture that the subject has drawn, with the subject in it: about 30 KB. What is taught already
(`--runs`) is only drawn. Subjects belong to one base: after `export.py` they have to be taught anew, with `--runs` in
a new folder.
"""

import argparse
from pathlib import Path

import yaml

from coeff_diffusion import Coefficients, load_base
from coeff_diffusion.images.files import save_picture
from coeff_diffusion.inference.request import DrawRequest
from coeff_diffusion.inference.studio import Studio
from coeff_diffusion.sources.image_card import chunks
from coeff_diffusion.subject.safetensors_file import FILE_NAME
from coeff_diffusion.training.config import TrainConfig
from coeff_diffusion.training.trainer import train

SCENES = {"cat": "in the snow", "lady_beetle": "on grass", "penguin": "on a beach"}


def teach(folder: Path, run: Path) -> Coefficients:
    """The subject of a folder of pictures, trained with the defaults unless it is there."""
    if not (run / FILE_NAME).exists():
        about = yaml.safe_load((folder / "subject.yaml").read_text(encoding="utf-8"))
        train(
            TrainConfig(
                instance_data_dir=str(folder),
                class_word=about["class_word"],
                trigger=about["trigger"],
                name=about["name"],
                license=about["license"],
                output_dir=str(run),
                overwrite_output_dir=True,
                validation_steps=0,
            )
        )
    return Coefficients.load(run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="+", choices=SCENES, default=list(SCENES), help="folders of examples/subjects")
    parser.add_argument("--subjects", type=Path, default=Path("examples/subjects"))
    parser.add_argument("--runs", type=Path, default=Path(".work/base/ready"))
    parser.add_argument("--output", type=Path, default=Path("coeff_diffusion/base/subjects"))
    args = parser.parse_args()
    studio = Studio(load_base())
    for name in args.names:
        subject = teach(args.subjects / name, args.runs / name)
        loaded = studio.load(subject)
        prompt = f"a {subject.info.trigger} {SCENES[name]}"
        picture = studio.draw(DrawRequest(prompt, subjects={loaded: 1.0}, seed=0))[0]
        studio.unload(loaded)
        card = args.output / f"{name}.png"
        save_picture(picture.image, card, picture.parameters, chunks([subject]))
        print(f"{card}: {card.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
