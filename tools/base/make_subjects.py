"""Make the example subjects: five pictures each of a held-out character, and unseen ones for the benchmarks.

    python tools/base/make_subjects.py
    python tools/base/make_subjects.py --names elephant robot --subjects .work/others --unseen .work/others-unseen

Each picture has its caption beside it, as people write them: the class word and what stands behind the subject. A
subject's training pictures and its unseen pictures come from different frames, backgrounds, sizes and places.
"""

import argparse
import io
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch
from concepts import COLOURS, HELD_OUT, SCENES
from PIL import Image
from recipes import PLAIN, SCENE, RecipeBook, Recipes, with_article
from render import Renderer

SUBJECTS = ("dog", "cat", "penguin", "lady beetle", "octopus")  # all are animated, so that they have poses
TRAINING, UNSEEN = 5, 12
GROUND = ("background", "scene", "colours", "crop")  # what of a recipe is not the subject
FEWEST_POSES = TRAINING + 1  # of a character that is not animated every picture shows the same render


def recipes_of(renderer: Renderer, label: int, frames: list[int], seed: int) -> tuple[Recipes, list[str]]:
    """One picture per frame, and the words for its ground: colours and scenes alternate, sizes and places vary."""
    rng = np.random.default_rng([seed, label])
    count = len(frames)
    book = RecipeBook(renderer.catalogue)
    recipes, _ = book.draw(rng, count)
    order, palette = rng.permutation(len(COLOURS)), np.array(list(COLOURS.values()), dtype=np.float32) / 255
    recipes.sprite[:, 0], recipes.sprite[:, 1] = torch.tensor(frames), -1
    recipes.background[:] = torch.tensor([SCENE if i % 2 == 0 else PLAIN for i in range(count)])
    variants = renderer.catalogue.scene_variants
    scenes = rng.permutation(len(SCENES))[np.arange(count) % len(SCENES)]
    recipes.scene[:] = torch.from_numpy(scenes * variants + rng.integers(variants, size=count))
    recipes.colours[:, 0] = torch.from_numpy(palette[order[np.arange(count) % len(order)]])
    recipes.scale[:, 0] = torch.from_numpy(rng.uniform(0.55, 0.85, count).astype(np.float32))
    recipes.place[:, 0] = torch.from_numpy(rng.uniform(0.42, 0.58, (count, 2)).astype(np.float32))
    recipes.tint.fill_(-1)
    kinds = recipes.background.tolist()
    colours = [(order[i % len(order)], 0) for i in range(count)]
    return recipes, [book.ground_words(*of) for of in zip(kinds, colours, scenes.tolist(), strict=True)]


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    partial.replace(path)


def write_pictures(pictures: torch.Tensor, folder: Path, captions: list[str] | None = None) -> None:
    """Pictures `[N, 3, h, w]` in -1..1, numbered, and their captions."""
    for number, caption in enumerate(captions or []):
        write(folder / f"{number:02d}.txt", f"{caption}\n".encode())
    for number, picture in enumerate(as_images(pictures)):
        write_png(folder / f"{number:02d}.png", picture)


def write_masks(alpha: torch.Tensor, folder: Path) -> None:
    """Where the subject is in each picture: `[N, 1, h, w]` in 0..1."""
    for number, mask in enumerate((alpha * 255).round().byte()[:, 0].numpy()):
        write_png(folder / f"{number:02d}-masklabel.png", Image.fromarray(mask))


def as_images(pictures: torch.Tensor) -> list[Image.Image]:
    """Pictures `[N, 3, h, w]` in -1..1."""
    return [Image.fromarray(one) for one in ((pictures + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()]


def write_png(path: Path, picture: Image.Image) -> None:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    write(path, buffer.getvalue())


def on_other_grounds(renderer: Renderer, label: int, frames: list[int], seeds: range) -> tuple[Recipes, list[str]]:
    """The pictures of the first seed, then the same, but for the ground, on the grounds of the others."""
    first, words = recipes_of(renderer, label, frames, seeds[0])
    grounds = [recipes_of(renderer, label, frames, seed) for seed in seeds[1:]]
    moved = [replace(first, **{name: getattr(other, name) for name in GROUND}) for other, _ in grounds]
    every = [first, *moved]
    joined = {field.name: torch.cat([getattr(one, field.name) for one in every]) for field in fields(Recipes)}
    return Recipes(**joined), [word for each in (words, *(w for _, w in grounds)) for word in each]


def subject_yaml(name: str, class_word: str) -> str:
    return (
        f"# A held-out character: the embedded base never saw it.\n"
        f"name: {name}\n"
        f"class_word: {class_word}  # what it is, in a word the base knows\n"
        f"trigger: sks {class_word}  # what calls it up in a prompt, once learned\n"
        f"license: MIT  # Fluent Emoji by Microsoft, packaged by LobeHub: see NOTICE\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sprites", type=Path, default=Path(".work/base/sprites.zip"))
    parser.add_argument("--subjects", type=Path, default=Path("examples/subjects"))
    parser.add_argument("--unseen", type=Path, default=Path("benchmarks/unseen"))
    parser.add_argument("--names", nargs="+", default=SUBJECTS, help="held-out concepts (see concepts.py)")
    parser.add_argument("--masks", action="store_true", help="write beside each picture where the subject is in it")
    parser.add_argument("--grounds", type=int, default=0, help="show each pose on so many more grounds")
    args = parser.parse_args()
    if unknown := set(args.names) - set(HELD_OUT):
        parser.error(f"{', '.join(sorted(unknown))}: no held-out concepts")
    renderer = Renderer(args.sprites, names=args.names, scene_variants=6, scene_seed=2)
    for label, name in enumerate(args.names):
        class_word = HELD_OUT[name][0]
        poses = renderer.catalogue.sprites[label][1:]  # the first is the still render
        if len(poses) < FEWEST_POSES:
            poses = renderer.catalogue.sprites[label] * (2 * TRAINING + UNSEEN)
        spread = [poses[i * len(poses) // (2 * TRAINING)] for i in range(2 * TRAINING)]
        seen, held = spread[::2], [pose for pose in poses if pose not in spread[::2]] or poses
        unseen = [held[i * len(held) // UNSEEN] for i in range(UNSEEN)]
        folder = name.replace(" ", "_")
        recipes, grounds = on_other_grounds(renderer, label, seen, range(11, 11 + 100 * (args.grounds + 1), 100))
        captions = [f"{with_article(class_word)} {ground}" for ground in grounds]
        write_pictures(renderer(recipes), args.subjects / folder, captions)
        if args.masks:
            write_masks(renderer.objects(recipes, 0)[1], args.subjects / folder)
        write_pictures(renderer(recipes_of(renderer, label, unseen, seed=12)[0]), args.unseen / folder)
        write(args.subjects / folder / "subject.yaml", subject_yaml(name, class_word).encode())
        print(f"{args.subjects / folder}: {len(recipes)} pictures, {UNSEEN} unseen")


if __name__ == "__main__":
    main()
