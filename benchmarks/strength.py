"""What a subject's strength does, from 0 to 1.5: how near it is to the subject, and how far from the base.

    python benchmarks/strength.py               # the subjects that ship with the embedded base: a minute

Loss: of denoising the subject's own pictures, and of those that no training saw (`benchmarks/unseen`), at five noise
levels. Pixels: how far drawn pictures are from those that the base draws of the class word, from the same noise (root
mean square, 0..255).
"""

import argparse
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from coeff_diffusion import Coefficients, load_base, load_coefficients, set_coefficients, unload_coefficients
from coeff_diffusion.base import ready_cards
from coeff_diffusion.families.process import training_schedule
from coeff_diffusion.families.registry import family_of
from coeff_diffusion.inference.request import DrawRequest
from coeff_diffusion.inference.studio import Studio
from coeff_diffusion.sources.image_card import extract
from coeff_diffusion.training.known_pictures import losses_at
from coeff_diffusion.training.latents import encode_pictures
from coeff_diffusion.training.picture_folder import find_pictures
from coeff_diffusion.training.views import PictureViews

STRENGTHS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
GROUNDS = ("on a blue background", "in the snow", "on grass", "on a beach")
ROOT = Path(__file__).parents[1]
OWN, UNSEEN = ROOT / "examples" / "subjects", ROOT / "benchmarks" / "unseen"


def losses(pipe: Any, prompt: str, latents: torch.Tensor, levels: Sequence[float] = LEVELS) -> torch.Tensor:
    """Of the pipeline as it is set, for latents `[P, C, h, w]` of one prompt: `[levels, P]`."""
    family = family_of(pipe)
    condition = family.condition(pipe, [prompt] * len(latents), family.size(pipe))
    schedule = training_schedule(pipe.scheduler.config)

    def denoise(noised: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        return family.predict(pipe.unet, noised, timesteps, condition)

    return losses_at(levels, schedule, denoise, latents)


@torch.no_grad()
def loss(pipe: Any, prompt: str, latents: torch.Tensor) -> float:
    """The mean of these."""
    return float(losses(pipe, prompt, latents).mean())


def curve(pipe: Any, subject: Coefficients, folders: Sequence[Path]) -> list[tuple[float, ...]]:
    """The loss on the pictures of each folder, and pixels, at each strength."""
    views = [PictureViews(find_pictures(folder).pictures, 128, True, False, 1, 0) for folder in folders]
    latents = [encode_pictures(pipe.vae, one).largest()[0].first_views() for one in views]
    name = load_coefficients(pipe, subject, name="subject")
    prompt, found = f"a {subject.info.trigger}", []
    for strength in STRENGTHS:
        set_coefficients(pipe, {name: strength})
        found.append([loss(pipe, prompt, one) for one in latents])
    unload_coefficients(pipe)
    studio = Studio(pipe)
    studio.load(subject, name=name)
    drawn = []
    for strength in STRENGTHS:
        requests = [
            DrawRequest(f"{prompt} {ground}", subjects={name: strength}, seed=i) for i, ground in enumerate(GROUNDS)
        ]
        drawn.append(np.stack([np.asarray(one.image, dtype=np.float32) for one in studio.draw_batch(requests)]))
    studio.unload(name)
    pixels = [float(np.sqrt(np.square(one - drawn[0]).mean())) for one in drawn]
    return [(*both, one) for both, one in zip(found, pixels, strict=True)]


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    pipe, curves = load_base(), {}
    for card in ready_cards():
        curves[card.stem] = curve(pipe, extract(card)[0], (OWN / card.stem, UNSEEN / card.stem))
    print("| strength | " + " | ".join(f"{name}: own | unseen | pixels" for name in curves) + " |")
    print("| --- " * (1 + 3 * len(curves)) + "|")
    for number, strength in enumerate(STRENGTHS):
        cells = ["{:.4f} | {:.4f} | {:.1f}".format(*found[number]) for found in curves.values()]
        print(f"| {strength:g} | " + " | ".join(cells) + " |")
    for name, found in curves.items():
        own, _, pixels = zip(*found[: STRENGTHS.index(1.0) + 1], strict=True)
        falls = all(later < earlier for earlier, later in pairwise(own))
        rises = all(later > earlier for earlier, later in pairwise(pixels))
        print(f"{name}, from 0 to 1: the loss on its own pictures falls: {falls}; the pictures go away from 0: {rises}")


if __name__ == "__main__":
    main()
