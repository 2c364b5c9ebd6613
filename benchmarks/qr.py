"""How much of a subject a QR code loses: the same pictures from the file and from a picture of its code.

    python benchmarks/qr.py                               train an example subject on the embedded base, then compare
    python benchmarks/qr.py --subject dog.safetensors     compare one that is there
    python benchmarks/qr.py --help                        all settings

Beside it yardsticks, from the same subject and prompts: its strength turned from 1 to 0.97, which nobody would see; to
0, which is all that its coefficients do; and another seed, which anybody sees.

Heavy imports wait until they are needed, so that `--help` answers at once.
"""

import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coeff_diffusion.cli import guarded, parse
from coeff_diffusion.training.config import TrainConfig

if TYPE_CHECKING:
    from PIL import Image

    from coeff_diffusion.inference.studio import Studio
    from coeff_diffusion.subject.coefficients import Coefficients

SUBJECTS = Path(__file__).resolve().parents[1] / "examples" / "subjects"
SCENES = ("on a blue background", "on grass", "on a beach", "in the snow", "in a forest", "on a wooden table")


@dataclass
class Settings:
    """Draw with a subject before and after it went through a QR code, and measure how far apart the pictures are."""

    subject: str | None = None
    """The subject's file; left out, one is trained from the pictures of an example."""
    example: str = "dog"
    """A folder of examples/subjects to train from."""
    max_train_steps: int = TrainConfig.max_train_steps
    """Training steps."""
    base: str = "embedded"
    """The base: "embedded", a diffusers folder, a single checkpoint or a Hub id."""
    pictures: int = 12
    """Pictures of each kind."""
    draw_steps: int = 20
    """Denoising steps of each."""
    seed: int = 0
    """Seed of the first picture, the next ones count up."""
    device: str = "auto"
    """cpu, cuda, mps; auto is the GPU where there is one."""
    output_dir: str = "outputs/qr"
    """Where the trained subject, its code and the pictures go."""


def main() -> int:
    settings = parse("benchmark of QR codes", Settings, sys.argv[1:])
    from coeff_diffusion.families.load import load_base
    from coeff_diffusion.inference.studio import Studio
    from coeff_diffusion.subject.coefficients import Coefficients

    subject = Coefficients.load(settings.subject or trained(settings))
    read = through_a_code(subject, Path(settings.output_dir))
    studio = Studio(load_base(settings.base, device=settings.device))
    print(f"drawing 5 x {settings.pictures} pictures on {studio.pipe.device}", flush=True)
    original = draw(studio, settings, subject)
    others = {
        "the QR code": draw(studio, settings, read),
        "strength 0.97": draw(studio, settings, subject, strength=0.97),
        "strength 0": draw(studio, settings, subject, strength=0.0),
        "another seed": draw(studio, settings, subject, seed=settings.seed + settings.pictures),
    }
    for kind, pictures in {"the file": original, **others}.items():
        for number, picture in enumerate(pictures):
            picture.save(Path(settings.output_dir) / f"{number:02d}-{kind.replace(' ', '-')}.png")
    print(table(original, others))
    return 0


def trained(settings: Settings) -> Path:
    """The file of a subject, trained as `coeff-diffusion train` does it."""
    import yaml

    from coeff_diffusion.training.trainer import train

    folder = SUBJECTS / settings.example
    about = yaml.safe_load((folder / "subject.yaml").read_text(encoding="utf-8"))
    config = TrainConfig(
        pretrained_model_name_or_path=settings.base,
        instance_data_dir=str(folder),
        facing="as_is",  # as the figures in docs/ were taken
        class_word=about["class_word"],
        trigger=about["trigger"],
        max_train_steps=settings.max_train_steps,
        validation_steps=0,
        output_dir=str(Path(settings.output_dir) / settings.example),
        overwrite_output_dir=True,
    )
    return train(config).file


def through_a_code(subject: "Coefficients", folder: Path) -> "Coefficients":
    """The subject as a reader of its code gets it, from a JPEG of quality 90."""
    from coeff_diffusion.sources.qr_code import make_qr, read_qr
    from coeff_diffusion.sources.qr_payload import CAPACITY, largest_change, pack

    folder.mkdir(parents=True, exist_ok=True)
    code = make_qr(subject)
    code.save(folder / "code.png")
    with tempfile.TemporaryDirectory() as temporary:
        code.convert("L").save(Path(temporary) / "code.jpg", quality=90)
        read = read_qr(Path(temporary) / "code.jpg")
    if read is None:
        raise ValueError("the code is not read back")
    values = sum(tensor.numel() for tensor in subject.named_tensors().values())
    change, part = largest_change(subject, read)
    print(
        f"{values:,} values in {len(pack(subject)):,} of {CAPACITY:,} bytes, a code of {code.width} x {code.height} "
        f"pixels\nlargest change of a value {change:.2g}, in proportion to its layer's largest 1/{1 / part:.1f}"
    )
    return read


def draw(
    studio: "Studio", settings: Settings, subject: "Coefficients", strength: float = 1.0, seed: int | None = None
) -> list["Image.Image"]:
    """Pictures of the subject in one scene after the other, each from a seed of its own."""
    from coeff_diffusion.inference.request import DrawRequest

    first = settings.seed if seed is None else seed
    name = studio.load(subject, "subject")
    pictures = []
    for number in range(settings.pictures):
        prompt = f"a {subject.info.trigger or subject.info.class_word} {SCENES[number % len(SCENES)]}"
        request = DrawRequest(prompt, subjects={name: strength}, seed=first + number, steps=settings.draw_steps)
        pictures += [picture.image for picture in studio.draw(request)]
    studio.unload(name)
    return pictures


def table(original: Sequence["Image.Image"], others: dict[str, list["Image.Image"]]) -> str:
    """What the pictures have to do with the original's, in Markdown."""
    from features import FeatureExtractor

    extract = FeatureExtractor()
    features = extract(original)  # [N, F]
    lines = [
        "| against the file | mean change (of 255) | largest | PSNR (dB) | similarity of features |",
        "| --- | --- | --- | --- | --- |",
    ]
    for kind, pictures in others.items():
        mean, largest, psnr = differences(original, pictures)
        cosines = (features * extract(pictures)).sum(1)
        lines.append(
            f"| {kind} | {mean:.2f} | {largest:.0f} | {psnr:.1f} | {cosines.mean():.4f} (lowest {cosines.min():.4f}) |"
        )
    return "\n".join(lines)


def differences(first: Sequence["Image.Image"], second: Sequence["Image.Image"]) -> tuple[float, float, float]:
    """Mean and largest difference of two rows of pictures in levels of 255, and their PSNR over all pixels."""
    import numpy as np

    def pixels(pictures: Sequence["Image.Image"]) -> Any:
        return np.stack([np.asarray(picture.convert("RGB"), dtype=np.float64) for picture in pictures])

    change = pixels(first) - pixels(second)
    error = float(np.square(change).mean())
    return (
        float(np.abs(change).mean()),
        float(np.abs(change).max()),
        10 * math.log10(255**2 / error) if error else math.inf,
    )


if __name__ == "__main__":
    sys.exit(guarded(main))
