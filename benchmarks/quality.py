"""How exact each way is: the error against float64, beside plain attention's own.

python benchmarks/quality.py
python benchmarks/quality.py --scale 100    # maps that are nearly one-hot
"""

import argparse
from collections.abc import Callable

import torch
from attention import LAYERS
from timing import machine
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from coeff_diffusion.method.kernels import recombined_attention
from coeff_diffusion.method.recombination import recombined_attention as reference

QUERIES = 512  # of a layer: enough to see its error


def error(actual: Tensor, exact: Tensor) -> float:
    """Root mean square of the error, in units of the root mean square of the values."""
    return float((actual.double() - exact).square().mean().sqrt() / exact.square().mean().sqrt())


def gradients(way: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    output = way(*leaves)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return list(torch.autograd.grad((output.double() * weights.to(output.device)).sum(), leaves))


def measure(name: str, dtype: torch.dtype, scale: float) -> None:
    """Print a row for one layer."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch, heads, queries, keys, channels = LAYERS[name]
    query, key, value = (
        torch.randn(batch, heads, n, channels, device=device).to(dtype) for n in (min(queries, QUERIES), keys, keys)
    )
    query = scale * query
    coeff = 0.2 * torch.randn(heads, heads, device=device)
    attention: Callable[..., Tensor] = recombined_attention
    exact: Callable[..., Tensor] = reference
    inputs, exact_inputs = [query, key, value, coeff], [x.double() for x in (query, key, value, coeff)]
    zero = torch.zeros_like(exact_inputs[3])
    plain_exact = gradients(reference, [*exact_inputs[:3], zero])
    plain = gradients(scaled_dot_product_attention, inputs[:3])
    ours_exact, ours = gradients(reference, exact_inputs), gradients(attention, inputs)
    cells = [
        error(scaled_dot_product_attention(query, key, value), exact(*exact_inputs[:3], zero)),
        error(recombined_attention(query, key, value, coeff), exact(*exact_inputs)),
        max(error(a, b) for a, b in zip(plain, plain_exact, strict=False)),
        max(error(a, b) for a, b in zip(ours[:3], ours_exact, strict=False)),
        error(ours[3], ours_exact[3]),
    ]
    print(
        f"| {name} | {str(dtype).removeprefix('torch.')} | " + " | ".join(f"{cell:.1e}" for cell in cells) + " |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", nargs="*", choices=list(LAYERS), default=list(LAYERS))
    parser.add_argument("--scale", type=float, default=1, help="what queries are multiplied by")
    args = parser.parse_args()
    torch.manual_seed(0)
    print(f"{machine()}; relative root mean square errors\n")
    print("| layer | dtype | plain | recombined | plain, gradients | recombined, gradients | coefficients' gradient |")
    print("| --- |" + " --- |" * 6)
    for name in args.layers:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            measure(name, dtype, args.scale)


if __name__ == "__main__":
    main()
