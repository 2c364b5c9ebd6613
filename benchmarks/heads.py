"""Which heads of a subject matter: what is lost where one is switched off.

    coeff-diffusion train --instance_data_dir examples/subjects/cat --trigger "sks cat" --class_word cat \\
        --train coefficients --layers all --output_dir outputs/alone
    python benchmarks/heads.py outputs/alone cat     # its folder of `benchmarks/unseen`; goes on where it was stopped
    python benchmarks/heads.py                       # the cat that ships with the embedded base

Off as a receiver: the head's row of the coefficients is zero, so that it uses the base's own map again. Off as a
source: its column is zero, so that nobody gets more or less of its map than in the base.

The loss is that of denoising pictures that no training saw, at five noise levels. How much it would rise without a head
is estimated for all heads at once, as what the coefficients times their gradients sum up to in its row or column. For
some heads it is measured, too: they are really switched off, those of the highest estimates and others from all over
the ranks, which tells how far the estimates hold. Of these heads pictures are drawn: pixels are how far they are from
those of the whole subject, from the same noise (root mean square, 0..255).
"""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from strength import GROUNDS, LEVELS, UNSEEN, losses
from torch import Tensor

from coeff_diffusion import Coefficients, activate, load_base, load_coefficients, unload_coefficients
from coeff_diffusion.base import ready_cards
from coeff_diffusion.inference.request import DrawRequest
from coeff_diffusion.inference.studio import Studio
from coeff_diffusion.service.charts import render, titles
from coeff_diffusion.sources.image_card import extract
from coeff_diffusion.subject.heads import head_changes, without_head
from coeff_diffusion.training.latents import encode_pictures
from coeff_diffusion.training.model import training_resolution
from coeff_diffusion.training.picture_folder import find_pictures
from coeff_diffusion.training.views import PictureViews

SHIPPED = "cat"
FIRST = 8  # of the highest estimates, which are measured in any case
DRAWN = 2  # pictures
Figures = dict[str, Any]
Pixels = np.ndarray[Any, np.dtype[np.float32]]


class Head(NamedTuple):
    """What is known of a head without switching it off.

    Attributes:
        number: from 0.
        norm: how much the subject changes its map.
        receiver, source: how much the loss would rise without it, by the gradients.
    """

    path: str
    number: int
    title: str
    norm: float
    receiver: float
    source: float

    @property
    def off(self) -> str:
        return f"{self.path}:{self.number + 1}"


class Measure:
    """Losses and pictures of a subject and of what is left of it.

    Args:
        folder: pictures of the subject that no training saw.
    """

    def __init__(self, pipe: Any, subject: Coefficients, folder: Path) -> None:
        self.pipe, self.subject, self.studio = pipe, subject, Studio(pipe)
        self.prompt = f"a {subject.info.trigger}"
        views = PictureViews(find_pictures(folder).pictures, training_resolution(None, pipe), True, False, 1, 0)
        self.latents = encode_pictures(pipe.vae, views).largest()[0].first_views()

    def heads(self) -> list[Head]:
        """All heads, in the order the data flows."""
        leaves = {path: coeff.clone().requires_grad_() for path, coeff in self.subject.items()}
        name = load_coefficients(self.pipe, self.subject, name="subject")
        # In place of what acts by now; the words and whatever else was learned go on acting.
        handle = self.pipe.unet.register_forward_pre_hook(lambda unet, inputs: activate(unet, leaves))
        for level in LEVELS:  # one after the other: a graph of them all would take five times the memory
            (losses(self.pipe, self.prompt, self.latents, (level,)).mean() / len(LEVELS)).backward()
        handle.remove()
        unload_coefficients(self.pipe, name)
        return [
            Head(path, number, title, norm, receiver, source)
            for path, title in titles(list(leaves)).items()
            for number, (norm, receiver, source) in enumerate(_estimates(leaves[path]))
        ]

    @torch.no_grad()
    def losses(self, subject: Coefficients) -> list[float]:
        """Of each picture."""
        name = load_coefficients(self.pipe, subject, name="subject")
        found = losses(self.pipe, self.prompt, self.latents).mean(0)
        unload_coefficients(self.pipe, name)
        return [round(value, 6) for value in found.tolist()]

    def pictures(self, subject: Coefficients) -> Pixels:
        """One on each ground, `[DRAWN, height, width, 3]`."""
        name = self.studio.load(subject, name="subject")
        asked = [DrawRequest(f"{self.prompt} {ground}", subjects={name: 1.0}, seed=0) for ground in GROUNDS[:DRAWN]]
        pictures = [np.asarray(one.image, dtype=np.float32) for one in self.studio.draw_batch(asked)]
        self.studio.unload(name)
        return np.stack(pictures)


def _estimates(coeff: Tensor) -> list[tuple[float, float, float]]:
    """Of each head of a layer: the change of its map, and the rises of the loss."""
    assert coeff.grad is not None
    products, changes = -(coeff.grad * coeff).detach(), head_changes(coeff.detach())  # [H, H], [H]
    return list(zip(changes.tolist(), products.sum(1).tolist(), products.sum(0).tolist(), strict=True))


def chosen(heads: Sequence[Head], count: int) -> list[Head]:
    """Those of the highest estimates, and others evenly from all the ranks below."""
    ranked = sorted(heads, key=lambda head: head.receiver, reverse=True)
    first, rest = ranked[: min(FIRST, count)], ranked[min(FIRST, count) :]
    return first + [rest[round(i)] for i in np.linspace(0, len(rest) - 1, min(count - len(first), len(rest)))]


def measured(measure: Measure, heads: Sequence[Head], file: Path) -> dict[str, Figures]:
    """The figures of the whole subject, without any coefficients, and without each head; by what is off.

    Args:
        file: holds a line for each, so that what is there is not measured again.
    """
    lines = map(json.loads, file.read_text(encoding="utf-8").splitlines()) if file.is_file() else ()
    found: dict[str, Figures] = {line["off"]: line["figures"] for line in lines}

    def get(off: str, compute: Callable[[], Figures]) -> None:
        if off not in found:
            found[off] = compute()
            with file.open("a", encoding="utf-8") as out:
                out.write(json.dumps({"off": off, "figures": found[off]}) + "\n")
            print(f"off: {off}", flush=True)

    subject = measure.subject
    base = subject.replace(coeffs={path: torch.zeros_like(coeff) for path, coeff in subject.items()})
    get("nothing", lambda: {"losses": measure.losses(subject)})
    get("all", lambda: {"losses": measure.losses(base)})
    whole = measure.pictures(subject)

    def of_head(head: Head) -> Figures:
        rest = without_head(subject, head.path, head.number)
        pixels = float(np.sqrt(np.square(measure.pictures(rest) - whole).mean()))
        return {"losses": measure.losses(rest), "pixels": round(pixels, 3)}

    for head in heads:
        get(head.off, partial(of_head, head))
    return found


def rise(found: dict[str, Figures], off: str) -> tuple[float, float]:
    """How much the loss rises, and the error of that mean over the pictures."""
    rises = np.subtract(found[off]["losses"], found["nothing"]["losses"])
    return float(rises.mean()), float(rises.std(ddof=1) / math.sqrt(len(rises)))


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's, for values without ties."""
    ranks = np.argsort(np.argsort(np.array([first, second])))
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def report(heads: Sequence[Head], looked_at: Sequence[Head], found: dict[str, Figures]) -> str:
    """The heads that were switched off, and how far the estimates can be trusted."""
    lines = ["| head | its change of the map | estimate | measured | as a source | pixels |", "| --- " * 6 + "|"]
    for head in sorted(looked_at, key=lambda one: -rise(found, one.off)[0]):
        loss, error = rise(found, head.off)
        lines.append(
            f"| {head.title}, {head.number + 1} | {head.norm:.2f} | {1e4 * head.receiver:+.1f} | {1e4 * loss:+.1f} ± "
            f"{1e4 * error:.1f} | {1e4 * head.source:+.1f} | {found[head.off]['pixels']:.1f} |"
        )
    measures = [rise(found, head.off)[0] for head in looked_at]
    pixels = [found[head.off]["pixels"] for head in looked_at]
    estimates, norms = [head.receiver for head in looked_at], [head.norm for head in looked_at]
    slope = float(np.dot(estimates, measures) / np.dot(estimates, estimates))
    correlation = float(np.corrcoef(estimates, measures)[0, 1])
    ranks = {
        "estimate and measured": (estimates, measures),
        "its change of the map and measured": (norms, measures),
        "its change of the map and pixels": (norms, pixels),
        "measured and pixels": (measures, pixels),
    }
    said = ", ".join(f"{what} {rank_correlation(*both):.2f}" for what, both in ranks.items())
    estimated = sorted((1e4 * head.receiver for head in heads), reverse=True)
    positive = sum(one for one in estimated if one > 0)
    half = next(n for n in range(1, len(heads) + 1) if sum(estimated[:n]) >= positive / 2)
    return "\n".join(
        [
            *lines,
            "\nLosses in 1/10,000.",
            f"Without any coefficients: {1e4 * rise(found, 'all')[0]:+.1f}. All {len(heads)} estimates together: "
            f"{sum(estimated):+.1f}; {half} heads have half of what is above zero, "
            f"{sum(one < 0 for one in estimated)} are below.",
            f"Measured is {slope:.2f} of the estimate (least squares), with a correlation of {correlation:.2f}.",
            f"Rank correlations of the {len(looked_at)} heads: {said}.",
        ]
    )


def heat_map(heads: Sequence[Head]) -> Image.Image:
    """Layers down, heads across, a panel for each of what is known of all heads."""
    panels = {
        "norm": ("change of the head's map", "viridis", "norm of its row"),
        "receiver": ("off as a receiver", "RdBu_r", "estimated rise of the loss, 1/10,000"),
        "source": ("off as a source", "RdBu_r", "estimated rise of the loss, 1/10,000"),
    }
    named = titles(list(dict.fromkeys(head.path for head in heads)))
    most = 1 + max(head.number for head in heads)
    figure = Figure(figsize=(9.0, 1.4 + 0.22 * len(named)), layout="constrained", facecolor="white")
    for panel, (what, (title, colours, label)) in zip(figure.subplots(1, 3, sharey=True), panels.items(), strict=True):
        values = np.full((len(named), most), np.nan)
        for head in heads:
            scale = 1 if what == "norm" else 1e4
            values[list(named).index(head.path), head.number] = scale * getattr(head, what)
        limit = float(np.nanmax(np.abs(values)))
        low = 0.0 if what == "norm" else -limit
        shown = panel.imshow(values, cmap=colours, vmin=low, vmax=limit, aspect="auto")
        panel.set_title(title, fontsize=9)
        panel.set_xticks(range(most), [str(number + 1) for number in range(most)], fontsize=8)
        panel.set_yticks(range(len(named)), list(named.values()), fontsize=8)
        panel.set_xlabel("head", fontsize=8)
        bar = figure.colorbar(shown, ax=panel, location="bottom", aspect=30, pad=0.02)
        bar.set_label(label, fontsize=8)
        bar.ax.tick_params(labelsize=7)
    return render(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", nargs="?", help="a file, folder, card or Hub id of the embedded base")
    parser.add_argument("unseen", nargs="?", help="a folder of benchmarks/unseen")
    parser.add_argument("--measure", type=int, default=24, help="how many heads are really switched off")
    parser.add_argument("--output_dir", default="outputs/heads")
    parser.add_argument("--image", help="where the heat map goes; default: into output_dir")
    asked = parser.parse_args()
    if asked.subject and not asked.unseen:
        parser.error("name the folder of benchmarks/unseen that shows the same subject")
    if asked.measure < 2:
        parser.error(f"--measure is {asked.measure}, expected at least 2")
    if asked.subject:
        subject, folder = Coefficients.load(asked.subject), UNSEEN / asked.unseen
    else:
        card = next(card for card in ready_cards() if card.stem == SHIPPED)
        subject, folder = extract(card)[0], UNSEEN / SHIPPED
    output = Path(asked.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    measure = Measure(load_base(), subject, folder)
    heads = measure.heads()
    image = Path(asked.image or output / f"{subject.sha256[:12]}.png")
    heat_map(heads).save(image)
    print(f"the heat map is {image}", flush=True)
    looked_at = chosen(heads, asked.measure)
    print(report(heads, looked_at, measured(measure, looked_at, output / f"{subject.sha256[:12]}.jsonl")))


if __name__ == "__main__":
    main()
