"""A small vision transformer that has learned printed letters, and the handwritten digits that it is moved to.

Letters are drawn from the fonts that come with matplotlib, turned, sheared and blurred. The digits are a part of the
UCI data set "Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak), real handwriting of 13 people.

Legend: N pictures; all are `[N, 1, 16, 16]`, ink 1 on paper 0.
"""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import ViTConfig, ViTForImageClassification

from coeff_diffusion.method.sites import Site
from coeff_diffusion.method.traced_sites import trace_sites

DIGITS = Path(__file__).parent / "digits.csv.gz"
LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZabdefghijkmnqrty"  # none that is a digit, or another letter in small
FONTS = [  # of matplotlib
    *(f"DejaVu{kind}" for kind in ("Sans", "Sans-Bold", "Sans-Oblique", "SansMono", "Serif", "Serif-Bold")),
    *(
        "DejaVuSerif-Italic",
        "STIXGeneral",
        "STIXGeneralBol",
        "STIXGeneralItalic",
        "cmr10",
        "cmss10",
        "cmti10",
        "cmtt10",
    ),
]
SIDE, CANVAS = 16, 64


def network(labels: int) -> ViTForImageClassification:
    """A vision transformer of 4 layers of 8 heads, not trained; every layer has 64 coefficients."""
    return ViTForImageClassification(
        ViTConfig(  # type: ignore[call-arg]  # its labels are an argument of what it derives from
            hidden_size=64,
            num_hidden_layers=4,
            num_attention_heads=8,
            intermediate_size=256,
            image_size=SIDE,
            patch_size=4,
            num_channels=1,
            num_labels=labels,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )


def sites(model: Any) -> dict[str, Site]:
    """Its attention layers."""
    return trace_sites(model, lambda: model(pixel_values=torch.zeros(1, 1, SIDE, SIDE)))


def letters(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Printed letters: pictures, and labels `[N]`."""
    from matplotlib import get_data_path

    folder = Path(get_data_path()) / "fonts" / "ttf"
    fonts = [ImageFont.truetype(str(folder / f"{name}.ttf"), 40) for name in FONTS]
    random = np.random.default_rng(seed)
    labels = random.integers(len(LETTERS), size=count)
    drawn = [_letter(LETTERS[label], fonts[random.integers(len(fonts))], random) for label in labels]
    return torch.stack(drawn), torch.from_numpy(labels)


def _letter(letter: str, font: ImageFont.FreeTypeFont, random: np.random.Generator) -> Tensor:
    canvas = Image.new("L", (CANVAS, CANVAS))
    ImageDraw.Draw(canvas).text((CANVAS / 2, CANVAS / 2), letter, 255, font, anchor="mm")
    canvas = canvas.rotate(random.normal(0, 10), Image.Resampling.BILINEAR)
    shear = random.normal(0, 0.15)
    skewed = (1, shear, -shear * CANVAS / 2, 0, 1, 0)
    canvas = canvas.transform(canvas.size, Image.Transform.AFFINE, skewed, Image.Resampling.BILINEAR)
    if random.random() < 0.5:
        canvas = canvas.filter(ImageFilter.MaxFilter(3))
    box = canvas.getbbox() or (0, 0, CANVAS, CANVAS)
    ink = canvas.crop(box).resize((8, 8), Image.Resampling.BOX)  # as coarse as the digits
    return _scaled(torch.from_numpy(np.asarray(ink, dtype=np.float32) / 255)[None, None])[0]


def _scaled(pictures: Tensor) -> Tensor:
    return F.interpolate(pictures, (SIDE, SIDE), mode="bilinear", align_corners=False)


def digits() -> tuple[Tensor, Tensor]:
    """All 1,797 handwritten digits: pictures, and labels `[N]`."""
    with gzip.open(DIGITS) as file:
        rows = np.loadtxt(file, delimiter=",", dtype=np.float32)
    pictures = torch.from_numpy(rows[:, :64].reshape(-1, 1, 8, 8) / 16)
    return _scaled(pictures), torch.from_numpy(rows[:, 64]).long()


def pretrained(folder: Path, steps: int) -> dict[str, Tensor]:
    """The weights of `network` after training on letters, kept in `folder`."""
    file = folder / f"letters-{steps}.safetensors"
    if not file.is_file():
        torch.manual_seed(0)
        model, (pictures, labels) = network(len(LETTERS)), letters(20_000, seed=0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
        for _ in range(steps):
            rows = torch.randint(len(labels), (64,))
            optimizer.zero_grad()
            F.cross_entropy(model(pixel_values=pictures[rows]).logits, labels[rows]).backward()
            optimizer.step()
            schedule.step()
        print(f"printed letters: {accuracy(model, *letters(2_000, seed=1)):.1%} of unseen ones right", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), file)
    return load_file(file)


@torch.no_grad()
def accuracy(model: Any, pictures: Tensor, labels: Tensor) -> float:
    """The share of pictures that are told apart rightly."""
    model.eval()
    found = [model(pixel_values=part).logits.argmax(-1) for part in pictures.split(256)]
    return float((torch.cat(found) == labels).float().mean())
