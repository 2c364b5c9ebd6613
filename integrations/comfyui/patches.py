"""What subjects do in ComfyUI's UNet: patches of its attention layers.

Legend: B rows of the batch, C prompts in it, H heads, N queries, M keys, D channels per head, S subjects.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from coeff_diffusion.method.kernels import recombined_attention
from coeff_diffusion.method.sites import Kind, Stage, stage_of
from coeff_diffusion.method.text_offsets import at_positions
from coeff_diffusion.subject.errors import CoefficientsError

from .acting import Acting, Options, Shared, Step
from .layers import Block


@dataclass(frozen=True, eq=False)
class LayerPatch(Shared):
    """Recombines the heads' maps of one layer: `set_model_attn1_replace`, `set_model_attn2_replace`.

    Attributes:
        coeffs: `[S, H, H]`.
    """

    kind: Kind
    stage: Stage
    subjects: tuple[Acting, ...]
    coeffs: Tensor

    def also(self, subject: Acting, coeff: Tensor) -> "LayerPatch":
        """With one more subject."""
        return replace(self, subjects=(*self.subjects, subject), coeffs=torch.cat([self.coeffs, coeff[None]]))

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, extra_options: Options) -> Tensor:
        """`[B, N, H * D]` of the layer's projections, of as many channels."""
        factors = [one.layers.factor(self.kind, self.stage) for one in self.subjects]
        strengths = [
            [strength * factor for strength in one.strengths(extra_options)]
            for one, factor in zip(self.subjects, factors, strict=True)
        ]
        coeff = torch.einsum("sc,sij->cij", torch.tensor(strengths), self.coeffs)  # [C, H, H]
        acts = coeff.flatten(1).any(1)  # [C]
        if not acts.any():
            return plain_attention(query, key, value, extra_options)
        heads, times = extra_options["n_heads"], rows_each(len(query), len(coeff))
        chosen = acts.repeat_interleave(times).nonzero().flatten().to(query.device)  # [B'] rows
        q, k, v = (
            x[chosen].unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value)
        )  # [B', H, N or M, D]
        acting = coeff[acts]
        same = bool((acting == acting[0]).all())
        acting = (acting[0] if same else acting.repeat_interleave(times, 0)).to(query.device)  # [H, H] or [B', H, H]
        mixed = recombined_attention(q, k, v, acting)
        output = mixed.transpose(1, 2).flatten(2)  # [B', N, H * D]
        if len(chosen) == len(query):
            return output
        return plain_attention(query, key, value, extra_options).index_copy(0, chosen, output)


@dataclass(frozen=True, eq=False)
class StagePatch(Shared):
    """Adds a subject's stage tokens to the text that cross-attention reads: `set_model_attn2_patch`.

    Attributes:
        stages: the stage of each block of the UNet.
    """

    subject: Acting
    tokens: Mapping[str, Tensor]
    stages: Mapping[Block, str]

    def __call__(
        self, query: Tensor, context: Tensor, value: Tensor, extra_options: Options
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same with the tokens in the text that keys and values are made of, `[B, M, D]`."""
        stage = self.stages.get(extra_options["block"], "")
        if stage not in self.tokens:
            return query, context, value
        strength = self.subject.now(extra_options) * self.subject.layers.factor("cross", stage_of(stage))
        uncond = extra_options["cond_or_uncond"]
        if not strength or all(uncond):
            return query, context, value
        offset = torch.zeros(len(uncond), *context.shape[1:])  # [C, M, D]
        for row, prompt in enumerate(Step.of(extra_options).in_batch(extra_options)):
            places = None if uncond[row] else self.subject.places(prompt)
            if places is not None:
                vectors = at_positions(self.tokens[stage], places) * strength  # [T, D]
                # Prompts of other lengths in the batch: ComfyUI repeats each until all are as long.
                offset[row] = vectors.repeat(context.shape[1] // len(vectors), 1)
        rows = offset.repeat_interleave(rows_each(len(context), len(uncond)), 0).to(context)
        return query, context + rows, value + rows


def plain_attention(query: Tensor, key: Tensor, value: Tensor, options: Options) -> Tensor:
    """What ComfyUI computes in a layer that nobody patches."""
    from comfy.ldm.modules.attention import optimized_attention

    precision = options.get("attn_precision")
    attended: Tensor = optimized_attention(
        query, key, value, options["n_heads"], attn_precision=precision, transformer_options=options
    )
    return attended


def rows_each(rows: int, prompts: int) -> int:
    """How many rows of a batch each of its prompts has.

    Raises:
        CoefficientsError: not all as many.
    """
    if rows % prompts:
        raise CoefficientsError(f"a batch of {rows} rows for {prompts} prompts, expected as many for each")
    return rows // prompts
