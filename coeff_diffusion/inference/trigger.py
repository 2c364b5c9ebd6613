"""The trigger: the words that call a subject up, found in prompts.

One rule, run by one regular expression engine, decides both what the gate sees and what the tokenizer replaces: case,
Unicode form and runs of white space do not matter, word boundaries do. "Sks  dog" and "sks dog's" hold the trigger
"sks dog"; "sks dogs" does not.
"""

import functools
import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tokenizers import Encoding, Regex, normalizers

# As CLIP's own tokenizer does it: composed, single spaces, lower case.
CANONICAL = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])


def canonical(text: str) -> str:
    """A text as CLIP's tokenizer sees it."""
    return CANONICAL.normalize_str(text).strip()


def contains_trigger(prompt: str, trigger: str) -> bool:
    """Whether a prompt calls up the subject of `trigger`."""
    prompt = CANONICAL.normalize_str(prompt)
    return replacing(trigger, "").normalize_str(prompt) != prompt


def reads_trigger(tokenizer: Any, prompt: str, trigger: str) -> bool:
    """Whether a text encoder reads the whole trigger in a prompt; not where it stands behind the last token it takes.

    Args:
        tokenizer: the text encoder's.
    """
    if not contains_trigger(prompt, trigger):
        return False
    whole = canonical(prompt)
    found = re.search(trigger_pattern(trigger), whole)
    beginning = whole[: found.end()] if found else whole
    return token_count(tokenizer, beginning) <= tokenizer.model_max_length


def token_count(tokenizer: Any, text: str) -> int:
    """How many tokens a text has, those for its beginning and its end included, however many an encoder reads."""
    return len(whole_encoding(tokenizer, text).ids)


def whole_encoding(tokenizer: Any, text: str) -> Encoding:
    """All tokens of a text, those for its beginning and its end included, however many an encoder reads."""
    with untruncated(tokenizer) as backend:
        return backend.encode(text)


@contextmanager
def untruncated(tokenizer: Any) -> Iterator[Any]:
    """What a tokenizer computes with, set to give all tokens and no padding; then as whoever used it last left it."""
    backend = tokenizer._tokenizer
    truncation, padding = backend.truncation, backend.padding
    backend.no_truncation()
    backend.no_padding()
    try:
        yield backend
    finally:
        if truncation is not None:
            backend.enable_truncation(**truncation)
        if padding is not None:
            backend.enable_padding(**padding)


def triggers_clash(first: str, second: str) -> bool:
    """Whether no prompt could call up one of two triggers without the other."""
    return bool(first and second) and (contains_trigger(first, second) or contains_trigger(second, first))


def replace_trigger(prompt: str, trigger: str, words: str) -> str:
    """The prompt with other words in place of the trigger, the rest as it was written."""
    pattern = trigger_pattern(trigger).replace(r"\ ", r"\s+")
    return re.sub(pattern, lambda _: words, unicodedata.normalize("NFC", prompt), flags=re.IGNORECASE)


def trigger_pattern(trigger: str) -> str:
    """A regular expression that finds the trigger in canonical text; valid for Python and for tokenizers."""
    return rf"(?<!\w){re.escape(canonical(trigger))}(?!\w)"


@functools.lru_cache
def replacing(trigger: str, words: str) -> normalizers.Replace:
    return normalizers.Replace(Regex(trigger_pattern(trigger)), words)
