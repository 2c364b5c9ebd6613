"""What is lost when a subject's file is made smaller: bytes against likeness.

The whole subject, its numbers in eight bits (`convert --dtype int8`), and its strongest layers (`convert --keep`).

    python benchmarks/pruning.py                          # the subjects that ship with the embedded base: five minutes
    python benchmarks/pruning.py mine.safetensors cat     # another, and its folder of `benchmarks/unseen`

Loss: of denoising pictures of the subject that no training saw, at five noise levels. Similarity: of eight drawn
pictures to those (ImageNet features, extra `eval`). Pixels: how far the drawn pictures are from those of the whole
subject, from the same noise (root mean square, 0..255).
"""

import argparse
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from features import FeatureExtractor
from PIL import Image
from strength import GROUNDS, UNSEEN, loss

from coeff_diffusion import Coefficients, load_base, load_coefficients, unload_coefficients
from coeff_diffusion.base import ready_cards
from coeff_diffusion.inference.request import DrawRequest
from coeff_diffusion.inference.studio import Studio
from coeff_diffusion.sources.image_card import extract
from coeff_diffusion.subject.errors import CoefficientsError
from coeff_diffusion.subject.pruning import keep_strongest
from coeff_diffusion.training.latents import encode_pictures
from coeff_diffusion.training.picture_folder import find_pictures
from coeff_diffusion.training.views import PictureViews

SHARES = (0.75, 0.5, 0.25, 0.1, 0.0)
SEEDS = 2


def drawn(pipe: Any, subject: Coefficients) -> list[Image.Image]:
    """The subject on each ground, with each seed."""
    studio, prompt = Studio(pipe), f"a {subject.info.trigger}"
    name = studio.load(subject, name="subject")
    requests = [
        DrawRequest(f"{prompt} {ground}", subjects={name: 1.0}, seed=seed)
        for ground in GROUNDS
        for seed in range(SEEDS)
    ]
    pictures = [one.image for one in studio.draw_batch(requests)]
    studio.unload(name)
    return pictures


def smaller(subject: Coefficients) -> Iterator[tuple[str, Coefficients, int]]:
    """What is compared: how it was made, the subject that is left, and the bytes of its file."""
    yield "100%", subject, len(subject.to_bytes())
    in_eight_bits = subject.to_bytes(torch.int8)
    yield "100%, int8", Coefficients.from_bytes(in_eight_bits), len(in_eight_bits)
    for share in SHARES:
        with suppress(CoefficientsError):  # of a subject without a word nothing may be left
            kept = keep_strongest(subject, share)
            yield f"{share:.0%}", kept, len(kept.to_bytes())


def rows(pipe: Any, subject: Coefficients, folder: Path, features: FeatureExtractor) -> list[str]:
    """The lines of a table, one for each smaller subject."""
    unseen = find_pictures(folder)
    views = PictureViews(unseen.pictures, 128, True, False, 1, 0)
    latents = encode_pictures(pipe.vae, views).largest()[0].first_views()
    own, lines, whole = features([Image.open(path) for path in unseen.paths]), [], None
    for made, kept, size in smaller(subject):
        name = load_coefficients(pipe, kept, name="subject")
        lost = loss(pipe, f"a {subject.info.trigger}", latents)
        unload_coefficients(pipe, name)
        pictures = drawn(pipe, kept)
        pixels = np.stack([np.asarray(picture, dtype=np.float32) for picture in pictures])
        whole = pixels if whole is None else whole
        away = float(np.sqrt(np.square(pixels - whole).mean()))
        alike = float((features(pictures) @ own.T).mean())
        lines.append(f"| {made} | {len(kept)} | {size:,} | {lost:.4f} | {alike:.3f} | {away:.1f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", nargs="?", help="a file, folder, card or Hub id of the embedded base")
    parser.add_argument("unseen", nargs="?", help="a folder of benchmarks/unseen")
    asked = parser.parse_args()
    if asked.subject and not asked.unseen:
        parser.error("name the folder of benchmarks/unseen that shows the same subject")
    subjects = {card.stem: extract(card)[0] for card in ready_cards()}
    if asked.subject:
        subjects = {asked.unseen: Coefficients.load(asked.subject)}
    pipe, features = load_base(), FeatureExtractor()
    for name, subject in subjects.items():
        print(f"\n{name}\n\n| kept | layers | bytes | loss | similarity | pixels |\n" + "| --- " * 6 + "|", flush=True)
        print("\n".join(rows(pipe, subject, UNSEEN / name, features)), flush=True)


if __name__ == "__main__":
    main()
