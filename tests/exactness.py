"""How exact a way of computing recombined attention is: against float64, beside plain attention's own error."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from coeff_diffusion.method import recombination

Attention = Callable[..., Tensor]


def exact(query: Tensor, key: Tensor, value: Tensor, coeff: Tensor | None, *rest: Any) -> Tensor:
    """The reference in float64; plain attention where there are no coefficients."""
    coeff = torch.zeros(query.shape[1], query.shape[1]) if coeff is None else coeff
    return recombination.recombined_attention(query.double(), key.double(), value.double(), coeff.double(), *rest)


def error(actual: Tensor, expected: Tensor) -> float:
    """The largest error, in units of the largest value (a hundredth where all values are near zero)."""
    return float((actual.double() - expected).abs().max() / expected.double().abs().max().clamp_min(0.01))


def mean_error(actual: Tensor, expected: Tensor) -> float:
    """The root mean square of the errors, in units of the values' (a hundredth where all values are near zero)."""
    wrong = (actual.double() - expected).square().mean().sqrt()
    return float(wrong / expected.double().square().mean().sqrt().clamp_min(0.01))


def gradients(attention: Attention, inputs: list[Tensor], *rest: Any) -> list[Tensor]:
    """Of a sum with fixed random weights, by query, key, value and, where there are any, the coefficients."""
    double = attention is exact
    leaves = [(x.double() if double else x).detach().clone().requires_grad_() for x in inputs]
    output = attention(*leaves, *rest)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return list(torch.autograd.grad((output.double() * weights).sum(), leaves))


def assert_as_exact_as_plain(attention: Attention, inputs: list[Tensor], mask: Tensor | None, train: bool) -> None:
    """At most twice plain attention's error, in the output and, where `train`, in the gradients.

    Args:
        inputs: query, key, value, coeff.
    """
    query, key, value, coeff = inputs
    eps = torch.finfo(query.dtype).eps
    double = mask.double() if mask is not None and mask.dtype != torch.bool else mask
    actual = attention(*inputs, mask)
    plain = scaled_dot_product_attention(query, key, value, attn_mask=mask)
    # A tiny problem may come out without any error by luck: a few roundings are always allowed.
    allowed = 2 * error(plain, exact(query, key, value, None, double)) + 4 * eps
    assert actual.dtype == query.dtype
    assert error(actual, exact(*inputs, double)) <= allowed
    if not train:
        return
    own = gradients(attention, inputs, mask)
    best = gradients(exact, inputs, double)
    plain_own = gradients(lambda q, k, v: scaled_dot_product_attention(q, k, v, mask), inputs[:3])
    zero = torch.zeros(query.shape[1], query.shape[1])
    plain_best = gradients(exact, [query, key, value, zero], double)[:3]
    for ours, right, theirs, plain_right in zip(own, best, plain_own, plain_best, strict=False):
        assert error(ours, right) <= 2 * error(theirs, plain_right) + 8 * eps
    assert own[3].dtype == coeff.dtype
    assert error(own[3], best[3]) <= 32 * eps  # a sum over all maps, of rounded gradients


def masked(kind: str, batch: int, heads: int, queries: int, keys: int, dtype: torch.dtype) -> Tensor | None:
    """A mask of one of the kinds that attention is called with."""
    if kind == "none":
        return None
    if kind == "added":
        return torch.randn(batch, 1, queries, keys, dtype=dtype)
    if kind == "keys":  # the same for every query, as diffusers prepares a mask of the text
        return torch.where(torch.rand(batch, heads, 1, keys) < 0.3, -10_000.0, 0.0).to(dtype)
    if kind == "one":  # of every key of a query
        return torch.randn(batch, 1, queries, 1, dtype=dtype)
    allowed = torch.rand(queries, keys) < 0.7
    allowed[::3] = False  # these may attend to nothing
    return allowed


class Watch(TorchDispatchMode):
    """Watches every operation, forward and backward: the most elements of a tensor, and how often each was called."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0
        self.count: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = str(func.overloadpacket)
        self.count[name] = self.count.get(name, 0) + 1
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result
