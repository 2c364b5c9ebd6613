"""The trigger: the words that call a subject up, found in prompts.

One rule, run by one regular expression engine, decides both what the gate sees and what the tokenizer replaces: case,
Unicode form and runs of white space do not matter, word boundaries do. "Sks  dog" and "sks dog's" hold the trigger
"sks dog"; "sks dogs" does not.
"""

import functools
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from tokenizers import Encoding, NormalizedString, Regex, normalizers

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
    beginning = ""
    for _, piece in pieces_at(prompt, trigger):
        beginning += piece
        if piece == canonical(trigger):
            return token_count(tokenizer, beginning.strip()) <= tokenizer.model_max_length
    return False


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


def pieces_at(text: str, *phrases: str) -> list[tuple[str, str]]:
    """A text cut up where phrases stand, of several that fit the first: each piece as it was written, and in canonical
    form, by which the phrases are known."""
    whole = NormalizedString(text)
    CANONICAL.normalize(whole)
    pattern = "|".join(trigger_pattern(phrase) for phrase in phrases if canonical(phrase)) or "(?!)"
    return [(piece.original, piece.normalized) for piece in whole.split(Regex(pattern), "isolated")]


def replace_trigger(prompt: str, trigger: str, words: str) -> str:
    """The prompt with other words in place of the trigger, the rest as it was written."""
    name = canonical(trigger)
    return "".join(words if piece == name else written for written, piece in pieces_at(prompt, trigger))


def with_trigger(prompt: str, trigger: str, class_word: str, others: Collection[str] = ()) -> str:
    """The prompt with the trigger written into it: in place of the first class word, else at its end.

    Args:
        others: triggers whose words stay.
    """
    if contains_trigger(prompt, trigger):
        return prompt
    pieces, word = pieces_at(prompt, *others, class_word), canonical(class_word)
    theirs = {canonical(other) for other in others}
    place = next((i for i, (_, piece) in enumerate(pieces) if word and piece == word and piece not in theirs), None)
    if place is not None:
        return "".join(trigger if i == place else written for i, (written, _) in enumerate(pieces))
    return ", ".join(filter(None, (prompt.strip(" ,"), trigger)))


def without_trigger(prompt: str, trigger: str, class_word: str) -> str:
    """The prompt without the trigger: what was added at its end is gone, anywhere else the class word stands there."""
    pieces, name = pieces_at(prompt, trigger), canonical(trigger)
    place = next((i for i, (_, piece) in reversed([*enumerate(pieces)]) if piece == name), None)
    if place is not None:
        before, behind = ("".join(written for written, _ in part) for part in (pieces[:place], pieces[place + 1 :]))
        if (comma := re.search(r",\s*$", before)) and re.fullmatch(r"[\s,]*", behind):
            return before[: comma.start()]
    return replace_trigger(prompt, trigger, class_word).strip()


def trigger_pattern(trigger: str) -> str:
    """A regular expression that finds the trigger in canonical text; valid for Python and for tokenizers."""
    return rf"(?<!\w){re.escape(canonical(trigger))}(?!\w)"


@functools.lru_cache
def replacing(trigger: str, words: str) -> normalizers.Replace:
    return normalizers.Replace(Regex(trigger_pattern(trigger)), words)
