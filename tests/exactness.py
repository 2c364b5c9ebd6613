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
