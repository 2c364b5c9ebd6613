"""Triggers in prompts that Forge encodes: read as what they have learned, by Forge's own textual inversion.

Legend: D channels of a token embedding, T text positions of a conditioning.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from coeff_diffusion.inference.trigger import canonical, contains_trigger, triggers_clash
from coeff_diffusion.subject.coefficients import Coefficients
from coeff_diffusion.subject.errors import CoefficientsError, cut

# Forge's text engines by the name of the text encoder in diffusers; Stable Diffusion 1.x and 2.x have one alone.
ENGINES = {
    "text_encoder": ("text_processing_engine", "text_processing_engine_l"),
    "text_encoder_2": ("text_processing_engine_g",),
}


@dataclass(frozen=True, eq=False)
class Word:
    """What Forge's textual inversion knows of a word.

    Attributes:
        vec: `[vectors, D]` by the engine's `embedding_key`.
    """

    name: str
    vec: Mapping[str, Tensor]
    vectors: int


class Known(NamedTuple):
    """A word that an engine has been taught, and what it knew under this name before."""

    database: Any
    name: str
    before: Any


def engines_of(sd_model: Any) -> dict[str, Any]:
    """Forge's text engines by the name of the text encoder in diffusers.

    Raises:
        CoefficientsError: it is no Stable Diffusion, or not Forge's.
    """
    found = {
        owner: getattr(sd_model, name) for owner, names in ENGINES.items() for name in names if hasattr(sd_model, name)
    }
    if not all(hasattr(engine, "embeddings") for engine in found.values()) or "text_encoder" not in found:
        raise CoefficientsError(
            f"this model is a {type(sd_model).__name__}; expected Forge's Stable Diffusion 1.x, 2.x or XL"
        )
    return found


def teach(sd_model: Any, subjects: Iterable[Coefficients]) -> list[Known]:
    """Let Forge read the triggers of subjects as their learned vectors; `forget` takes that back.

    Raises:
        CoefficientsError: no text encoder that a subject has a token for, one of another width, or two triggers that
            no prompt could tell apart. Nothing is taught then.
    """
    engines, known = engines_of(sd_model), list[Known]()
    words = [(subject, engines[owner], token) for subject, owner, token in _checked(engines, list(subjects))]
    for subject, engine, token in words:
        name, database = canonical(subject.info.trigger), engine.embeddings
        known.append(Known(database, name, database.word_embeddings.get(name)))
        database.register_embedding_by_name(Word(name, {engine.embedding_key: token}, len(token)), name)
    return known


def forget(known: Sequence[Known]) -> None:
    """Take back what `teach` did."""
    for one in reversed(known):
        one.database.register_embedding_by_name(one.before, one.name)


def _engine(engines: Mapping[str, Any], owner: str) -> Any:
    if owner not in engines:
        raise CoefficientsError(f"the subject has a token for {owner}, which this model does not have")
    return engines[owner]


def _checked(engines: Mapping[str, Any], subjects: Sequence[Coefficients]) -> list[tuple[Coefficients, str, Tensor]]:
    found = []
    for number, subject in enumerate(subjects):
        trigger = subject.info.trigger
        for other in subjects[:number]:
            if (subject.tokens or other.tokens) and triggers_clash(trigger, other.info.trigger):
                raise CoefficientsError(
                    f"the triggers {trigger!r} and {other.info.trigger!r} clash: a prompt could not call up one "
                    "without the other; choose one of the two, or blend them"
                )
        for owner, token in subject.tokens.items():
            encoder = _engine(engines, owner).text_encoder.transformer.text_model
            width = encoder.embeddings.token_embedding.weight.shape[1]
            if token.shape[1] != width:
                raise CoefficientsError(
                    f"the subject's token has {token.shape[1]} channels, but {owner} of this model has {width}: it was "
                    f"trained on {cut(subject.info.base_model) or 'another base'}"
                )
            found.append((subject, owner, token))
    return found


def called(sd_model: Any, subject: Coefficients, prompt: str) -> tuple[bool, Tensor | None]:
    """Whether a prompt has a subject's trigger, and where its vectors stand, `[T]`: their numbers, else -1; None where
    the trigger has learned none."""
    trigger = canonical(subject.info.trigger)
    owner = next(iter(subject.tokens), "")
    if not owner:
        return contains_trigger(prompt, trigger), None
    batches, _ = _engine(engines_of(sd_model), owner).process_texts([prompt])
    places = [torch.full((len(chunk.tokens),), -1) for chunk in batches[0]]
    for place, chunk in zip(places, batches[0], strict=True):
        for offset, word in chunk.fixes:
            if word.name == trigger:
                place[offset + 1 : offset + 1 + word.vectors] = torch.arange(word.vectors)  # behind the start token
    text = torch.cat(places)
    return bool((text >= 0).any()), text
