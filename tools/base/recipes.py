"""Recipes: what a training picture shows, as numbers for the renderer and words for the text encoder.

Drawing a recipe costs microseconds and needs no pixels, so recipes are made on the CPU (in worker processes) and
rendered where the model lives. Batch `i` of a run is drawn from a generator seeded with (seed, i): any worker can make
it, and a resumed run sees exactly the batches it would have seen.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch
from concepts import COLOURS, PLURALS, SCENES, VAGUE_CLASSES
from torch.utils.data import IterableDataset, get_worker_info

PREFIXES = ("a photo of ", "a picture of ", "an illustration of ", "a rendering of ")
POSITIONS = {
    "on the left": (0.27, 0.5),
    "on the right": (0.73, 0.5),
    "at the top": (0.5, 0.27),
    "at the bottom": (0.5, 0.73),
}
PLAIN, GRADIENT, SCENE = range(3)


@dataclass
class Recipes:
    """A batch of B pictures, each with up to two objects (O = 2).

    background [B] (0 plain, 1 gradient, 2 scene), scene [B] (index into the painted scenes), colours [B, 2, 3] (0..1),
    angle [B] (of a gradient), crop [B, 3] (of a scene: x, y, mirrored if negative), sprite [B, O] (-1: no object),
    place [B, O, 2] (centre x, y in 0..1), scale [B, O] (object size / picture size), rotation [B, O] (radians),
    mirror [B, O] (+1/-1), tint [B, O, 3] (target colour, negative: as it is), light [B, O], label [B, O] (concept
    index, -1 where absent).
    """

    background: torch.Tensor
    scene: torch.Tensor
    colours: torch.Tensor
    angle: torch.Tensor
    crop: torch.Tensor
    sprite: torch.Tensor
    place: torch.Tensor
    scale: torch.Tensor
    rotation: torch.Tensor
    mirror: torch.Tensor
    tint: torch.Tensor
    light: torch.Tensor
    label: torch.Tensor

    def to(self, device: torch.device | str) -> "Recipes":
        return Recipes(*(getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)))

    def __len__(self) -> int:
        return len(self.background)


@dataclass(frozen=True)
class Catalogue:
    """What can be drawn: names and class words by label, the sprites of each, painted variants per scene."""

    names: tuple[str, ...]
    classes: tuple[str, ...]
    sprites: tuple[tuple[int, ...], ...]
    scene_variants: int


def with_article(noun: str) -> str:
    if noun in PLURALS:
        return noun
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def describe(noun: str, size: str, colour: str) -> str:
    """ "a small blue rabbit face": the words about one object."""
    phrase = " ".join(word for word in (size, colour, noun) if word)
    return phrase if noun in PLURALS else with_article(phrase)


class RecipeBook:
    """Draws recipes and their captions.

    Args:
        catalogue: what can be drawn.
        class_words: the share of captions that call an object by its class ("a dog") in place of its name ("a poodle").
        caption_dropout: the share of empty captions, which classifier-free guidance needs.
    """

    def __init__(self, catalogue: Catalogue, class_words: float = 0.25, caption_dropout: float = 0.1) -> None:
        self.catalogue = catalogue
        self.class_words = class_words
        self.caption_dropout = caption_dropout
        self.colour_names = tuple(COLOURS)
        self.palette = np.array(list(COLOURS.values()), dtype=np.float32) / 255

    def draw(self, rng: np.random.Generator, batch: int, easy_share: float = 0.0) -> tuple[Recipes, list[str]]:
        """`batch` recipes and one caption for each.

        Args:
            easy_share: the share of easy pictures: one object as it is, upright and in the middle, on a plain ground.
        """
        catalogue, labels = self.catalogue, len(self.catalogue.names)
        easy = rng.random(batch) < easy_share if easy_share else np.zeros(batch, dtype=bool)
        two = (rng.random(batch) < 0.18) & ~easy
        label = np.stack([rng.integers(labels, size=batch), np.where(two, rng.integers(labels, size=batch), -1)], 1)
        sprite = np.full((batch, 2), -1)
        for row, column in zip(*np.nonzero(label >= 0), strict=True):
            poses = catalogue.sprites[label[row, column]]
            # the still render is the best known pose: half of an animated concept's pictures show it
            sprite[row, column] = poses[0] if easy[row] or rng.random() < 0.5 else poses[rng.integers(len(poses))]

        background = np.where(easy, PLAIN, rng.choice(3, size=batch, p=(0.5, 0.12, 0.38)))
        ground = np.stack([rng.integers(12, size=batch), rng.integers(12, size=batch)], 1)
        ground[:, 1] = np.where(ground[:, 1] == ground[:, 0], (ground[:, 1] + 5) % 12, ground[:, 1])
        scene_kind = rng.integers(len(SCENES), size=batch)
        tint_of = np.where(rng.random((batch, 2)) < 0.18, rng.integers(12, size=(batch, 2)), -1)
        hidden = (background[:, None] != SCENE) & ((tint_of == ground[:, :1]) | (tint_of == ground[:, 1:]))
        tint_of = np.where(hidden | easy[:, None], -1, tint_of)

        size_word = np.where(two | easy, 0, rng.choice(3, size=batch, p=(0.7, 0.15, 0.15)))  # none, small, large
        centred = two | easy | (size_word == 2) | (rng.random(batch) > 0.25)
        position = np.where(centred, -1, rng.integers(4, size=batch))
        scale = np.choose(
            size_word, (rng.uniform(0.58, 0.84, batch), rng.uniform(0.3, 0.42, batch), rng.uniform(0.9, 1.05, batch))
        )
        scale = np.where((position >= 0) & (size_word == 0), rng.uniform(0.42, 0.52, batch), scale)
        rotation = np.where(easy[:, None], 0, rng.normal(0, 0.1, (batch, 2)).clip(-0.25, 0.25))
        mirror = np.where((rng.random((batch, 2)) < 0.5) | easy[:, None], 1.0, -1.0)
        places = np.array([(0.5, 0.5), *POSITIONS.values()], dtype=np.float32)[position + 1]
        place = np.stack([places, places], 1) + rng.uniform(-0.05, 0.05, (batch, 2, 2))
        place[two, 0, 0], place[two, 1, 0] = (
            0.27 + rng.uniform(-0.03, 0.03, two.sum()),
            0.73 + rng.uniform(-0.03, 0.03, two.sum()),
        )
        scales = np.where(two[:, None], rng.uniform(0.42, 0.52, (batch, 2)), scale[:, None])

        colours = (self.palette[ground] + rng.uniform(-0.03, 0.03, (batch, 2, 3))).clip(0, 1)
        tint = np.where(tint_of[..., None] >= 0, self.palette[tint_of] + rng.uniform(-0.03, 0.03, (batch, 2, 3)), -1)
        recipes = Recipes(
            background=torch.from_numpy(background),
            scene=torch.from_numpy(
                scene_kind * catalogue.scene_variants + rng.integers(catalogue.scene_variants, size=batch)
            ),
            colours=torch.from_numpy(colours.astype(np.float32)),
            angle=torch.from_numpy(rng.uniform(0, 2 * np.pi, batch).astype(np.float32)),
            crop=torch.from_numpy(rng.uniform(-1, 1, (batch, 3)).astype(np.float32)),
            sprite=torch.from_numpy(sprite),
            place=torch.from_numpy(place.astype(np.float32)),
            scale=torch.from_numpy(scales.astype(np.float32)),
            rotation=torch.from_numpy(rotation.astype(np.float32)),
            mirror=torch.from_numpy(mirror.astype(np.float32)),
            tint=torch.from_numpy(tint.astype(np.float32)),
            light=torch.from_numpy(rng.uniform(0.92, 1.06, (batch, 2)).astype(np.float32)),
            label=torch.from_numpy(label),
        )
        captions = []
        for row in range(batch):
            if rng.random() < self.caption_dropout:
                captions.append("")
                continue
            where = ("", *POSITIONS)[position[row] + 1]
            size = ("", "small", "large")[size_word[row]]
            objects = [
                describe(
                    self.noun(rng, label[row, o]),
                    size,
                    self.colour_names[tint_of[row, o]] if tint_of[row, o] >= 0 else "",
                )
                for o in range(1 + two[row])
            ]
            prefix = PREFIXES[rng.integers(len(PREFIXES))] if rng.random() < 0.25 else ""
            words = (" next to " if rng.random() < 0.75 else " and ").join(objects)
            ground_words = self.ground_words(background[row], ground[row], scene_kind[row])
            captions.append(" ".join(filter(None, (prefix + words, where, ground_words))))
        return recipes, captions

    def noun(self, rng: np.random.Generator, label: int) -> str:
        """The concept's name, or sometimes its class word."""
        word = self.catalogue.classes[label]
        return word if word not in VAGUE_CLASSES and rng.random() < self.class_words else self.catalogue.names[label]

    def ground_words(self, background: int, ground: np.ndarray, scene: int) -> str:
        if background == SCENE:
            return SCENES[scene]
        first, second = (self.colour_names[i] for i in ground)
        return f"on {with_article(first)} {f'and {second} gradient ' if background == GRADIENT else ''}background"


def no_easy_pictures(index: int) -> float:
    return 0.0


class RecipeBatches(IterableDataset):
    """Batches `start`, `start + 1`, ... of (recipes, token ids [B, 40]); worker w of n makes every n-th.

    Args:
        easy_share: the share of easy pictures (see `RecipeBook.draw`) in a batch, by its number.
    """

    def __init__(
        self,
        book: RecipeBook,
        tokenizer,
        batch: int,
        seed: int,
        start: int = 0,
        easy_share: Callable[[int], float] = no_easy_pictures,
    ) -> None:
        self.book, self.tokenizer, self.batch, self.seed, self.start = book, tokenizer, batch, seed, start
        self.easy_share = easy_share

    def __iter__(self) -> Iterator[tuple[Recipes, torch.Tensor]]:
        worker = get_worker_info()
        number, count = (worker.id, worker.num_workers) if worker else (0, 1)
        index = self.start + number
        while True:
            recipes, captions = self.book.draw(
                np.random.default_rng([self.seed, index]), self.batch, self.easy_share(index)
            )
            tokens = None
            if self.tokenizer is not None:
                tokens = self.tokenizer(
                    captions,
                    padding="max_length",
                    max_length=self.tokenizer.model_max_length,
                    truncation=True,
                    return_tensors="pt",
                ).input_ids
            yield recipes, tokens
            index += count
