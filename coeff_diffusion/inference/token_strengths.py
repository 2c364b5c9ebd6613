"""A subject's strength in the words of a prompt: from its class word (0) to its learned trigger (1) and beyond.

At 0 the class word stands in the trigger's place, so that the base reads just that: bitwise the base's own picture.
Between, and beyond 1, the trigger's vectors lie on the line from the class word's embedding, where training starts, to
what was learned.

Legend: P prompts of an encoding.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from ..subject.errors import CoefficientsError
from .trigger import contains_trigger, replace_trigger
from .trigger_tokens import TriggerEmbedding


@dataclass(frozen=True)
class Word:
    """The trigger of a subject with learned vectors.

    Attributes:
        class_word: stands in its place at strength 0; may be empty, then the vectors are those of the trigger's words.
        keys: what its vectors are called, by text encoder.
    """

    name: str
    trigger: str
    class_word: str
    keys: Mapping[str, str]


@contextmanager
def at_strengths(
    given: dict[str, Any],
    words: Collection[Word],
    strengths: Sequence[Mapping[str, float]],
    embeddings: Mapping[str, TriggerEmbedding],
) -> Iterator[None]:
    """Let an encoding read each trigger at the strength of its subject in each picture.

    Args:
        given: the arguments of `encode_prompt`; the prompts in it are exchanged where a trigger has strength 0.
        strengths: by name, one mapping for all pictures or one for each.
        embeddings: by text encoder.

    Raises:
        CoefficientsError: pictures of one prompt have different strengths.
    """
    each = of_prompts(given, strengths)
    if each is None:  # an error, or no concern, of whoever draws with these prompts
        yield
        return
    with ExitStack() as stack:
        for word in words:
            rows = [one_strength(word.name, pictures) for pictures in each]
            if word.class_word:
                _exchange(given, word, rows)
            for owner, key in word.keys.items():
                stack.enter_context(embeddings[owner].at_strengths(key, rows))
        yield


def of_prompts(
    given: Mapping[str, Any], strengths: Sequence[Mapping[str, float]]
) -> list[Sequence[Mapping[str, float]]] | None:
    """The strengths in the pictures of each prompt of an encoding, `[P]`; None where they are not as many.

    Args:
        given: the arguments of `encode_prompt`.
        strengths: by name, one mapping for all pictures or one for each.
    """
    images = int(given.get("num_images_per_prompt") or given.get("num_videos_per_prompt") or 1)
    count = max((len(_listed(given.get(argument))) for argument in ("prompt", "prompt_2")), default=0)
    if len(strengths) not in (1, count * images):
        return None
    starts = [i * images for i in range(count)]
    return [strengths if len(strengths) == 1 else strengths[start : start + images] for start in starts]


def one_strength(name: str, pictures: Sequence[Mapping[str, float]]) -> float:
    """The strength of a subject in all pictures of one prompt.

    Raises:
        CoefficientsError: they have different ones.
    """
    found = {float(one.get(name, 0)) for one in pictures}
    if len(found) > 1:
        raise CoefficientsError(
            f"pictures of one prompt have {name!r} at strengths {sorted(found)}, but a prompt is read once for "
            "all of them; give the prompt as a list, once for each picture"
        )
    return found.pop()


def _exchange(given: dict[str, Any], word: Word, rows: Sequence[float]) -> None:
    """Put the class word in place of the trigger in all prompts of strength 0."""
    for argument in [name for name in given if name.removeprefix("negative_") in ("prompt", "prompt_2")]:
        texts = _listed(given[argument])
        if isinstance(given[argument], str) and len(set(map(bool, rows))) > 1:
            texts = given[argument] = texts * len(rows)  # a negative prompt of all pictures, read differently in each
        if len(texts) not in (1, len(rows)) or not any(contains_trigger(text, word.trigger) for text in texts):
            continue
        own = rows if len(texts) > 1 else rows[:1]
        changed = [
            text if strength else replace_trigger(text, word.trigger, word.class_word)
            for text, strength in zip(texts, own, strict=True)
        ]
        given[argument] = changed[0] if isinstance(given[argument], str) else changed


def _listed(prompt: Any) -> list[str]:
    return [prompt] if isinstance(prompt, str) else list(prompt or ())
