"""The thin shell between diffusers' `Attention` and `recombined_attention`."""

from typing import Any

from diffusers.models.attention_processor import Attention
from torch import Tensor
from torch.nn.functional import dropout

from .kernels import PromptCache, recombined_attention, scaled_attention


class CoeffAttnProcessor:
    """Attention processor that recombines the heads' maps of one layer.

    Deliberately not an `nn.Module`: the coefficients stay out of the UNet's parameters and `state_dict`. Saving,
    casting, freezing or adding LoRA layers treats the UNet as the stock model it still is; `coeff` stays float32.

    Args:
        base_processor: what computes this layer in the base; called unchanged wherever no coefficients act.
        dropout: probability of dropping an entry of `coeff` while the layer is in training mode.

    Attributes:
        coeff: the residual coefficients that act: `[H, H]` on every sample, or `[B, H, H]`, one matrix per sample. None
            leaves the layer to the base, bitwise.
        diagonal: `[H]` or `[B, H]`, of a `coeff` that is zero elsewhere. None: it is a full matrix.
        rows: indices of the samples that a `[B, H, H]` acts on; the others are the base's, bitwise. None: all of them.
    """

    def __init__(self, base_processor: Any, dropout: float = 0.0) -> None:
        self.base_processor = base_processor
        self.dropout = dropout
        self.coeff: Tensor | None = None
        self.diagonal: Tensor | None = None
        self.rows: Tensor | None = None
        self.prompts = PromptCache()

    def act(self, coeff: Tensor | None, diagonal: Tensor | None = None, rows: Tensor | None = None) -> None:
        """Choose what acts from now on; see the attributes."""
        self.coeff, self.diagonal, self.rows = coeff, diagonal, rows
        self.prompts.clear()

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        extra = {} if temb is None else {"temb": temb}  # not every processor of diffusers takes it
        if self.coeff is None:
            return self.base_processor(attn, hidden_states, encoder_hidden_states, attention_mask, **extra)
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        mask = _per_head_mask(attn, attention_mask, context)
        inputs: tuple[Any, ...] = (hidden_states, encoder_hidden_states, mask, temb)
        if self.rows is None:
            return self._recombined(attn, self.coeff, self.diagonal, *inputs)
        if len(self.coeff) != len(hidden_states):
            raise ValueError(f"coeff is for {len(self.coeff)} samples, but the batch has {len(hidden_states)}")
        # Some samples are the base's. The base's own call on the whole batch keeps them bitwise; the others come again.
        output = self.base_processor(attn, hidden_states, encoder_hidden_states, attention_mask, **extra)
        inputs = tuple(x if x is None else x[self.rows] for x in inputs)
        diagonal = None if self.diagonal is None else self.diagonal[self.rows]
        recombined = self._recombined(attn, self.coeff[self.rows], diagonal, *inputs)
        return output.index_copy(0, self.rows, recombined)

    def _recombined(
        self,
        attn: Attention,
        coeff: Tensor,
        diagonal: Tensor | None,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None,
        mask: Tensor | None,
        temb: Tensor | None,
    ) -> Tensor:
        """Step for step what diffusers' `AttnProcessor2_0` does, around another attention function."""
        residual = hidden_states
        if attn.spatial_norm is not None:
            hidden_states = attn.spatial_norm(hidden_states, temb)
        if residual.ndim == 4:
            hidden_states = hidden_states.flatten(2).mT  # [B, C, height, width] -> [B, N, C]
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.mT).mT
        coeff = coeff.to(hidden_states.device)
        prompt = None
        if encoder_hidden_states is not None and self.rows is None and mask is None and diagonal is None:
            prompt = self.prompts.of(attn, encoder_hidden_states, coeff)
        if prompt is not None and prompt.folded is not None:
            output = prompt.folded(hidden_states)
        else:
            query = _by_head(attn, attn.to_q(hidden_states))  # [B, H, N, D]
            if prompt is not None:
                key, value = prompt.key, prompt.value
            else:
                key, value = _keys_and_values(attn, hidden_states, encoder_hidden_states)
            if attn.norm_q is not None:
                query = attn.norm_q(query)
            if diagonal is not None:
                output = scaled_attention(query, key, value, diagonal, mask, attn.scale)
            else:
                # Dropout on the coefficients themselves, as in the paper; the module knows whether it is training.
                coeff = dropout(coeff, self.dropout, attn.training)
                output = recombined_attention(query, key, value, coeff, mask, attn.scale)  # [B, H, N, D]
            output = attn.to_out[0](output.transpose(1, 2).flatten(2))  # [B, N, H*D] -> [B, N, C]
        output = attn.to_out[1](output)
        if residual.ndim == 4:
            output = output.mT.reshape(residual.shape)
        if attn.residual_connection:
            output = output + residual
        return output if attn.rescale_output_factor == 1 else output / attn.rescale_output_factor


def _by_head(attn: Attention, x: Tensor) -> Tensor:
    """`[B, N, H*D]` -> `[B, H, N, D]`."""
    return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)


def _keys_and_values(attn: Attention, hidden_states: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    """`[B, H, M, D]` each, of the text `[B, M, E]` or, where there is none, of the picture itself."""
    if context is None:
        context = hidden_states
    elif attn.norm_cross:
        context = attn.norm_encoder_hidden_states(context)
    key, value = _by_head(attn, attn.to_k(context)), _by_head(attn, attn.to_v(context))
    return (key if attn.norm_k is None else attn.norm_k(key)), value


def _per_head_mask(attn: Attention, mask: Tensor | None, context: Tensor) -> Tensor | None:
    """Any mask that diffusers prepares (`[B, M]`, `[B, 1, M]`, `[B*H, N, M]`) as `[B, H, 1 or N, M]`."""
    if mask is None:
        return None
    batch, length = context.shape[0], context.shape[2:].numel() if context.ndim == 4 else context.shape[1]
    mask = attn.prepare_attention_mask(mask, length, batch)  # [B*H, .., M]
    return mask.view(batch, attn.heads, -1, mask.shape[-1])
