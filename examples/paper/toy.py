"""Attention stays inside the convex hull of its values; recombined attention does not.

    python examples/paper/toy.py        # seconds; prints the numbers, draws docs/images/paper-toy.svg

One attention layer of four heads on eight tokens; each head's values are eight points of a plane. Its outputs are to
reach points outside of their hull. Softmax weights are positive and sum to one, so that no query and no key can.

Legend: H heads, N tokens, C channels of a query.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from runs import table
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from coeff_diffusion.cli import guarded, parse
from coeff_diffusion.method.attachment import attach_heads, trainable_parameters
from coeff_diffusion.method.traced_sites import trace_sites

HEADS, TOKENS, CHANNELS = 4, 8, 16
WAYS = {
    "nothing": "nothing",
    "query, key": "queries and keys",
    "coefficients": "coefficients (16 values)",
    "both": "both",
}
DIRECTIONS = 1440  # of which a hull is known exactly


@dataclass(frozen=True)
class Settings:
    """Fit one attention layer to points outside the convex hull of its values."""

    steps: int = 1000
    """Updates of each fit."""
    seed: int = 0
    """Decides values, targets and the start."""
    figure: str = "docs/images/paper-toy.svg"
    """The drawing to write; empty for none."""


class Layer(nn.Module):
    """`[N, C]` -> `[H, N, 2]`: what each head makes of each token, before any output projection."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k = (nn.Linear(CHANNELS, HEADS * CHANNELS, bias=False) for _ in range(2))
        self.values = nn.Parameter(torch.randn(HEADS, TOKENS, 2))

    def forward(self, tokens: Tensor) -> Tensor:
        query, key = (
            project(tokens).view(1, TOKENS, HEADS, CHANNELS).transpose(1, 2) for project in (self.to_q, self.to_k)
        )
        return scaled_dot_product_attention(query, key, self.values[None])[0]


def outside(points: Tensor, values: Tensor) -> Tensor:
    """How far points `[H, N, 2]` are from the convex hull of the values `[H, N, 2]`, `[H, N]`; inside of it 0.

    A point is outside by as much as it is beyond all values in any one direction.
    """
    angles = torch.arange(DIRECTIONS) * (2 * torch.pi / DIRECTIONS)
    directions = torch.stack([angles.cos(), angles.sin()])  # [2, directions]
    edge = (values @ directions).amax(1, keepdim=True)  # [H, 1, directions]
    return (points @ directions - edge).amax(-1).clamp(min=0)


def targets(values: Tensor) -> Tensor:
    """For each head and token a point outside: in the direction of a value, a fifth further than the furthest one."""
    away = values - values.mean(1, keepdim=True)
    reach = away.norm(dim=-1, keepdim=True)
    return values.mean(1, keepdim=True) + away / reach * reach.amax(1, keepdim=True) * 1.2


def fitted(way: str, settings: Settings) -> dict[str, Tensor]:
    """The outputs after fitting in one of `WAYS`, with the values and the targets."""
    torch.manual_seed(settings.seed)
    layer, tokens = Layer(), torch.randn(TOKENS, CHANNELS)
    values = layer.values.detach()
    goal = targets(values)
    layer.requires_grad_(False)
    learning: list[dict[str, Any]] = []
    if way in ("query, key", "both"):
        weights = [layer.to_q.weight.requires_grad_(True), layer.to_k.weight.requires_grad_(True)]
        learning.append({"params": weights, "lr": 2e-2})
    if way in ("coefficients", "both"):
        attach_heads(layer, trace_sites(layer, lambda: layer(tokens)))
        learning.append({"params": list(trainable_parameters(layer).values()), "lr": 2e-2})
    if learning:
        optimizer = torch.optim.Adam(learning)
        for _ in range(settings.steps):
            optimizer.zero_grad()
            (layer(tokens) - goal).square().sum(-1).mean().backward()
            optimizer.step()
    return {"outputs": layer(tokens).detach(), "values": values, "targets": goal}


def figures(found: dict[str, Tensor]) -> tuple[float, float]:
    """Mean distance to the targets, and how far the outermost output is outside of its hull."""
    distance = (found["outputs"] - found["targets"]).norm(dim=-1).mean()
    return float(distance), float(outside(found["outputs"], found["values"]).max())


def draw(found: dict[str, dict[str, Tensor]], path: Path) -> None:
    """One panel for each head: hull, targets, and where two of the ways end."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "paper-toy"  # the same drawing, the same bytes
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, HEADS, figsize=(3 * HEADS, 3.3))
    for head, panel in enumerate(panels):
        values, goal = (found["nothing"][name][head] for name in ("values", "targets"))
        panel.fill(*_hull(values).T, color="#e8e8e8", zorder=0)
        panel.plot(*values.T, "o", color="#888888", markersize=4, label="values and their hull")
        panel.plot(*goal.T, "*", color="#d4a017", markersize=10, label="targets")
        panel.plot(*found["query, key"]["outputs"][head].T, "x", color="#c0392b", label="queries and keys tuned")
        panel.plot(*found["both"]["outputs"][head].T, "+", color="#1f6fb2", markersize=9, label="coefficients as well")
        panel.set_title(f"head {head + 1}", fontsize=10)
        panel.set_aspect("equal")
        panel.set_xticks([])
        panel.set_yticks([])
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=4, frameon=False)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _hull(points: Tensor) -> Tensor:
    """The corners of the hull of points `[N, 2]`, in order around their middle."""
    angles = torch.arange(DIRECTIONS) * (2 * torch.pi / DIRECTIONS)
    corners = points[(points @ torch.stack([angles.cos(), angles.sin()])).argmax(0).unique()]
    around = corners - corners.mean(0)
    return corners[torch.atan2(around[:, 1], around[:, 0]).argsort()]


def main(arguments: list[str]) -> int:
    settings = parse("toy", Settings, arguments)
    torch.set_num_threads(1)  # the layer is far too small for more
    found = {way: fitted(way, settings) for way in WAYS}
    rows = [(label, *figures(found[way])) for way, label in WAYS.items()]
    lines = [[label, f"{distance:.3f}", f"{beyond:.3f}"] for label, distance, beyond in rows]
    print(table(["tuned", "mean distance to the targets", "outermost output beyond its hull"], lines))
    if settings.figure:
        draw(found, Path(settings.figure))
    return 0


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))
