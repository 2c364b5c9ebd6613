"""Pictures and prompts -> batches: everything is encoded and tokenized once, and drawn from by seed and number.

Shapes: B pictures of a batch; P prompts; T text positions, D their width.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch

from ..families.family import Conditioning
from ..images.photo import MAX_FILE, DatasetError
from ..subject.user_file import read_file
from .latents import Latents, Part, Pictures, joined
from .seeds import mixed_seed

# --- prompts ----------------------------------------------------------------------------------------------------------


class Prompts:
    """Prompts as the denoiser takes them. Constant ones are encoded once, by the base; the others whenever asked for.

    Args:
        encode: what the base makes of prompts: tensors `[P, ...]` by name (see `Family.condition`).
        texts: the prompts.
        live: which of them are read by something that is being trained: those with the trigger.
        encode_once: what the base makes of the constant ones; default: `encode`.
    """

    def __init__(
        self,
        encode: Callable[[Sequence[str]], Conditioning],
        texts: Sequence[str],
        live: Sequence[bool],
        encode_once: Callable[[Sequence[str]], Conditioning] | None = None,
    ) -> None:
        self.encode, self.texts, self.live = encode, list(texts), list(live)
        with torch.no_grad():
            constant = [i for i, is_live in enumerate(live) if not is_live]
            self.cached = _rows(encode_once or encode, self.texts, constant)

    def __len__(self) -> int:
        return len(self.texts)

    def condition(self, prompts: Sequence[int]) -> Conditioning:
        """What the denoiser is told of the given prompts, `[B, ...]` by name; one that occurs twice is encoded once."""
        rows = {**self.cached, **_rows(self.encode, self.texts, sorted({p for p in prompts if self.live[p]}))}
        return {name: torch.stack([rows[p][name] for p in prompts]) for name in rows[prompts[0]]}


def _rows(
    encode: Callable[[Sequence[str]], Conditioning], texts: Sequence[str], prompts: Sequence[int]
) -> dict[int, Conditioning]:
    """One row of each tensor for each of these prompts."""
    if not prompts:
        return {}
    found = encode([texts[p] for p in prompts])
    return {p: {name: tensor[row] for name, tensor in found.items()} for row, p in enumerate(prompts)}


# --- batches ----------------------------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """What one step trains on.

    Attributes:
        parts: its pictures, by size: those of the class are the last ones of the batch.
        prompts: the prompt of each picture, `[B]`.
        num_class: how many of them, at the end, are of the class.
    """

    parts: list[Part]
    prompts: list[int]
    num_class: int


@dataclass(frozen=True)
class TrainingSet:
    """All that a run trains on.

    Attributes:
        instance: the subject's pictures.
        prior: the class's pictures, for prior preservation.
        prompts: of all; the class prompt comes last.
        prompt_of: the prompt of each of the subject's pictures.
        held_out: other pictures of the subject, to measure on; None where there are none.
        held_out_prompt_of: the prompt of each of those.
    """

    instance: Pictures
    prior: Pictures | None
    prompts: Prompts
    prompt_of: Sequence[int]
    held_out: Pictures | None = None
    held_out_prompt_of: Sequence[int] = ()

    @property
    def probed(self) -> tuple[Latents, list[int]]:
        """The pictures that what is learned is measured on, all of one size, and the prompt of each."""
        pictures, prompt_of = self.held_out, self.held_out_prompt_of
        if pictures is None:
            pictures, prompt_of = self.instance, self.prompt_of
        shown, numbers = pictures.largest()
        return shown, [prompt_of[number] for number in numbers]

    def batch(self, position: int, size: int, seed: int, generator: torch.Generator) -> Batch:
        """The batch that begins at a position in the endless order of pictures.

        Args:
            position: how many pictures of the subject were drawn before.
            seed: decides the order; the same for the whole run.
            generator: decides views and posterior samples of this batch.
        """
        pictures = list(islice(picture_order(len(self.instance), mixed_seed(seed, -1), position), size))
        parts = self.instance.sample(pictures, generator)
        prompts = [self.prompt_of[picture] for picture in pictures]
        if self.prior is None:
            return Batch(parts, prompts, 0)
        of_class = list(islice(picture_order(len(self.prior), mixed_seed(seed, -2), position), size))
        parts += [part.behind(size) for part in self.prior.sample(of_class, generator)]
        return Batch(joined(parts), [*prompts, *[len(self.prompts) - 1] * size], size)


def picture_order(total: int, seed: int, position: int) -> Iterator[int]:
    """Pictures in random order without end, each once per round, starting anywhere.

    The picture at a position depends on nothing but `(total, seed, position)`, so a resumed run sees what the
    uninterrupted one would have seen.
    """
    round_, offset = divmod(position, total)
    while True:
        order = torch.randperm(total, generator=torch.Generator().manual_seed(mixed_seed(seed, round_))).tolist()
        yield from order[offset:]
        round_, offset = round_ + 1, 0


def fingerprint_files(paths: Sequence[Path], texts: Sequence[str], masks: Sequence[Path | None] = ()) -> str:
    """Changes when a picture, its place, prompt or mask changes: a run is only resumed on the data it began with.

    Args:
        masks: of each picture, None where it has none; empty where no picture has one.
    """
    digest = hashlib.sha256()
    for path, text in zip(paths, texts, strict=True):
        digest.update(hashlib.sha256(read_file(path, MAX_FILE, DatasetError)).digest())
        digest.update(hashlib.sha256(text.encode()).digest())
    for mask in masks if any(masks) else ():
        digest.update(b"no mask" if mask is None else hashlib.sha256(read_file(mask, MAX_FILE, DatasetError)).digest())
    return digest.hexdigest()
