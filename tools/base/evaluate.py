"""Measure a base and draw its sample grid.

    python tools/base/evaluate.py                  every check on the shipped base
    python tools/base/evaluate.py colours grid     some of them

Checks: `colours` (is the border the colour that was asked for?), `concepts` (is the nearest training concept by
ImageNet features the one asked for?), `autoencoder` (PSNR on concepts nothing was trained on), `speed`, `grid` (64
pictures to look at).
Figures go to stdout and, with their bars, to `metrics.json` in the output folder.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from concepts import COLOURS, HELD_OUT, SCENES, training_concepts
from diffusers import AutoencoderTiny, StableDiffusionPipeline
from PIL import Image, ImageDraw
from recipes import RecipeBook, with_article
from render import Renderer
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from features import FeatureExtractor

from coeff_diffusion.families.usual import OF_EMBEDDED

STEPS = OF_EMBEDDED.steps  # as everybody draws with it
BARS = {
    "colours": 0.90, "top5": 0.75, "top1": 0.45, "psnr": 28.0, "seconds_per_picture": 2.0, "seconds_to_load": 3.0,
}  # fmt: skip


def draw(
    pipe: StableDiffusionPipeline, prompts: list[str], seed: int, guidance: float, batch: int = 20
) -> list[Image.Image]:
    """One picture per prompt, from noise seeded by (seed, number of the prompt)."""
    pictures = []
    for start in tqdm(range(0, len(prompts), batch), desc="drawing", unit="batch"):
        part = prompts[start : start + batch]
        generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(part))]
        pictures += pipe(part, num_inference_steps=STEPS, guidance_scale=guidance, generator=generators).images
    return pictures


def border_colour(picture: Image.Image, width: int = 4) -> np.ndarray:
    """Mean sRGB colour of the outermost pixels."""
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float32)
    mask = np.ones(pixels.shape[:2], dtype=bool)
    mask[width:-width, width:-width] = False
    return pixels[mask].mean(0)


def check_colours(pipe: StableDiffusionPipeline, count: int, guidance: float) -> dict[str, float]:
    """The share of "a <concept> on a <colour> background" whose border is nearest to the asked colour."""
    rng = np.random.default_rng(0)
    names, colours = [name for name, _, _ in training_concepts()], list(COLOURS)
    asked = [(names[rng.integers(len(names))], colours[i % len(colours)]) for i in range(count)]
    pictures = draw(pipe, [f"{with_article(n)} on {with_article(c)} background" for n, c in asked], 1000, guidance)
    palette = np.array(list(COLOURS.values()), dtype=np.float32)
    hits = [
        colours[int(np.square(palette - border_colour(picture)).sum(1).argmin())] == colour
        for picture, (_, colour) in zip(pictures, asked, strict=True)
    ]
    return {"colours": float(np.mean(hits))}


def concept_features(renderer: Renderer, extract: FeatureExtractor, views: int = 8) -> torch.Tensor:
    """Mean features [concepts, 1280] of a few composites of every concept on plain backgrounds."""
    means = []
    for label in range(len(renderer.catalogue.names)):
        recipes, _ = RecipeBook(renderer.catalogue).draw(np.random.default_rng([5, label]), views)
        recipes.sprite[:, 0] = renderer.catalogue.sprites[label][0]
        recipes.sprite[:, 1] = -1
        recipes.background.zero_()
        recipes.tint.fill_(-1)
        recipes.place[:, 0], recipes.scale[:, 0] = 0.5, 0.72
        means.append(F.normalize(extract(renderer(recipes)).mean(0), dim=0))
    return torch.stack(means)


def check_concepts(pipe: StableDiffusionPipeline, sprites: Path, count: int, guidance: float) -> dict[str, object]:
    """Top-1 and top-5 shares of the asked concept among all, by features; also per class."""
    renderer, extract = Renderer(sprites, scene_variants=1), FeatureExtractor()
    known = concept_features(renderer, extract)
    names, classes = renderer.catalogue.names, renderer.catalogue.classes
    order = np.random.default_rng(0).permutation(len(names))
    labels = [int(order[i % len(names)]) for i in range(count)]
    colours = list(COLOURS)
    prompts = [
        f"{with_article(names[label])} on {with_article(colours[i * 5 % 12])} background"
        for i, label in enumerate(labels)
    ]
    ranks = (extract(draw(pipe, prompts, 2000, guidance)) @ known.T).argsort(dim=1, descending=True)
    places = [int((ranks[i] == label).nonzero()) for i, label in enumerate(labels)]
    per_class: dict[str, list[int]] = defaultdict(list)
    for label, place in zip(labels, places, strict=True):
        per_class[classes[label]].append(place)
    return {
        "top1": float(np.mean([place < 1 for place in places])),
        "top5": float(np.mean([place < 5 for place in places])),
        "per_class": {
            word: {
                "n": len(found),
                "top1": float(np.mean([p < 1 for p in found])),
                "top5": float(np.mean([p < 5 for p in found])),
            }
            for word, found in sorted(per_class.items())
        },
    }


def check_autoencoder(vae: AutoencoderTiny, sprites: Path, folder: Path, count: int) -> dict[str, float]:
    """Mean PSNR in dB on composites of the held-out concepts; saves pairs to look at."""
    renderer = Renderer(sprites, names=list(HELD_OUT), scene_variants=4, scene_seed=1)
    recipes, _ = RecipeBook(renderer.catalogue).draw(np.random.default_rng(7), count)
    pictures = renderer(recipes)
    with torch.no_grad():
        decoded = torch.cat([vae.decode(vae.encode(part).latents).sample for part in pictures.split(16)]).clamp(-1, 1)
    psnr = -10 * ((decoded - pictures).square().mean((1, 2, 3)) / 4).log10()
    pairs = torch.cat([torch.cat([a, b], 1) for a, b in zip(pictures[:8], decoded[:8], strict=True)], 2)
    Image.fromarray(((pairs + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()).save(folder / "autoencoder.png")
    return {"psnr": float(psnr.mean()), "psnr_lowest_tenth": float(psnr.quantile(0.1))}


def check_speed(base: Path, guidance: float) -> dict[str, float]:
    """Median seconds to load the pipeline (fresh processes) and to draw one picture."""
    code = f"""
import time, torch
from diffusers import StableDiffusionPipeline
start = time.perf_counter()
pipe = StableDiffusionPipeline.from_pretrained({str(base)!r}, safety_checker=None)
loaded = time.perf_counter() - start
pipe.set_progress_bar_config(disable=True)
times = []
for seed in range(6):
    start = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    pipe("a red car", num_inference_steps={STEPS}, guidance_scale={guidance}, generator=generator)
    times.append(time.perf_counter() - start)
print(loaded, sorted(times[1:])[2])
"""
    runs = [subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True) for _ in range(3)]
    loads, times = zip(*(map(float, run.stdout.split()) for run in runs), strict=True)
    return {"seconds_to_load": statistics.median(loads), "seconds_per_picture": statistics.median(times)}


def grid_prompts() -> list[str]:
    """64 prompts that use all the base can do: plain and painted grounds, colours, sizes, places, two objects."""
    rng = np.random.default_rng(42)
    names = [name for name, _, _ in training_concepts()]
    chosen = [names[i] for i in rng.permutation(len(names))[:80]]
    colours = list(COLOURS)
    prompts = []
    for i in range(64):
        ground = SCENES[i % len(SCENES)] if i % 2 else f"on {with_article(colours[i // 2 % 12])} background"
        if i % 8 == 7:
            prompts.append(f"{with_article(chosen[i])} next to {with_article(chosen[64 + i // 8])} {ground}")
        else:
            prompts.append(f"{with_article(chosen[i])} {ground}")
    return prompts


def save_grid(pipe: StableDiffusionPipeline, folder: Path, guidance: float) -> None:
    """`grid.png` (64 pictures), `grid-labelled.png` (with their prompts below) and `grid.txt`."""
    prompts = grid_prompts()
    pictures = draw(pipe, prompts, 3000, guidance)
    plain, labelled = Image.new("RGB", (8 * 128, 8 * 128)), Image.new("RGB", (8 * 128, 8 * 154), "white")
    pen = ImageDraw.Draw(labelled)
    for i, (picture, prompt) in enumerate(zip(pictures, prompts, strict=True)):
        x, y = i % 8 * 128, i // 8
        plain.paste(picture, (x, y * 128))
        labelled.paste(picture, (x, y * 154))
        words = prompt.split()
        pen.text(
            (x + 2, y * 154 + 129),
            " ".join(words[:4]) + "\n" + " ".join(words[4:]),
            fill="black",
            font_size=10,
            spacing=1,
        )
    plain.save(folder / "grid.png", optimize=True)
    labelled.save(folder / "grid-labelled.png", optimize=True)
    (folder / "grid.txt").write_text("\n".join(prompts) + "\n")


def main() -> None:
    checks = ["colours", "concepts", "autoencoder", "speed", "grid"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checks", nargs="*", metavar="check", help=f"{', '.join(checks)}; default: all")
    parser.add_argument("--base", type=Path, default=Path("coeff_diffusion/base/model"))
    parser.add_argument("--sprites", type=Path, default=Path(".work/base/sprites.zip"))
    parser.add_argument("--output", type=Path, default=Path(".work/base/evaluation"))
    parser.add_argument("--colour_prompts", type=int, default=100)
    parser.add_argument("--guidance_scale", type=float, default=7.5)
    parser.add_argument("--concept_prompts", type=int, default=200)
    args = parser.parse_args()
    if unknown := set(args.checks) - set(checks):
        parser.error(f"no check {', '.join(sorted(unknown))}; there is {', '.join(checks)}")
    args.checks = args.checks or checks
    args.output.mkdir(parents=True, exist_ok=True)

    pipe = StableDiffusionPipeline.from_pretrained(args.base, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    figures: dict[str, object] = {}
    if "colours" in args.checks:
        figures |= check_colours(pipe, args.colour_prompts, args.guidance_scale)
    if "concepts" in args.checks:
        figures |= check_concepts(pipe, args.sprites, args.concept_prompts, args.guidance_scale)
    if "autoencoder" in args.checks:
        figures |= check_autoencoder(pipe.vae, args.sprites, args.output, 200)
    if "speed" in args.checks:
        figures |= check_speed(args.base, args.guidance_scale)
    if "grid" in args.checks:
        save_grid(pipe, args.output, args.guidance_scale)
    (args.output / "metrics.json").write_text(json.dumps(figures, indent=2) + "\n")
    for name, value in figures.items():
        bar = BARS.get(name)
        if isinstance(value, float):
            passed = bar is not None and (value <= bar if name.startswith("seconds") else value >= bar)
            print(
                f"{name:22} {value:8.3f}"
                + (f"   bar {bar:g}: {'reached' if passed else 'MISSED'}" if bar is not None else "")
            )
    if isinstance(per_class := figures.get("per_class"), dict):
        for word, found in per_class.items():
            print(f"  {word:14} n {found['n']:3}  top-1 {found['top1']:.2f}  top-5 {found['top5']:.2f}")


if __name__ == "__main__":
    main()
