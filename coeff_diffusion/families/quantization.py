"""A base with its large weights in eight bits: half the memory of half precision, for drawing and for training.

Every linear layer `y = x W^T + b` of the denoiser and the text encoders keeps `W` as whole numbers with one scale for
each output channel, as torchao's and bitsandbytes' weight-only schemes do. These two are not used: with torchao on the
machine every import of diffusers takes seconds more, and the weights of bitsandbytes cannot be shared by a copy
(`shared_weights`), which training and the page's previews stand on.
"""

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional

from .errors import BaseModelError
from .fingerprint import telling_weights
from .heap import return_freed
from .registry import denoiser_of, encoders_of

Quantization = Literal["no", "int8"]
LARGEST = 127
PARENTS = 100  # modules between two times that freed memory is returned


class Int8Linear(nn.Linear):
    """A frozen linear layer whose weight is `scale * weight`: `weight` int8 `[out, in]`, `scale` `[out, 1]`.

    It computes in the type of its input, and keeps the narrow weight alone for the gradient of the input.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        exact = layer.weight.detach()
        largest = exact.abs().amax(dim=1, keepdim=True).float()  # [out, 1]
        scale = (largest / LARGEST).clamp(min=torch.finfo(torch.float32).tiny).to(exact.dtype)
        whole = (exact.float() / scale.float()).round().clamp(-LARGEST, LARGEST)
        self.weight = nn.Parameter(whole.to(torch.int8), requires_grad=False)
        self.bias = layer.bias
        self.register_buffer("scale", scale)

    def forward(self, input: Tensor) -> Tensor:
        found: Tensor = _Product.apply(input, self.weight, self.scale)
        return found if self.bias is None else found + self.bias


class _Product(torch.autograd.Function):
    """`input @ (scale * weight).T`; autograd by itself would keep the wide weight of every layer until the gradient."""

    @staticmethod
    def forward(ctx: FunctionCtx, input: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(weight, scale)
        return functional.linear(input, _wide(weight, scale, input.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        weight, scale = ctx.saved_tensors
        return grads[0] @ _wide(weight, scale, grads[0].dtype), None, None


def _wide(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.to(dtype) * scale.to(dtype)


def quantize(pipe: Any, quantization: str) -> None:
    """Round the linear layers of a pipeline's denoiser and text encoders, in place; what is rounded already stays.

    The few layers that tell a base from others (`telling_weights`) are left as they are, so that a subject knows its
    base rounded and whole.

    Raises:
        BaseModelError: another word; the pipeline is rounded and "no" was asked for.
    """
    if quantization not in get_args(Quantization):
        raise BaseModelError(
            f"quantization {str(quantization)!r} is not known, expected {' or '.join(get_args(Quantization))}"
        )
    found = quantization_of(denoiser_of(pipe))
    if found == quantization:
        return
    if quantization == "no":
        raise BaseModelError(f"the base that is loaded has {found} weights, but none were asked for; load it anew")
    parts = (denoiser_of(pipe), *encoders_of(pipe).values())
    kept = {id(weight) for weight in telling_weights(*parts)}
    for part in parts:
        # A list that held the linear layers, too, would keep all their weights until the last one is rounded.
        parents = [module for module in part.modules() if not isinstance(module, nn.Linear)]
        for number, parent in enumerate(parents):
            for name, layer in list(parent.named_children()):
                if type(layer) is nn.Linear and id(layer.weight) not in kept:
                    setattr(parent, name, Int8Linear(layer))
            if number % PARENTS == 0:
                return_freed()


def quantization_of(module: nn.Module) -> Quantization:
    """How the large weights of a network are kept."""
    return "int8" if any(isinstance(part, Int8Linear) for part in module.modules()) else "no"
