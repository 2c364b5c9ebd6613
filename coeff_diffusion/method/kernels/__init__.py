"""Recombined attention, and the one place that chooses how it is computed.

Every way computes `coeff_diffusion.method.recombination.recombined_attention` exactly; they differ in time and memory:

| way | when |
| --- | --- |
| `plain` | coefficients that are zero or a diagonal matrix (recognized by `attachment`, when they are chosen) |
| `compiled` | in `torch.compile`, as one operator that does at run time what follows |
| `cuda_attention` | on CUDA, in half precision, without a mask, where nothing learns |
| `triton_attention` | on CUDA, else |
| `native` | on CPUs with AVX2 or AVX-512, where there is a compiler |
| `blocked` | everywhere else |
| `recombination` | a mask that learns, and nothing to compute; and what all others are tested against |
"""

from jaxtyping import Bool, Float
from torch import Tensor, compiler
from torch.nn.functional import scaled_dot_product_attention

from .compiled import compiled_attention
from .eager import eager_attention
from .plain import diagonal_of, scaled_attention

__all__ = ["diagonal_of", "recombined_attention", "scaled_attention"]


def recombined_attention(
    query: Float[Tensor, "batch heads queries channels"],
    key: Float[Tensor, "batch heads keys channels"],
    value: Float[Tensor, "batch heads keys value_channels"],
    coeff: Float[Tensor, "heads heads"] | Float[Tensor, "batch heads heads"] | None,
    attn_mask: Bool[Tensor, "..."] | Float[Tensor, "..."] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "batch heads queries value_channels"]:
    """Scaled dot-product attention whose heads share their maps: `out[h] = sum_j (I + coeff)[h, j] maps[j] @ value[h]`.

    Args:
        query: `[B, H, N, D]`.
        key: `[B, H, M, D]`.
        value: `[B, H, M, Dv]`.
        coeff: residual coefficients, `[H, H]` for the whole batch or `[B, H, H]`, one matrix per sample; row = the head
            that receives, column = the map that is used. None is plain attention, bitwise PyTorch's.
        attn_mask: broadcastable to `[B, H, N, M]`; boolean (true = attend) or added to the scores.
        scale: factor on the scores; default `D ** -0.5`.

    Returns:
        `[B, H, N, Dv]` in the query's dtype; the maps are mixed in float32 at least, whatever the inputs' dtype.
        Differentiable, once, in query, key, value and coeff.

    Raises:
        ValueError: `coeff` does not fit the heads or the batch of `query`.
    """
    if coeff is None:
        return scaled_dot_product_attention(query, key, value, attn_mask=attn_mask, scale=scale)
    batch, heads = query.shape[:2]
    if coeff.shape not in ((heads, heads), (batch, heads, heads)):
        raise ValueError(
            f"coeff is {list(coeff.shape)}, but a query of {batch} samples and {heads} heads needs "
            f"[{heads}, {heads}] or [{batch}, {heads}, {heads}]"
        )
    if compiler.is_compiling() and not (attn_mask is not None and attn_mask.requires_grad):
        return compiled_attention(query, key, value, coeff, attn_mask, scale)
    return eager_attention(query, key, value, coeff, attn_mask, scale)
