"""What subjects do in attention layers: patches as ComfyUI and its descendants take them.

A patch is told of the batch by `extra_options`. What a program calls the prompts in it, and which of them has which
trigger, is that program's business (`Acts`).

Legend: B rows of the batch, C parts of it of as many rows each, H heads, N queries, M keys, D channels per head,
S subjects, T text positions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ...subject.coefficients import Coefficients
from ...subject.errors import CoefficientsError, listed
from ...subject.layer_strengths import LayerStrengths
from ..kernels import recombined_attention
from ..sites import Kind, Stage, stage_of
from ..text_offsets import at_positions
from .layers import Block, Place

Options = Mapping[str, Any]  # `extra_options`: what a patch is told of the batch
Plain = Callable[[Tensor, Tensor, Tensor, Options], Tensor]  # `[B, N, H * D]` of projections, of as many channels


class Shared:
    """All patches are copied deeply with every clone of a model; these never change."""

    def __deepcopy__(self, memo: Any) -> Any:
        return self


class Acts(Protocol):
    """A subject and when it acts."""

    @property
    def coefficients(self) -> Coefficients: ...

    @property
    def layers(self) -> LayerStrengths: ...

    def now(self, options: Options) -> float:
        """Its strength at this step of sampling."""

    def strengths(self, options: Options) -> Sequence[float]:
        """Of each part of the batch, C of them. The rows of a negative prompt are treated as those they guide."""

    def places(self, options: Options) -> Sequence[Tensor | None]:
        """Where the trigger's vectors stand in each part's prompt, `[T]`; None where there are none, and in negative
        prompts."""


@dataclass(frozen=True, eq=False)
class LayerPatch(Shared):
    """Recombines the heads' maps of one layer: `set_model_attn1_replace`, `set_model_attn2_replace`.

    Attributes:
        coeffs: `[S, H, H]`.
        plain: what the program itself computes in a layer that nobody patches.
    """

    kind: Kind
    stage: Stage
    subjects: tuple[Acts, ...]
    coeffs: Tensor
    plain: Plain

    def also(self, subject: Acts, coeff: Tensor) -> "LayerPatch":
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
            return self.plain(query, key, value, extra_options)
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
        return self.plain(query, key, value, extra_options).index_copy(0, chosen, output)


@dataclass(frozen=True, eq=False)
class StagePatch(Shared):
    """Adds a subject's stage tokens to the text that cross-attention reads: `set_model_attn2_patch`.

    Attributes:
        stages: the stage of each block of the UNet.
    """

    subject: Acts
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
        if not strength:
            return query, context, value
        places = self.subject.places(extra_options)
        if all(own is None for own in places):
            return query, context, value
        offset = torch.zeros(len(places), *context.shape[1:])  # [C, M, D]
        for row, own in enumerate(places):
            if own is not None:
                vectors = at_positions(self.tokens[stage], own) * strength  # [T, D]
                # Prompts of other lengths in the batch: each is repeated until all are as long.
                offset[row] = vectors.repeat(context.shape[1] // len(vectors), 1)
        rows = offset.repeat_interleave(rows_each(len(context), len(places)), 0).to(context)
        return query, context + rows, value + rows


def set_patches(model: Any, places: Mapping[str, Place], acting: Acts, plain: Plain) -> dict[str, Place]:
    """Let a subject act in a clone of a model, beside those that act there already; returns where, by path.

    Args:
        model: the clone: what ComfyUI calls MODEL, and Forge the patcher of its UNet.

    Raises:
        CoefficientsError: somebody else's patch is in the way; the message says whose and where.
    """
    options = model.model_options.setdefault("transformer_options", {})
    chosen = {
        path: places[path]
        for path in acting.coefficients
        if acting.layers.factor(places[path].site.kind, places[path].site.stage)
    }
    there = {path: patch_at(options, place) for path, place in chosen.items()}
    taken = [path for path, patch in there.items() if patch is not None and not isinstance(patch, LayerPatch)]
    if taken:
        names = sorted({getattr(there[path], "__qualname__", type(there[path]).__name__) for path in taken})
        raise CoefficientsError(
            f"something else ({', '.join(names)}) replaces the attention of layers that the subject acts in: "
            f"{listed(taken)}; let one of the two leave these layers alone, by a strength of 0 in self or cross layers"
        )
    setters = {"attn1": model.set_model_attn1_replace, "attn2": model.set_model_attn2_replace}
    for path, place in chosen.items():
        coeff, before = acting.coefficients[path], there[path]
        site = place.site
        new = before.also(acting, coeff) if before else LayerPatch(site.kind, site.stage, (acting,), coeff[None], plain)
        setters[place.name](new, *place.block, place.transformer)
    if tokens := acting.coefficients.stage_tokens:
        stages = {place.block: place.stage for place in places.values()}
        model.set_model_attn2_patch(StagePatch(acting, tokens, stages))
    return chosen


def patch_at(options: Options, place: Place) -> Any:
    """Who replaces a layer's attention: for itself, or for its whole block."""
    replaced = options.get("patches_replace", {}).get(place.name, {})
    return replaced.get(place.key, replaced.get(place.block))


def rows_each(rows: int, prompts: int) -> int:
    """How many rows of a batch each of its prompts has.

    Raises:
        CoefficientsError: not all as many.
    """
    if rows % prompts:
        raise CoefficientsError(f"a batch of {rows} rows for {prompts} prompts, expected as many for each")
    return rows // prompts
