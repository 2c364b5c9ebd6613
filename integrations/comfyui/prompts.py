"""Triggers in prompts that ComfyUI encodes: read as what they have learned, and noted for the sampler.

A prompt goes from the tokenizer to the text encoder as lists of (token, weight), where a token may be a vector. So the
tokenizer gives a trigger's learned vectors in its place, and the text encoder, which is handed the very same objects,
notes where they stand. The note travels in the conditioning.

Legend: D channels of a token embedding, T text positions of a conditioning.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from coeff_diffusion.inference.trigger import canonical, contains_trigger, pieces_at, triggers_clash
from coeff_diffusion.subject.coefficients import Coefficients
from coeff_diffusion.subject.errors import CoefficientsError, cut

KEY = "coeff_diffusion"
ENCODE = "encode_token_weights"
# The parts of ComfyUI's text encoders by their names in diffusers: SD 1.x has "l", 2.x "h", XL "l" and "g".
PARTS = {"text_encoder": ("l", "h"), "text_encoder_2": ("g",)}


@dataclass(frozen=True, eq=False)
class Word:
    """A trigger, in canonical form, and what it has learned.

    Attributes:
        vectors: `[D]` each, by the part of the text encoder that reads them ("l"). A part that is not named reads the
            trigger's own tokens.
    """

    trigger: str
    vectors: Mapping[str, tuple[Tensor, ...]]

    @classmethod
    def of(cls, subject: Coefficients, clip: Any) -> "Word":
        """The trigger of a subject for this text encoder.

        Raises:
            CoefficientsError: the text encoder lacks a part that the subject has a token for, or has another width.
        """
        vectors = {}
        for owner, token in subject.tokens.items():
            part = next((one for one in PARTS.get(owner, ()) if one in parts_of(clip)), None)
            if part is None:
                raise CoefficientsError(
                    f"the subject has a token for {owner}, which this CLIP does not have; it has "
                    f"{', '.join(f'clip_{one}' for one in parts_of(clip))}"
                )
            width = getattr(clip.cond_stage_model, f"clip_{part}").transformer.get_input_embeddings().weight.shape[1]
            if token.shape[1] != width:
                raise CoefficientsError(
                    f"the subject's token has {token.shape[1]} channels, but clip_{part} of this CLIP has {width}: it "
                    f"was trained on {cut(subject.info.base_model) or 'another base'}"
                )
            vectors[part] = tuple(token)
        return cls(canonical(subject.info.trigger), vectors)


@dataclass(frozen=True, eq=False)
class Prompt:
    """What a conditioning was made of.

    Attributes:
        text: the text encoder's output, `[1, T, D]`: the note holds for this tensor alone.
        called: the triggers in it.
        places: by trigger with learned vectors, `[T]`: the number of the vector that stands there, or -1; as the first
            part of the text encoder reads it.
    """

    text: Tensor
    called: frozenset[str]
    places: Mapping[str, Tensor]


class TriggerToken(int):
    """A token of a trigger that has learned none for this part of the text encoder."""

    called: frozenset[str] = frozenset()


class TriggerReader:
    """A tokenizer that gives a trigger's learned vectors instead of its tokens.

    Args:
        base: a tokenizer of transformers.
        part: of the text encoder ("l").
    """

    def __init__(self, base: Any, part: str, words: Iterable[Word]) -> None:
        self.base, self.part = base, part
        self.words = {word.trigger: word for word in words}
        self.longest_first = sorted(self.words, key=len, reverse=True)

    def __getattr__(self, name: str) -> Any:
        if name == "base":  # asked for by `copy`, before there is one
            raise AttributeError(name)
        return getattr(self.base, name)

    def __call__(self, text: str, **options: Any) -> Any:
        pieces = [piece for _, piece in pieces_at(text, *self.longest_first)]
        if not self.words.keys() & {*pieces}:
            return self.base(text, **options)
        start, end = self.base("", **options)["input_ids"]
        ids: list[Any] = []
        for piece in pieces:
            tokens = self.base(piece, **options)["input_ids"][1:-1]
            ids += self._instead(piece, tokens) if piece in self.words else tokens
        return {"input_ids": [start, *ids, end]}

    def _instead(self, trigger: str, tokens: Iterable[int]) -> Iterable[Any]:
        if vectors := self.words[trigger].vectors.get(self.part):
            return vectors
        marked = [TriggerToken(token) for token in tokens]
        for one in marked:
            one.called = frozenset(word for word in self.words if contains_trigger(trigger, word))
        return marked


class NotingEncoder:
    """A text encoder's `encode_token_weights` that puts a `Prompt` beside what it returns."""

    def __init__(self, encode: Callable[[Any], tuple[Any, ...]], words: Iterable[Word]) -> None:
        self.encode, self.words = encode, tuple(words)

    def __call__(self, tokens: Mapping[str, Any]) -> tuple[Any, ...]:
        text, pooled, *extra = self.encode(tokens)
        return text, pooled, {**(extra[0] if extra else {}), KEY: self.note(tokens, text)}

    def note(self, tokens: Mapping[str, Any], text: Tensor) -> Prompt:
        flat = {part: [one[0] for chunk in chunks for one in chunk] for part, chunks in tokens.items()}
        called = {word for part in flat.values() for token in part for word in getattr(token, "called", ())}
        places = {}
        for word in self.words:
            for part, vectors in word.vectors.items():
                number = {id(vector): n for n, vector in enumerate(vectors)}
                found = [number.get(id(token), -1) for token in flat.get(part, ())][: text.shape[1]]
                if max(found, default=-1) < 0:
                    continue
                called.add(word.trigger)
                if len(found) != text.shape[1]:
                    raise CoefficientsError(
                        f"this CLIP makes {text.shape[1]} positions of {len(found)} tokens, so nobody knows where "
                        f"{word.trigger!r} stands"
                    )
                if part == next(iter(word.vectors)):
                    places[word.trigger] = torch.tensor(found)
        return Prompt(text, frozenset(called), places)


def parts_of(clip: Any) -> list[str]:
    """The parts of a text encoder of Stable Diffusion ("l", "g")."""
    return [part for one in PARTS.values() for part in one if hasattr(clip.tokenizer, f"clip_{part}")]


def with_word(clip: Any, word: Word) -> Any:
    """A clone of a CLIP that knows one more trigger. The CLIP itself stays as it is.

    Raises:
        CoefficientsError: not a text encoder of Stable Diffusion, or another trigger stands in this one's way.
    """
    if not parts_of(clip):
        raise CoefficientsError(
            f"this CLIP reads with a {type(clip.tokenizer).__name__}; expected that of a Stable Diffusion 1.x, 2.x, XL"
        )
    encode = clip.patcher.get_model_object(ENCODE)
    known = {one.trigger: one for one in encode.words} if isinstance(encode, NotingEncoder) else {}
    for other in known.values():
        if (word.vectors or other.vectors) and triggers_clash(word.trigger, other.trigger):
            raise CoefficientsError(
                f"the trigger {word.trigger!r} clashes with {other.trigger!r}, which is applied already: a prompt "
                "could not call up one without the other; blend the subjects instead"
            )
    words = {**known, word.trigger: word}.values()
    clone = clip.clone()
    clone.tokenizer = copy.copy(clip.tokenizer)
    for part in parts_of(clip):
        reader = copy.copy(getattr(clip.tokenizer, f"clip_{part}"))
        base = reader.tokenizer.base if isinstance(reader.tokenizer, TriggerReader) else reader.tokenizer
        reader.tokenizer = TriggerReader(base, part, words)
        setattr(clone.tokenizer, f"clip_{part}", reader)
    base_encode = encode.encode if isinstance(encode, NotingEncoder) else encode
    clone.patcher.add_object_patch(ENCODE, NotingEncoder(base_encode, words))
    return clone
