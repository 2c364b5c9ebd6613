"""How near does the embedded base come to what it was trained on? What subjects that learn on it are measured by.

    python tools/base/fetch.py
    python benchmarks/known_concepts.py        # ten minutes on one core

Concepts of the classes that the example subjects have, measured as those are by `fidelity.py`: 20 drawn pictures
against 12 of the concept itself, on the way from what the base makes of the class word to the pictures' similarity
among themselves; and how far these are on it once they were through the autoencoder. The base has seen the concepts'
renders thousands of times, these pictures of them never.
"""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from features import FeatureExtractor
from fidelity_measure import DRAWN_AT_ONCE, grounds, with_article
from limits import through_autoencoder
from PIL import Image

from coeff_diffusion.families.load import load_base
from coeff_diffusion.inference.request import DrawRequest
from coeff_diffusion.inference.studio import Studio

sys.path.append(str(Path(__file__).resolve().parents[1] / "tools" / "base"))
from make_subjects import UNSEEN, as_images, recipes_of
from render import Renderer

KNOWN = {"poodle": "dog", "black cat": "cat", "songbird": "bird", "whale": "sea animal", "ant": "bug"}  # by class word


@dataclass(frozen=True)
class Known:
    """Similarities of a concept: of the class word's pictures, of its own, of decoded ones, and of pictures of it."""

    of_class: float
    drawn: float
    decoded: float
    pictures: float

    def way(self, similarity: float) -> float:
        """How far a similarity is on the way from the class to the concept."""
        return (similarity - self.of_class) / (self.pictures - self.of_class)

    def row(self, name: str, word: str) -> str:
        """A line of the table."""
        found = f"{self.of_class:.3f} | {self.drawn:.3f} | {self.pictures:.3f}"
        return f"| {name} ({word}) | {found} | {self.way(self.drawn):.0%} | {self.way(self.decoded):.0%} |"


def pictures_of(name: str, sprites: Path, count: int = UNSEEN) -> list[Image.Image]:
    """Pictures of a concept, as the unseen ones of subjects are made."""
    renderer = Renderer(sprites, names=[name], scene_variants=6, scene_seed=2)
    poses = renderer.catalogue.sprites[0][1:] or renderer.catalogue.sprites[0]  # the first is the still render
    recipes, _ = recipes_of(renderer, 0, [poses[i * len(poses) // count] for i in range(count)], seed=12)
    return as_images(renderer(recipes))


def drawn(studio: Studio, word: str) -> list[Image.Image]:
    """Twenty pictures of a word, as the base draws usually."""
    asked = [DrawRequest(f"{with_article(word)} {ground}", seed=i) for i, ground in enumerate(grounds())]
    batches = [asked[start : start + DRAWN_AT_ONCE] for start in range(0, len(asked), DRAWN_AT_ONCE)]
    return [picture.image for batch in batches for picture in studio.draw_batch(batch)]


def measured(pipe: Any, name: str, word: str, sprites: Path) -> Known:
    """One concept of a class."""
    extract, studio, images = FeatureExtractor(), Studio(pipe), pictures_of(name, sprites)
    features, others = extract(images), ~torch.eye(len(images), dtype=torch.bool)
    of_class, own = (float((extract(drawn(studio, one)) @ features.T).mean()) for one in (word, name))
    return Known(of_class, own, through_autoencoder(pipe, images), float((features @ features.T)[others].mean()))


def overall(found: Mapping[str, Known]) -> str:
    """The last line of the table: of all of them."""
    ways = [
        sum(getattr(one, what) - one.of_class for one in found.values())
        / sum(one.pictures - one.of_class for one in found.values())
        for what in ("drawn", "decoded")
    ]
    return f"| all | | | | {ways[0]:.0%} | {ways[1]:.0%} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sprites", type=Path, default=Path(".work/base/sprites.zip"))
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--names", nargs="+", choices=KNOWN, default=list(KNOWN))
    asked = parser.parse_args()
    if not asked.sprites.is_file():
        parser.error(f"no {asked.sprites}; tools/base/fetch.py makes it")
    pipe, found = load_base(asked.base), {}
    print("| concept (class) | class | drawn | pictures | of the way | once through the autoencoder |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in asked.names:
        found[name] = measured(pipe, name, KNOWN[name], asked.sprites)
        print(found[name].row(name, KNOWN[name]), flush=True)
    print(overall(found))


if __name__ == "__main__":
    main()
