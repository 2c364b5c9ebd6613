"""The method, as mathematics: attention whose heads share their softmax maps.

    maps[b, j]  = softmax(query[b, j] @ key[b, j]^T * scale + mask)      j = 1..H
    mixed[b, h] = sum_j (I + coeff)[h, j] maps[b, j]
    out[b, h]   = mixed[b, h] @ value[b, h]

(Coeff-Tuning, arXiv 2503.18337.) Row `h` of `coeff` is the head that receives, column `j` the map that is used. This
file is written to be read and to be checked against; `coeff_diffusion.method.kernels` computes the same faster.

Legend: B batch, H heads, N query tokens, M key tokens, D channels per head.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def recombine(
    maps: Float[Tensor, "batch heads queries keys"],
    coeff: Float[Tensor, "heads heads"] | Float[Tensor, "batch heads heads"],
) -> Float[Tensor, "batch heads queries keys"]:
    """Mix the attention maps of one layer across its heads: `mixed[h] = sum_j (I + coeff)[h, j] maps[j]`.

    Args:
        maps: attention maps, `[B, H, N, M]`.
        coeff: residual coefficients, `[H, H]` for the whole batch or `[B, H, H]`, one matrix per sample. Unconstrained
            and signed: rows of the result need not sum to one, nor be positive.

    Returns:
        `[B, H, N, M]` in the wider of the maps' dtype and float32: signed weights cancel, so nothing is rounded in
        half precision.
    """
    dtype = torch.promote_types(maps.dtype, torch.float32)
    weight = torch.eye(coeff.shape[-1], dtype=dtype, device=coeff.device) + coeff.to(dtype)  # [H, H] or [B, H, H]
    with torch.autocast(maps.device.type, enabled=False):  # which would round the products to half precision
        return (weight @ maps.to(dtype).flatten(2)).view(maps.shape)  # [.., H, H] @ [B, H, N*M]


def recombined_attention(
    query: Float[Tensor, "batch heads queries channels"],
    key: Float[Tensor, "batch heads keys channels"],
    value: Float[Tensor, "batch heads keys value_channels"],
    coeff: Float[Tensor, "heads heads"] | Float[Tensor, "batch heads heads"],
    attn_mask: Bool[Tensor, "..."] | Float[Tensor, "..."] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "batch heads queries value_channels"]:
    """Scaled dot-product attention with recombined maps: the reference.

    Computes in the wider of the query's dtype and float32 and materializes all maps, `[B, H, N, M]`.

    Args:
        query: `[B, H, N, D]`.
        key: `[B, H, M, D]`.
        value: `[B, H, M, Dv]`.
        coeff: residual coefficients, `[H, H]` or `[B, H, H]`.
        attn_mask: broadcastable to `[B, H, N, M]`; boolean (true = attend) or added to the scores. As in PyTorch's
            `scaled_dot_product_attention`, a query that may attend to nothing gets zeros.
        scale: factor on the scores; default `D ** -0.5`.

    Returns:
        `[B, H, N, Dv]` in the query's dtype.
    """
    dtype = torch.promote_types(query.dtype, torch.float32)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    with torch.autocast(query.device.type, enabled=False):  # which would round the products to half precision
        scores = query.to(dtype) * scale @ key.to(dtype).mT  # [B, H, N, M]
        if attn_mask is None:
            maps = scores.softmax(-1)
        else:
            blocked = -torch.inf
            scores = scores.masked_fill(~attn_mask, blocked) if attn_mask.dtype == torch.bool else scores + attn_mask
            blind = (scores == blocked).all(-1, keepdim=True)  # [B, H, N, 1]: may attend to nothing
            maps = scores.masked_fill(blind, 0).softmax(-1).masked_fill(blind, 0)
        return (recombine(maps, coeff) @ value.to(dtype)).to(query.dtype)  # [B, H, N, Dv]
