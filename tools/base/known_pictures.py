"""Measure what the embedded base is used to, so that training can tell pictures of a kind that it does not know.

    python tools/base/known_pictures.py                                   # writes the base's known_pictures.json
    python tools/base/known_pictures.py --compare DIR [DIR ...]           # how far off it is with other pictures

Renders pictures of held-out concepts (`concepts.py`), asks the base about them at a few low noise levels, and prints by
how much sets of five of them differ, beside pictures of `examples/subjects`, noise of several textures, and folders of
your own.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from concepts import HELD_OUT
from recipes import RecipeBook
from render import Renderer

from coeff_diffusion import load_base
from coeff_diffusion.families.process import training_schedule
from coeff_diffusion.subject.atomic_write import atomic_write
from coeff_diffusion.training.known_pictures import FILE, MOST, KnownPictures, denoise_of, losses_at, strangeness
from coeff_diffusion.training.latents import encode_pictures, posterior
from coeff_diffusion.training.picture_folder import find_pictures
from coeff_diffusion.training.views import PictureViews

KIND = "drawn things"
LEVELS = (0.03, 0.05, 0.1)  # where photos and drawings lie farthest apart
SETS, BATCH = 4000, 50
TEXTURES = (0.0, 0.5, 1.0, 1.5, 2.0)  # noise with a spectrum of 1 / f to this power; photographs have about 1


def rendered(sprites: Path, count: int) -> tuple[torch.Tensor, list[str]]:
    """Pictures of held-out concepts `[P, 3, 128, 128]` in [-1, 1], and what they show: their class words alone."""
    renderer = Renderer(sprites, names=list(HELD_OUT), scene_variants=12, scene_seed=6)
    recipes, _ = RecipeBook(renderer.catalogue).draw(np.random.default_rng(3), count)
    words = [f"a {renderer.catalogue.classes[label]}" for label in recipes.label[:, 0].tolist()]
    return renderer(recipes), words


def texture(power: float, count: int, side: int = 128) -> torch.Tensor:
    """Coloured noise with a spectrum of 1 / f to some power, `[count, 3, side, side]` in [-1, 1]."""
    generator = torch.Generator().manual_seed(0)
    axis = torch.fft.fftfreq(side)
    frequency = (axis[:, None].square() + axis.square()).sqrt().clamp(min=1 / side)
    white = torch.fft.fft2(torch.randn(count, 3, side, side, generator=generator))
    made = torch.fft.ifft2(white / frequency**power).real
    return (made / made.std() * 0.5).clamp(-1, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sprites", type=Path, default=Path(".work/base/sprites.zip"))
    parser.add_argument("--base", type=Path, default=Path("coeff_diffusion/base/model"))
    parser.add_argument("--pictures", type=int, default=300, help="to measure the base's own figures with")
    parser.add_argument("--compare", type=Path, nargs="*", default=[], help="folders of pictures; nothing is written")
    args = parser.parse_args()
    pipe = load_base(args.base)
    schedule = training_schedule(pipe.scheduler.config)
    pictures, words = rendered(args.sprites, args.pictures)

    @torch.no_grad()
    def asked(latents: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        return losses_at(LEVELS, schedule, denoise_of(pipe, latents, prompts), latents)

    def losses(pixels: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        latents = torch.cat([posterior(pipe.vae, part)[0] for part in pixels.split(BATCH)])
        parts = [slice(i, i + BATCH) for i in range(0, len(latents), BATCH)]
        return torch.cat([asked(latents[part], prompts[part]) for part in parts], 1)

    found = losses(pictures, words)
    known = KnownPictures(KIND, LEVELS, tuple(round(float(loss), 4) for loss in found.mean(1)))
    generator = torch.Generator().manual_seed(1)
    for size in (1, 2, 3, 5):
        sets = [torch.randperm(len(pictures), generator=generator)[:size] for _ in range(SETS)]
        times = torch.tensor([strangeness(known, found[:, chosen]) for chosen in sets])
        print(f"held-out concepts, sets of {size}: {times.quantile(0.5):.2f}, one in 1000 {times.quantile(0.999):.2f}")
    for power in TEXTURES:
        print(f"noise 1 / f^{power}: {strangeness(known, losses(texture(power, 5), [''] * 5)):.2f}")
    for folder in (*sorted(Path("examples/subjects").iterdir()), *args.compare):
        views = PictureViews(find_pictures(folder).pictures, 128, True, False, 1, 0)
        latents = encode_pictures(pipe.vae, views).largest()[0].first_views()[:MOST]
        times = strangeness(known, asked(latents, [""] * len(latents)))
        print(f"{folder}: {times:.2f}")
    if not args.compare:
        with atomic_write(args.base / FILE) as file:
            file.write(known.to_json().encode())
        print(f"{args.base / FILE}: {known.losses} at {known.levels}")


if __name__ == "__main__":
    main()
