"""Prompts in words that a base, or a refiner, knows: class words in place of triggers."""

from collections.abc import Mapping
from dataclasses import replace

from ..subject.coefficients import Coefficients
from .request import DrawRequest, StudioError
from .trigger import contains_trigger, replace_trigger


def in_base_words(
    prompt: str, subjects: Mapping[str, Coefficients], way_out: str = "give the base its own prompt"
) -> str:
    """The prompt with every subject's trigger replaced by its class word.

    Args:
        way_out: what to do where that cannot be, for the error.

    Raises:
        StudioError: a trigger in it belongs to a subject that does not record its class word.
    """
    for name, subject in subjects.items():
        trigger, class_word = subject.info.trigger, subject.info.class_word
        if not trigger or not contains_trigger(prompt, trigger):
            continue
        if not class_word:
            raise StudioError(
                f"subject {name!r} does not record its class word, so the base's prompt cannot be derived from "
                f"{trigger!r}; {way_out}"
            )
        prompt = replace_trigger(prompt, trigger, class_word)
    return prompt


def for_refiner(request: DrawRequest, subjects: Mapping[str, Coefficients]) -> DrawRequest:
    """The request with prompts that a refiner can read, which knows no trigger.

    Raises:
        StudioError: as `in_base_words`.
    """

    def read(prompt: str) -> str:
        return in_base_words(prompt, subjects, "the refiner needs it; draw without the refiner")

    prompt_2, negative = read(request.prompt_2), read(request.negative_prompt)
    return replace(request, prompt=read(request.prompt), prompt_2=prompt_2, negative_prompt=negative)
