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
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..method.attachment import CoeffConfig, acting_coeffs, is_attached, select_layers, unwrapped
from ..method.interception import Call, Interceptor
from ..method.recombination import recombine, recombined_attention
from ..subject.errors import cut
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
        self.modules = select_layers(unet, CROSS)
        index = torch.tensor(positions)
        self.layers = {path: _Layer(self.unet, path, index) for path in self.modules}
        self.size = (0, 0)  # of the latents

    def register(self) -> list[RemovableHandle]:
        """Start to listen."""
        hooks = [hook for path, layer in self.layers.items() for hook in layer.register(self.modules[path])]
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


class _Layer(Interceptor):
    """One cross-attention layer while it is listened to.

    Attributes:
        sums: `[2, N]` float32, before and after, summed over `steps`.
    """

    def __init__(self, unet: nn.Module, path: str, positions: Tensor) -> None:
        self.unet, self.path, self.positions = unet, path, positions
        self.sums = torch.zeros(2, 1)
        self.steps = 0

    def attention(self, layer: nn.Module, call: Call) -> Tensor:
        """What it would be without. The maps are computed beside it: the fast ways never have them."""
        self._record(call.spelled_out().of_samples(torch.tensor([-1])))
        return call.plain()

    @torch.no_grad()
    def _record(self, call: Call) -> None:
        heads, keys = call.key.shape[1:3]
        marked = call.query.new_zeros(1, heads, keys, 1, dtype=torch.float32)
        marked[:, :, self.positions] = 1  # attention to such values is the sum of these columns of the maps
        zero = marked.new_zeros(heads, heads)
        word = mixed = recombined_attention(  # [1, H, N, 1]
            call.query.float(), call.key.float(), marked, zero, call.attn_mask, call.scale
        )
        coeff = acting_coeffs(self.unet).get(self.path) if is_attached(self.unet) else None
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
