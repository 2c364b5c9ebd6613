"""One attention layer: recombined against plain attention, forward and training, in time and memory.

python benchmarks/attention.py
python benchmarks/attention.py --dtype bfloat16 --repeats 15
python benchmarks/attention.py --mask              # some keys of each sample are masked
python benchmarks/attention.py --interception      # what it costs to get in between, before anything is computed
"""

import argparse
from collections.abc import Callable

import torch
from diffusers.models.attention_processor import Attention
from timing import in_turns, machine, peak_memory
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from coeff_diffusion.method.interception import Call, Interceptor
from coeff_diffusion.method.kernels import recombined_attention
from coeff_diffusion.method.recombination import recombined_attention as naive_attention

# name: samples, heads, queries, keys, channels per head
LAYERS = {
    "SD 1.5 self, 64 x 64": (2, 8, 4096, 4096, 40),
    "SD 1.5 self, 32 x 32": (2, 8, 1024, 1024, 80),
    "SD 1.5 self, 16 x 16": (2, 8, 256, 256, 160),
    "SD 1.5 cross, 64 x 64": (2, 8, 4096, 77, 40),
    "SD 2.1 self, 64 x 64": (2, 5, 4096, 4096, 64),
    "SDXL self, 32 x 32": (2, 20, 1024, 1024, 64),
    "embedded base self, 8 x 8": (2, 8, 64, 64, 16),
}
SMALL, RUNS = 300, 50  # a layer of fewer queries than SMALL is computed RUNS times a turn: one run is too short to time


def measure(name: str, dtype: torch.dtype, repeats: int, naive: bool, masked: bool) -> None:
    """Print a row for one layer."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch, heads, queries, keys, channels = LAYERS[name]
    query, key, value = (
        torch.randn(batch, n, heads, channels, dtype=dtype, device=device).transpose(1, 2)
        for n in (queries, keys, keys)
    )
    coeff = 0.1 * torch.randn(heads, heads, device=device)
    mask = None
    if masked:
        mask = torch.where(torch.rand(batch, 1, 1, keys, device=device) < 0.3, -10_000.0, 0.0).to(dtype)
    ways: dict[str, Callable[..., Tensor]] = {
        "base": lambda q, k, v, c, mask: scaled_dot_product_attention(q, k, v, mask),
        "recombined": recombined_attention,
    }
    if naive:
        ways["naive"] = naive_attention

    def forward(way: Callable[..., Tensor]) -> Callable[[], object]:
        return lambda: way(query, key, value, coeff, mask)

    def train(way: Callable[..., Tensor]) -> Callable[[], object]:
        leaves = [x.detach().requires_grad_() for x in (query, key, value, coeff)]

        def run() -> None:
            output = way(*leaves, mask)
            torch.autograd.grad(output, leaves, torch.ones_like(output), allow_unused=True)

        return run

    runs = RUNS if queries < SMALL else 1

    def turn(run: Callable[[], object]) -> Callable[[], None]:
        def several() -> None:
            for _ in range(runs):
                run()

        return several

    cells = []
    for kind in (forward, train):
        with torch.set_grad_enabled(kind is train):
            found = in_turns({label: turn(kind(way)) for label, way in ways.items()}, repeats)
            for label, way in ways.items():
                with peak_memory() as used:
                    kind(way)()
                timing = found[label]
                cells.append(f"{1e3 * timing.median / runs:.1f} ms ({timing.ratio:.2f}x), {used[0]:.0f} MiB")
    print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


class PassedOn(Interceptor):
    """Intercepts a layer, and lets PyTorch compute its attention all the same."""

    def attention(self, layer: nn.Module, call: Call) -> Tensor:
        return call.plain()


def interception(repeats: int) -> None:
    """Print what a call of a layer costs that has next to nothing to compute, as it is and intercepted."""
    states = torch.randn(1, 4, 16)
    layers = {"base": Attention(16, heads=2, dim_head=8), "intercepted": Attention(16, heads=2, dim_head=8)}
    PassedOn().register(layers["intercepted"])

    def turn(layer: nn.Module) -> Callable[[], None]:
        def several() -> None:
            for _ in range(20 * RUNS):
                layer(states)

        return several

    with torch.no_grad():
        found = in_turns({label: turn(layer.eval()) for label, layer in layers.items()}, repeats)
    for label, timing in found.items():
        print(f"{label}: {1e6 * timing.median / (20 * RUNS):.0f} us a call ({timing.ratio:.2f}x)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--layers", nargs="*", choices=list(LAYERS), default=list(LAYERS))
    parser.add_argument("--naive", action="store_true", help="also materialize all maps: slow, and takes gigabytes")
    parser.add_argument("--mask", action="store_true", help="with a mask of keys, as diffusers prepares one of text")
    parser.add_argument("--interception", action="store_true", help="only what it costs to get into a layer")
    args = parser.parse_args()
    torch.manual_seed(0)
    if args.interception:
        interception(args.repeats)
        return
    labels = ["base", "recombined"] + ["naive"] * args.naive
    print(f"{machine()}, {args.dtype}; medians, ratios turn by turn\n")
    print("| layer | " + " | ".join(f"{kind}, {label}" for kind in ("forward", "training") for label in labels) + " |")
    print("| --- |" + " --- |" * (2 * len(labels)))
    for name in args.layers:
        measure(name, getattr(torch, args.dtype), args.repeats, args.naive, args.mask)


if __name__ == "__main__":
    main()
