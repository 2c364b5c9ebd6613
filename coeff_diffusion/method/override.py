"""What recombination does in one attention layer: `recombined_attention` where the layer calls PyTorch's.

Legend: B samples, H heads, N queries, E channels of a value.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn

from .acting import Acting
from .errors import AttachmentError
from .interception import Call, Interception, Interceptor
from .kernels import recombined_attention, scaled_attention
from .processors import check_calls, leaves_rows_out


class Override(Interceptor):
    """Recombines the heads' maps of one layer.

    Args:
        path: what errors call the layer.
        dropout: probability of dropping an entry of the coefficients while the layer is in training mode.

    Attributes:
        acting: None leaves the layer alone, bitwise.
    """

    def __init__(self, path: str, dropout: float = 0.0) -> None:
        self.path, self.dropout = path, dropout
        self.acting: Acting | None = None

    def acts(self) -> bool:
        return self.acting is not None

    def finished(self, layer: nn.Module, calls: int) -> None:
        check_calls(self.path, getattr(layer, "processor", None), calls)

    def attention(self, layer: nn.Module, call: Call) -> Tensor:
        """`[B, H, N, E]`, recombined.

        Raises:
            AttachmentError: the call is not one that can be recombined, or the coefficients are for another one.
        """
        acting = self.acting
        if acting is not None and acting.coeff.ndim == 3 and leaves_rows_out(getattr(layer, "processor", None)):
            acting = acting.of_first(len(call.query))
        if acting is None:  # for these rows, or another thread has switched it off meanwhile
            return call.plain()
        acting = self._fitted(acting, call)
        if self.dropout and layer.training:  # of the coefficients themselves, as in the paper
            acting = acting._replace(coeff=dropped(acting.coeff, self.dropout))
        if acting.coeff.device != call.query.device:  # of a network whose weights come and go
            acting = acting.to(call.query.device)
        if acting.rows is None:
            return _recombined(call.spelled_out(), acting)
        # PyTorch's own attention for the whole batch keeps the other samples bitwise.
        part = _recombined(call.spelled_out().of_samples(acting.rows), acting.of_rows(acting.rows))
        return call.plain().index_copy(0, acting.rows, part)

    def _fitted(self, acting: Acting, call: Call) -> Acting:
        coeff = acting.coeff
        if misfit := call.misfit():
            raise AttachmentError(f"{self.path} has {misfit}")
        if call.dropout_p:
            raise AttachmentError(f"{self.path} drops entries of its maps (dropout_p={call.dropout_p}), expected 0")
        batch, heads = call.query.shape[:2]
        if coeff.shape[-1] != heads:
            raise AttachmentError(f"{self.path} has {heads} heads, but the coefficients are for {coeff.shape[-1]}")
        if coeff.ndim == 2 or len(coeff) == batch:
            return acting
        times, rest = divmod(batch, len(coeff))
        if rest:
            raise AttachmentError(
                f"{self.path} has a batch of {batch}, but the coefficients are for {len(coeff)} samples"
            )
        return acting.repeated(times)


def dropped(coeff: Tensor, rate: float, generator: torch.Generator | None = None) -> Tensor:
    """Coefficients with entries left out at random, the others larger, so that the mean stays.

    What PyTorch's dropout does on a CPU, bitwise; here on every device, and from any generator of the device.
    """
    return coeff * torch.empty_like(coeff).bernoulli_(1 - rate, generator=generator).div_(1 - rate)


def _recombined(call: Call, acting: Acting) -> Tensor:
    query, key, value, mask = call[:4]
    if acting.diagonal is not None:
        return scaled_attention(query, key, value, acting.diagonal, mask, call.scale)
    return recombined_attention(query, key, value, acting.coeff, mask, call.scale)


class CoeffAttnProcessor(Override):
    """Recombines a layer without `attach`: `attn.set_processor(CoeffAttnProcessor(attn.processor))`, then `act`.

    Not for `torch.compile`, which breaks its graph here.
    """

    def __init__(self, base_processor: Any, dropout: float = 0.0) -> None:
        super().__init__("the attention layer", dropout)
        self.base_processor = base_processor

    def act(self, coeff: Tensor | None) -> None:
        """Choose the coefficients that act from now on, `[H, H]` or `[B, H, H]`; None: the base's, bitwise."""
        self.acting = None if coeff is None else Acting.of(coeff)

    @property
    def __call__(self) -> Any:
        """With the signature of the processor inside, by which diffusers chooses what to hand over."""
        return functools.update_wrapper(functools.partial(self._call), self.base_processor.__call__)

    def _call(self, attn: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not self.acts():
            return self.base_processor(attn, *args, **kwargs)
        with Interception(self, attn) as mode:
            output = self.base_processor(attn, *args, **kwargs)
        check_calls(self.path, self.base_processor, mode.calls)
        return output
