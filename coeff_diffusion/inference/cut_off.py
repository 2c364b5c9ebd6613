"""What of a prompt a text encoder does not read, said in words."""

import logging
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from ..subject.errors import cut
from .trigger import whole_encoding

MOST_WORDS = 100  # characters of the words that are not read
# How diffusers and transformers say it, a learned trigger spelled as the names of its tokens.
LOGGED = ("The following part of your input was truncated", "Token indices sequence length is longer than")
LOGGERS = ("transformers.tokenization_utils_base",)  # beside that of the pipeline's file

_told = ContextVar("_told", default=False)


@dataclass(frozen=True)
class CutOff:
    """The end of a prompt that a text encoder does not read.

    Attributes:
        tokens: how many are not read, of `total`; those for the beginning and the end are counted.
        words: what they say; the first one may be read in part.
    """

    tokens: int
    total: int
    words: str

    def said(self, what: str, encoder: str = "the text encoder") -> str:
        """One sentence.

        Args:
            what: where the prompt comes from.
        """
        words = repr(cut(self.words, MOST_WORDS))
        return f"{what}: {self.tokens} of {self.total} tokens are cut off, {encoder} does not read {words}"


def cut_off(tokenizer: Any, prompt: str) -> CutOff | None:
    """What of a prompt the text encoder of this tokenizer does not read; None where it reads all.

    A learned trigger counts as its vectors. Of a word or trigger that is read in part the whole is named.
    """
    encoding = whole_encoding(tokenizer, prompt)
    total, most = len(encoding.ids), tokenizer.model_max_length
    if total <= most:
        return None
    words, places = encoding.word_ids, encoding.offsets
    first = most - 1  # the last token that is read marks the end
    while first > 1 and (words[first] == words[first - 1] or places[first] == places[first - 1]):
        first -= 1
    rest = prompt[places[first - 1][1] :]
    return CutOff(total - most, total, rest.strip() or rest)


def cut_notes(tokenizers: Mapping[str, Any], texts: Mapping[str, str], what: str) -> list[str]:
    """What text encoders do not read of a prompt: one sentence, or one each where they differ.

    Args:
        tokenizers, texts: by text encoder.
        what: as in `CutOff.said`.
    """
    found = {name: cut_off(tokenizers[name], text) for name, text in texts.items()}
    alike = len(set(found.values())) == 1
    return list(
        dict.fromkeys(one.said(what, *() if alike else (name,)) for name, one in found.items() if one is not None)
    )


def cut_trigger(trigger: str, name: str, gated: bool) -> str:
    """One sentence for a trigger that no text encoder reads to its end.

    Args:
        gated: whether the subject acts by its trigger alone.
    """
    lost = "the subject does not act" if gated else "its word is lost"
    return (
        f"the trigger {trigger!r} of {name!r} stands behind the tokens that the text encoder reads of the prompt, so "
        f"{lost}; move it to the front or shorten the prompt"
    )


# --- one voice --------------------------------------------------------------------------------------------------------


@contextmanager
def told(pipe: Any) -> Iterator[None]:
    """While a drawing runs in this thread whose notes are shown: neither `warn` nor others repeat them."""
    token = _told.set(True)
    try:
        with others_silent(pipe):
            yield
    finally:
        _told.reset(token)


def warn(message: str) -> None:
    """Warn whoever draws with a stock pipeline."""
    if not _told.get():
        warnings.warn(message, stacklevel=3)


@contextmanager
def others_silent(pipe: Any) -> Iterator[None]:
    """While a pipeline encodes in this thread, libraries do not log what is cut off."""
    with ExitStack() as stack:
        for name in (pipe.encode_prompt.__module__, *LOGGERS):
            logger, repeated = logging.getLogger(name), _Repeated()
            logger.addFilter(repeated)
            stack.callback(logger.removeFilter, repeated)
        yield


class _Repeated(logging.Filter):
    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.get_ident()

    def filter(self, record: logging.LogRecord) -> bool:
        return record.thread != self.thread or not str(record.msg).startswith(LOGGED)
