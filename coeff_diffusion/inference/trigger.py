"""The trigger: the words that call a subject up, found in prompts.

One rule, run by one regular expression engine, decides both what the gate sees and what the tokenizer replaces: case,
Unicode form and runs of white space do not matter, word boundaries do. "Sks  dog" and "sks dog's" hold the trigger
"sks dog"; "sks dogs" does not.
"""

import functools
import re
import unicodedata
from collections.abc import Collection, Iterator
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
    return re.sub(_written(trigger), lambda _: words, unicodedata.normalize("NFC", prompt), flags=re.IGNORECASE)


def with_trigger(prompt: str, trigger: str, class_word: str, others: Collection[str] = ()) -> str:
    """The prompt with the trigger written into it: in place of the first class word, else at its end.

    Args:
        others: triggers whose words stay.
    """
    if contains_trigger(prompt, trigger):
        return prompt
    text = unicodedata.normalize("NFC", prompt)
    theirs = "|".join([*(_written(other) for other in others if canonical(other)), r"(?!)"])
    if canonical(class_word):
        found = re.finditer(rf"(?:{theirs})|(?P<word>{_written(class_word)})", text, re.IGNORECASE)
        if place := next((one.span("word") for one in found if one["word"]), None):
            return f"{text[: place[0]]}{trigger}{text[place[1] :]}"
    return ", ".join(filter(None, (text.strip(" ,"), trigger)))


def without_trigger(prompt: str, trigger: str, class_word: str) -> str:
    """The prompt without the trigger: what was added at its end is gone, anywhere else the class word stands there."""
    text = unicodedata.normalize("NFC", prompt)
    shorter = re.sub(rf",\s*{_written(trigger)}[\s,]*$", "", text, flags=re.IGNORECASE)
    return shorter if shorter != text else replace_trigger(prompt, trigger, class_word).strip()


def _written(trigger: str) -> str:
    """A regular expression that finds the trigger as people write it."""
    return trigger_pattern(trigger).replace(r"\ ", r"\s+")


def trigger_pattern(trigger: str) -> str:
    """A regular expression that finds the trigger in canonical text; valid for Python and for tokenizers."""
    return rf"(?<!\w){re.escape(canonical(trigger))}(?!\w)"


@functools.lru_cache
def replacing(trigger: str, words: str) -> normalizers.Replace:
    return normalizers.Replace(Regex(trigger_pattern(trigger)), words)
