"""What is probably not meant in a drawing: one sentence each, for the user."""

from collections.abc import Iterable, Mapping
from typing import Any

from ..families.registry import encoders_of, tokenizer_name
from ..subject.coefficients import Coefficients
from .cut_off import cut_notes, cut_trigger
from .prompt_syntax import syntax_notes
from .request import DrawRequest
from .trigger import contains_trigger, reads_trigger


def request_notes(pipe: Any, subjects: Mapping[str, Coefficients], request: DrawRequest) -> list[str]:
    """All of it.

    Args:
        subjects: those that are loaded, by name.
        request: with every open choice made.
    """
    assert request.steps is not None
    notes, encoders = [], encoders_of(pipe)
    for name, subject in subjects.items():
        trigger = subject.info.trigger
        called = _calls(request.texts(encoders).values(), trigger)
        if _is_gated(request, name, subject) and not called:
            notes.append(f"the prompt does not contain {trigger!r}, so {name!r} does not act")
        if name not in request.subjects and called and subject.tokens:
            read = f", which is read as {word!r}" if (word := subject.info.class_word) else ""
            notes.append(f"{name!r} does not take part, but the prompt contains its learned word {trigger!r}{read}")
    if any(request.subjects.values()) and not any(map(request.acts_in, range(request.steps))):
        notes.append(
            f"none of the {request.steps} steps lies between {request.begin:g} and {request.end:g} of denoising, so no "
            "subject acts"
        )
    notes += unread_notes(pipe, subjects, request)
    return [*notes, *syntax_notes(request.prompt, request.negative_prompt, request.prompt_2)]


def unread_notes(pipe: Any, subjects: Mapping[str, Coefficients], request: DrawRequest) -> list[str]:
    """What of the prompts the text encoders do not read, the triggers in it first. The arguments are the same."""
    assert request.guidance_scale is not None
    encoders, notes = list(encoders_of(pipe)), []
    texts = request.texts(encoders)
    tokenizers = [getattr(pipe, tokenizer_name(name)) for name in encoders]
    for name, subject in subjects.items():
        trigger = subject.info.trigger
        read = any(reads_trigger(one, text, trigger) for one, text in zip(tokenizers, texts.values(), strict=True))
        if _calls(texts.values(), trigger) and not read:
            notes.append(cut_trigger(trigger, name, _is_gated(request, name, subject)))
    notes += cut_notes(pipe, texts, "prompt")
    if request.guidance_scale > 1:
        notes += cut_notes(pipe, dict.fromkeys(encoders, request.negative_prompt), "negative prompt")
    return notes


def _calls(texts: Iterable[str], trigger: str) -> bool:
    return bool(trigger) and any(contains_trigger(text, trigger) for text in texts)


def _is_gated(request: DrawRequest, name: str, subject: Coefficients) -> bool:
    info = subject.info
    return bool(request.subjects.get(name) and info.trigger) and (request.gate or info.gate) == "trigger"
