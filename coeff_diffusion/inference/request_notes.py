"""What is probably not meant in a drawing: one sentence each, for the user."""

from collections.abc import Iterable, Mapping
from typing import Any

from ..subject.coefficients import Coefficients
from .cut_off import cut_notes, cut_trigger
from .prompt_syntax import syntax_notes
from .request import DrawRequest
from .trigger import contains_trigger, reads_trigger


def request_notes(
    tokenizers: Mapping[str, Any], subjects: Mapping[str, Coefficients], request: DrawRequest
) -> list[str]:
    """All of it.

    Args:
        tokenizers: by text encoder, with the triggers of the subjects taught.
        subjects: those that are loaded, by name.
        request: with every open choice made.
    """
    assert request.steps is not None
    notes = prompt_notes(tokenizers, subjects, request)
    if any(request.subjects.values()) and not any(map(request.acts_in, range(request.steps))):
        notes.append(
            f"none of the {request.steps} steps lies between {request.begin:g} and {request.end:g} of denoising, so no "
            "subject acts"
        )
    return notes


def prompt_notes(
    tokenizers: Mapping[str, Any], subjects: Mapping[str, Coefficients], request: DrawRequest
) -> list[str]:
    """What its prompts alone tell: subjects that they do not call up, what is not read, what means nothing here.

    Args:
        request: with its guidance known. The rest is as in `request_notes`.
    """
    notes = []
    for name, subject in subjects.items():
        trigger = subject.info.trigger
        called = _calls(request.texts(tokenizers).values(), trigger)
        if _is_gated(request, name, subject) and not called:
            notes.append(f"the prompt does not contain {trigger!r}, so {name!r} does not act")
        if name not in request.subjects and called and subject.tokens:
            read = f", which is read as {word!r}" if (word := subject.info.class_word) else ""
            notes.append(f"{name!r} does not take part, but the prompt contains its learned word {trigger!r}{read}")
    notes += unread_notes(tokenizers, subjects, request)
    return [*notes, *syntax_notes(request.prompt, request.negative_prompt, request.prompt_2)]


def unread_notes(
    tokenizers: Mapping[str, Any], subjects: Mapping[str, Coefficients], request: DrawRequest
) -> list[str]:
    """What of the prompts the text encoders do not read, the triggers in it first. The arguments are the same."""
    assert request.guidance_scale is not None
    notes, texts = [], request.texts(tokenizers)
    for name, subject in subjects.items():
        trigger = subject.info.trigger
        read = any(reads_trigger(tokenizers[encoder], text, trigger) for encoder, text in texts.items())
        if _calls(texts.values(), trigger) and not read:
            notes.append(cut_trigger(trigger, name, _is_gated(request, name, subject)))
    notes += cut_notes(tokenizers, texts, "prompt")
    if request.guidance_scale > 1:
        notes += cut_notes(tokenizers, dict.fromkeys(tokenizers, request.negative_prompt), "negative prompt")
    return notes


def _calls(texts: Iterable[str], trigger: str) -> bool:
    return bool(trigger) and any(contains_trigger(text, trigger) for text in texts)


def _is_gated(request: DrawRequest, name: str, subject: Coefficients) -> bool:
    info = subject.info
    return bool(request.subjects.get(name) and info.trigger) and (request.gate or info.gate) == "trigger"
