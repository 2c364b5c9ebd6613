"""Where a word of the prompt acts in a picture: the cross-attention maps of a drawing, before and after recombination.

Legend: B rows of the UNet's batch, H heads, N query tokens (places of the picture), M key tokens (of the prompt),
D channels per head.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from diffusers.models import UNet2DConditionModel
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from ..method.attachment import CoeffConfig, select_layers, unwrapped
from ..method.override import CoeffAttnProcessor
from ..method.recombination import recombine
from ..subject.coefficients import cut
from .request import StudioError

CROSS = CoeffConfig(layers="cross")


@dataclass(frozen=True)
class WordMap:
    """How much a picture attends to a word, at one resolution: the mean over layers, heads and steps.

    Attributes:
        before: `[height, width]` float32 on the CPU, the base's maps: shares of attention, 0 to 1.
        after: the same recombined. Coefficients are signed, so these may be negative or above 1.
        layers: the number of cross-attention layers of this resolution.
    """

    before: Tensor
    after: Tensor
    layers: int


class WordRecorder:
    """What `recording` adds up, by attention path."""

    def __init__(self, unet: UNet2DConditionModel, positions: Sequence[int]) -> None:
        self.unet = unwrapped(unet)
        index = torch.tensor(positions)
        self.layers = {path: _Layer(attn, index) for path, attn in select_layers(unet, CROSS).items()}
        self.size = (0, 0)  # of the latents

    def register(self) -> list[RemovableHandle]:
        """Start to listen."""
        layers = self.layers.values()
        hooks = [layer.attn.register_forward_hook(layer.after_layer, with_kwargs=True) for layer in layers]
        return [self.unet.register_forward_pre_hook(self._before_unet, with_kwargs=True), *hooks]

    def layer_means(self) -> dict[str, Tensor]:
        """The mean over heads and steps of each layer, `[2, N]`: before and after.

        Raises:
            StudioError: nothing was drawn, or the layers were not asked one by one (a compiled UNet).
        """
        if not all(layer.steps for layer in self.layers.values()):
            raise StudioError(
                "no attention maps were recorded: nothing was drawn meanwhile, or the UNet is compiled; draw with the "
                "UNet as it was loaded"
            )
        return {path: layer.sums / layer.steps for path, layer in self.layers.items()}

    def maps(self) -> list[WordMap]:
        """The maps by resolution, the finest first.

        Raises:
            StudioError: see `layer_means`.
        """
        by_length: dict[int, list[Tensor]] = {}
        for means in self.layer_means().values():
            by_length.setdefault(means.shape[-1], []).append(means)
        found = []
        for length, group in sorted(by_length.items(), reverse=True):
            before, after = torch.stack(group).mean(0).view(2, *_grid(length, *self.size)).cpu()  # [height, width] each
            found.append(WordMap(before, after, len(group)))
        return found

    def _before_unet(self, unet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        sample = args[0] if args else kwargs["sample"]
        self.size = sample.shape[-2:]


@contextmanager
def recording(unet: UNet2DConditionModel, positions: Sequence[int]) -> Iterator[WordRecorder]:
    """Record how much one picture attends to some tokens, while it is drawn as it would be without: bitwise the same.

    What is recorded is the last row of each batch: with guidance, the conditional branch of a picture drawn alone.
    Nothing is kept but one sum per layer.

    Args:
        unet: with or without coefficients; without, before is after.
        positions: of the tokens in the prompt, as `word_positions` gives them.

    Raises:
        AttachmentError: the UNet has no cross-attention.
    """
    recorder = WordRecorder(unet, positions)
    handles = recorder.register()
    try:
        yield recorder
    finally:
        for handle in handles:
            handle.remove()


def word_positions(tokenizer: Any, prompt: str, word: str) -> list[int]:
    """Where the tokens of a word stand in a prompt as the pipeline encodes it, wherever the word comes.

    Whole words only, whatever their case: "cat" is not in "cats", nor in "sks cat" where that is a learned trigger, a
    word of its own.

    Args:
        tokenizer: the pipeline's, with the triggers of the subjects that are loaded.
        word: one word or several that follow each other, of any number of tokens.

    Raises:
        StudioError: it is not in the prompt, or behind the last token that the base reads. The message lists the words.
    """
    words, sought = _words(tokenizer, prompt), [one.ids for one in _words(tokenizer, word)]
    spelled = [one.ids for one in words]
    starts = [i for i in range(len(words)) if sought and spelled[i : i + len(sought)] == sought]
    positions = sorted({place for i in starts for one in words[i : i + len(sought)] for place in one.places})
    readable = tokenizer.model_max_length - 1  # the last token is the end's
    if positions and positions[0] >= readable:
        raise StudioError(f"the word {cut(word)!r} stands behind the {readable - 1} tokens that the base reads")
    if not positions:
        asked = f"the word {cut(word)!r} is not in the prompt" if sought else "choose a word of the prompt"
        listed = ", ".join(dict.fromkeys(one.text for one in words if any(map(str.isalnum, one.text))))
        raise StudioError(f"{asked}; its words are: {cut(listed, 400) or '(none)'}")
    return [place for place in positions if place < readable]


class _Layer:
    """One cross-attention layer while it is listened to.

    Attributes:
        sums: `[2, N]` float32, before and after, summed over `steps`.
    """

    def __init__(self, attn: Any, positions: Tensor) -> None:
        self.attn, self.positions = attn, positions
        self.sums = torch.zeros(2, 1)
        self.steps = 0

    @torch.no_grad()
    def after_layer(self, attn: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Forward hook. Computes the maps anew: no processor hands them out, and the fast ones never have them."""
        hidden = (args[0] if args else kwargs["hidden_states"])[-1:]  # [1, N, C]
        context = (args[1] if len(args) > 1 else kwargs["encoder_hidden_states"])[-1:]  # [1, M, E]
        if attn.norm_cross:
            context = attn.norm_encoder_hidden_states(context)
        projected = attn.to_q(hidden), attn.to_k(context)  # [1, N or M, H*D]
        query, key = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in projected)  # [1, H, N or M, D]
        if attn.norm_q is not None:
            query = attn.norm_q(query)
        if attn.norm_k is not None:
            key = attn.norm_k(key)
        # The pipelines of Stable Diffusion give cross-attention no mask.
        maps = (query.float() * attn.scale @ key.float().mT).softmax(-1)  # [1, H, N, M]
        word = mixed = maps[..., self.positions.to(maps.device)].sum(-1, keepdim=True)  # [1, H, N, 1]
        coeff = attn.processor.coeff if isinstance(attn.processor, CoeffAttnProcessor) else None
        if coeff is not None:  # [H, H], or [B, H, H]: zero where nothing acts on this row
            mixed = recombine(word, (coeff[-1] if coeff.ndim == 3 else coeff).to(word.device))
        self.sums = self.sums.to(word.device) + torch.stack([word, mixed]).mean(2).view(2, -1)
        self.steps += 1


@dataclass(frozen=True)
class _Word:
    ids: list[int]  # of its tokens
    places: list[int]  # where they stand
    text: str  # as it was written; empty for all but the first token of a learned trigger


def _words(tokenizer: Any, text: str) -> list[_Word]:
    """The words of a text as the tokenizer splits it; a learned trigger is one for each of its tokens."""
    encoding = tokenizer(text, return_offsets_mapping=True, verbose=False)
    numbered = [(number, place) for place, number in enumerate(encoding.word_ids()) if number is not None]
    words, end = [], 0
    for _, group in groupby(numbered, key=lambda item: item[0]):
        places = [place for _, place in group]
        # From where the last word ended: of a trigger the tokenizer knows the end alone.
        start, end = end, encoding.offset_mapping[places[-1]][1]
        words.append(_Word([encoding.input_ids[place] for place in places], places, text[start:end].strip()))
    return words


def _grid(length: int, height: int, width: int) -> tuple[int, int]:
    """The resolution that has so many places: that of the latents, halved until it fits, odd sides rounded up."""
    while height * width > length:
        height, width = (height + 1) // 2, (width + 1) // 2
    if height * width != length:
        raise StudioError(f"the maps have {length} places, which is no size this picture is halved to")
    return height, width
