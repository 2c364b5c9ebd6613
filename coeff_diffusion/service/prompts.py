"""Prompts while they are written: the words of subjects in them, and what the base makes of them."""

from collections.abc import Collection
from functools import lru_cache
from pathlib import Path

from ..inference.prompt_reader import PromptReading
from ..inference.request import DrawRequest
from ..inference.trigger import with_trigger, without_trigger
from ..sources.open import open_subject
from ..subject.coefficients import Coefficients
from ..subject.errors import CoefficientsError
from ..subject.info import CoefficientsInfo
from ..subject.user_file import version_of
from .loading import SubjectLoader

REMEMBERED = 16  # subjects that are not read again with every letter


class Prompts:
    """Helps to write prompts for the subjects of a library. Nothing here waits for a drawing."""

    def __init__(self, loader: SubjectLoader) -> None:
        self.loader = loader
        self._open = lru_cache(REMEMBERED)(lambda path, version: open_subject(path))

    def read(self, request: DrawRequest) -> PromptReading:
        """What the base reads of a request's prompts; a subject that is gone or damaged is left to the drawing.

        Args:
            request: with its guidance known.
        """
        found = {name: subject for name in request.subjects if (subject := self._subject(name)) is not None}
        return self.loader.studio.reader.read(request, found)

    def trigger(self, name: str) -> str:
        """The words that call a subject up; empty where there are none, or the subject cannot be read."""
        return self._info(name).trigger

    def written(self, prompt: str, names: Collection[str], gone: Collection[str] = ()) -> str:
        """The prompt with the words of these subjects written into it.

        Args:
            gone: subjects whose words are taken out.
        """
        for name in gone:
            if (info := self._info(name)).trigger:
                untouched = prompt.strip() == first_prompt(info)
                prompt = "" if untouched else without_trigger(prompt, info.trigger, info.class_word)
        infos = [info for name in names if (info := self._info(name)).trigger]
        for info in infos:
            if not prompt.strip():
                prompt = first_prompt(info)
            others = [other.trigger for other in infos if other is not info]
            prompt = with_trigger(prompt, info.trigger, info.class_word, others)
        return prompt

    def _info(self, name: str) -> CoefficientsInfo:
        subject = self._subject(name)
        return CoefficientsInfo() if subject is None else subject.info

    def _subject(self, name: str) -> Coefficients | None:
        try:
            path: Path = self.loader.library.path(name)
            return self._open(path, version_of(path.stat()))
        except (CoefficientsError, OSError):
            return None


def first_prompt(info: CoefficientsInfo) -> str:
    """What to draw with a subject to see it: the prompt it was trained on, or its trigger."""
    return info.instance_prompt or (f"a {info.trigger}" if info.trigger else "")
