"""Cross-attention with everything that depends on the prompt alone computed once for all steps of a drawing.

With x the picture's tokens, k_h = context W_k,h and v_h = context W_v,h:

    scores[h] = x W_q,h k_h^T * scale                 = x @ queries[h]       queries[h] = W_q,h k_h^T * scale   [C, M]
    out       = sum_h mixed[h] v_h W_o,h + bias       = sum_j maps[j] @ values[j] + bias
                                                        values[j] = sum_h (I + coeff)[h, j] v_h W_o,h           [M, C]

The second product holds the recombination, the values and the output projection. A token costs `2 C M H` products
instead of the base's `2 C^2 + 2 M C`: less where `C > M (H - 1)`, as in the deep layers of SD 1.x. Elsewhere only keys
and values are kept.

Legend: B samples, H heads, N picture tokens, M text tokens, C channels of the picture, E of the text, D per head.
"""

import weakref
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


@dataclass(frozen=True)
class Folded:
    """A whole cross-attention layer for one prompt.

    Attributes:
        queries: `[B, C, H * M]`; offset: `[B, 1, H * M]`, where the query projection has a bias.
        values: `[B, H * M, C]`; bias: `[C]`, of the output projection.
    """

    heads: int
    queries: Tensor
    offset: Tensor | None
    values: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, attn: Any, key: Tensor, value: Tensor, coeff: Tensor) -> "Folded":
        """Fold a layer of diffusers with the keys and values `[B, H, M, D]` of a prompt."""
        query_weight = attn.to_q.weight.unflatten(0, (attn.heads, -1))  # [H, D, C]
        queries = torch.einsum("hdc,bhmd->bchm", query_weight, key * attn.scale).flatten(2)
        offset = None
        if attn.to_q.bias is not None:
            offset = torch.einsum("hd,bhmd->bhm", attn.to_q.bias.unflatten(0, (attn.heads, -1)), key * attn.scale)
            offset = offset.flatten(1).unsqueeze(1)
        output = attn.to_out[0]
        output_weight = output.weight.unflatten(1, (attn.heads, -1))  # [C, H, D]
        projected = torch.einsum("bhmd,chd->bhmc", value, output_weight)  # v_h W_o,h
        weight = torch.eye(attn.heads, dtype=value.dtype, device=value.device) + coeff.to(value.dtype)
        weight = weight.expand(len(value), -1, -1)
        values = torch.einsum("bhj,bhmc->bjmc", weight, projected).flatten(1, 2)
        return cls(attn.heads, queries, offset, values, output.bias)

    def __call__(self, hidden_states: Tensor) -> Tensor:
        """Picture tokens `[B, N, C]` -> what the layer's output projection gives, `[B, N, C]`."""
        if self.offset is None:
            scores = hidden_states @ self.queries  # [B, N, H * M]
        else:
            scores = torch.baddbmm(self.offset, hidden_states, self.queries)
        maps = scores.unflatten(2, (self.heads, -1)).softmax(-1).flatten(2)
        return maps @ self.values if self.bias is None else torch.baddbmm(self.bias, maps, self.values)


@dataclass(frozen=True)
class Prompt:
    """What a layer keeps of a prompt: its keys and values `[B, H, M, D]`, and all of it folded where that is faster."""

    key: Tensor
    value: Tensor
    folded: Folded | None


class _State:
    """A tensor as it is now: equal as long as it is the same one with the same values.

    Changes through `tensor.data`, which PyTorch does not count, go unnoticed as long as they leave the memory in place.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.memory, self.version = tensor, tensor.data_ptr(), tensor._version

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _State)
            and self.tensor is other.tensor
            and (self.memory, self.version) == (other.memory, other.version)
        )


class _Kept(NamedTuple):
    context: "weakref.ref[Tensor]"
    version: int
    state: list[_State]
    prompt: Prompt


class PromptCache:
    """What one cross-attention layer keeps from step to step while the prompt stays the same.

    Nothing stale is ever used: what is kept holds for one context tensor as it is now (weakly referenced: it is gone
    with the drawing), one tensor of coefficients and the projections' weights as they are now.
    """

    def __init__(self) -> None:
        self._kept: _Kept | None = None

    def clear(self) -> None:
        """Forget the prompt."""
        self._kept = None

    def of(self, attn: Any, context: Tensor, coeff: Tensor) -> Prompt | None:
        """What is kept for this context, computed if it is new; None where nothing may be kept.

        Args:
            context: text embeddings `[B, M, E]`, the very tensor that the UNet was given.
        """
        if not _may_keep(attn, context, coeff):
            return None
        state = [_State(coeff), *map(_State, _weights(attn))]
        kept = self._kept
        if kept is None or kept.context() is not context or kept.version != context._version or kept.state != state:
            prompt = _prompt(attn, context, coeff)
            self._kept = kept = _Kept(weakref.ref(context, self._forget), context._version, state, prompt)
        return kept.prompt

    def _forget(self, gone: "weakref.ref[Tensor]") -> None:
        if self._kept is not None and self._kept.context is gone:
            self._kept = None


def _prompt(attn: Any, context: Tensor, coeff: Tensor) -> Prompt:
    key, value = (
        linear(context, projection.weight, projection.bias).unflatten(-1, (attn.heads, -1)).transpose(1, 2).contiguous()
        for projection in (attn.to_k, attn.to_v)
    )
    folded = Folded.of(attn, key, value, coeff) if _folding_wins(attn, context.shape[1]) else None
    return Prompt(key, value, folded)


def _folding_wins(attn: Any, tokens: int) -> bool:
    """Whether the products for a picture token become fewer."""
    inner, channels, out = attn.to_q.out_features, attn.to_q.in_features, attn.to_out[0].out_features
    return attn.heads * tokens * (channels + out) < inner * (channels + out) + 2 * tokens * inner


def _may_keep(attn: Any, context: Tensor, coeff: Tensor) -> bool:
    """Only while sampling, and only over projections whose every effect on the output is known: those of the base.

    A LoRA layer or a hook makes something else of them. Float32 and wider alone: half precision would round the
    folded products, and is for GPUs, which have their own kernel.
    """
    projections = (attn.to_q, attn.to_k, attn.to_v, attn.to_out[0])
    return (
        not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled(context.device.type)
        and not (context.is_inference() or coeff.is_inference() or attn.to_q.weight.is_inference())
        and context.dtype in (torch.float32, torch.float64)
        and attn.to_q.weight.dtype == context.dtype
        and attn.norm_q is None
        and attn.norm_k is None
        and not attn.norm_cross
        and not (attn.training and attn.to_out[1].p)
        and all(map(_is_stock, projections))
    )


def _is_stock(module: nn.Module) -> bool:
    return (
        type(module) is nn.Linear
        and not module._forward_hooks
        and not module._forward_pre_hooks
        and "forward" not in vars(module)  # which accelerate exchanges when it moves weights about
    )


def _weights(attn: Any) -> list[Tensor]:
    projections = (attn.to_q, attn.to_k, attn.to_v, attn.to_out[0])
    return [tensor for p in projections for tensor in (p.weight, p.bias) if tensor is not None]
