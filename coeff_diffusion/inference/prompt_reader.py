"""Reading a prompt as the text encoders would, while it is being written: how long it is, and what is not meant."""

import copy
import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..families.registry import encoders_of, tokenizers_of
from ..subject.coefficients import Coefficients
from .request import DrawRequest
from .request_notes import prompt_notes
from .trigger import canonical, token_count
from .trigger_tokens import TriggerEmbedding, taught


@dataclass(frozen=True)
class PromptReading:
    """What is known of a prompt before it is drawn.

    Attributes:
        tokens: by text encoder, how many the prompt has, those for its beginning and its end counted, and how many of
            them the encoder reads.
        notes: one sentence each about what is probably not meant.
    """

    tokens: Mapping[str, tuple[int, int]]
    notes: list[str]

    def __str__(self) -> str:
        counts = [f"{there}/{most} tokens" for there, most in self.tokens.values()]
        if len(set(counts)) == 1:
            return counts[0]
        return ", ".join(f"{count} in text encoder {number}" for number, count in enumerate(counts, start=1))


class PromptReader:
    """Reads prompts with tokenizers of its own, so that nobody has to wait while the pipeline draws.

    Args:
        pipe: at rest; subjects may be loaded.
    """

    def __init__(self, pipe: Any) -> None:
        encoders = encoders_of(pipe)
        self._plain = {name: (one, _untaught(one, encoders[name])) for name, one in tokenizers_of(pipe).items()}
        self._taught = lru_cache(1)(self._teach)
        self._lock = threading.Lock()  # of tokenizers, which are set before they count

    def read(self, request: DrawRequest, subjects: Mapping[str, Coefficients]) -> PromptReading:
        """What the text encoders make of the prompts of a request.

        Args:
            request: with its guidance known.
            subjects: those that it asks for, by name.
        """
        with self._lock:
            tokenizers = self._tokenizers(subjects.values())
            tokens = {
                name: (token_count(tokenizers[name], text), tokenizers[name].model_max_length)
                for name, text in request.texts(tokenizers).items()
            }
            return PromptReading(tokens, prompt_notes(tokenizers, subjects, request))

    def _tokenizers(self, subjects: Iterable[Coefficients]) -> dict[str, Any]:
        learned = {
            (name, canonical(subject.info.trigger), len(subject.tokens[name]))
            for subject in subjects
            for name in self._plain.keys() & subject.tokens.keys()
            if re.search(r"\w", subject.info.trigger)
        }
        return self._taught(frozenset(learned))

    def _teach(self, learned: frozenset[tuple[str, str, int]]) -> dict[str, Any]:
        found = {}
        for name, (tokenizer, backend) in self._plain.items():
            found[name] = own = copy.copy(tokenizer)
            own._tokenizer, _ = taught(backend, {trigger: count for one, trigger, count in learned if one == name})
        return found


def _untaught(tokenizer: Any, text_encoder: Any) -> Any:
    """What a tokenizer computes with where it knows no trigger."""
    embedding = text_encoder.get_input_embeddings()
    return embedding.base_backend if isinstance(embedding, TriggerEmbedding) else tokenizer._tokenizer
