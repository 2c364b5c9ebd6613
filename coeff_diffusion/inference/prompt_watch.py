"""What a pipeline is about to draw: the prompt of each picture, as far as its text encoders read it.

The pipeline stays the stock one. Two of its methods are watched while subjects are loaded: `encode_prompt`, which tells
what each picture shows, and `maybe_free_model_hooks`, with which a drawing ends. Others may encode with the same text
encoders, as a sibling made by `from_pipe` does: from then on nothing is known any more.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from torch.utils.hooks import RemovableHandle

from ..families.registry import tokenizer_name, tokenizers_of
from ..subject.errors import CoefficientsError, listed
from .cut_off import cut_notes, others_silent, warn
from .standing_in import OfPipelines, StandIn
from .trigger import contains_trigger, reads_trigger, untruncated

WATCHED = ("encode_prompt", "maybe_free_model_hooks")
Around = Callable[[dict[str, Any]], AbstractContextManager[None]]
Texts = Mapping[str, str]  # the prompt of one picture by the text encoder that reads it


class PromptWatch(OfPipelines):
    """Follows the prompts of one pipeline.

    Args:
        pipe: its text encoders are hooked until `close`.
        encoders: by the component's name.
        around: what each encoding happens in, made of its arguments by name, which it may change; may refuse it.

    Raises:
        CoefficientsError: the pipeline has no `encode_prompt`.
    """

    def __init__(self, pipe: Any, encoders: Mapping[str, Any], around: Around) -> None:
        check_watchable(pipe)
        self.pipe, self.encoders, self.around = pipe, encoders, around
        self._pictures: list[Texts | None] | None = None
        self._encodings = self._known_at = self._changes = 0
        self._handles: list[RemovableHandle] = []
        self._own: dict[str, Any] = {}  # the pipeline's own methods

    def open(self) -> None:
        """Start to follow."""
        self._handles = [encoder.register_forward_pre_hook(self._encoding) for encoder in self.encoders.values()]
        self._own = {name: getattr(self.pipe, name) for name in WATCHED}
        self.pipe.encode_prompt = StandIn(self._own["encode_prompt"], self._encode_prompt)
        self.pipe.maybe_free_model_hooks = StandIn(self._own["maybe_free_model_hooks"], self._maybe_free_model_hooks)

    def close(self) -> None:
        """Give the pipeline its own methods back."""
        for name in WATCHED:
            delattr(self.pipe, name)
        for handle in self._handles:
            handle.remove()

    def pipelines(self) -> list[Any]:
        return [self.pipe]

    def forget(self) -> None:
        """At the end of a drawing its prompts are over: another pipeline on the same denoiser must not draw by them."""
        self._pictures = None
        self._changes += 1

    @property
    def version(self) -> int:
        """Another number whenever something else is known."""
        return self._changes + self._encodings

    @property
    def pictures(self) -> list[Texts | None] | None:
        """The texts of each picture; None for one that is not known, and as a whole where nothing is."""
        return self._pictures if self._encodings == self._known_at else None

    def calls(self, texts: Texts, trigger: str) -> bool:
        """Whether a text encoder reads the trigger in what a picture shows."""
        return any(reads_trigger(self._tokenizer(encoder), text, trigger) for encoder, text in texts.items())

    def cuts_off(self, texts: Texts, trigger: str) -> bool:
        """Whether the trigger stands in the prompt, but behind what the text encoders read of it."""
        return not self.calls(texts, trigger) and any(contains_trigger(text, trigger) for text in texts.values())

    def texts_of(self, given: Mapping[str, Any], argument: str) -> list[Texts]:
        """What each text encoder gets of the prompts in an argument of `encode_prompt`; empty where it has none."""
        first = _listed(given.get(argument))
        if given.get(f"{argument}_embeds") is not None:
            return []
        # diffusers gives the second text encoder the first one's prompt where it has none of its own.
        own = {name: _listed(given.get(name.replace("text_encoder", argument))) or first for name in self.encoders}
        if not all(own.values()):
            return []
        count = max(map(len, own.values()))  # one negative prompt is that of all pictures
        return [
            {name: self._worded(name, texts[min(number, len(texts) - 1)]) for name, texts in own.items()}
            for number in range(count)
        ]

    def _tokenizer(self, encoder: str) -> Any:
        return getattr(self.pipe, tokenizer_name(encoder))

    def _encode_prompt(self, *args: Any, **kwargs: Any) -> Any:
        own = self._own["encode_prompt"]
        given = inspect.signature(own).bind(*args, **kwargs)
        with self.around(given.arguments), others_silent(self.pipe):
            result = own(*given.args, **given.kwargs)
        self._note(given.arguments, len(result[0]))
        return result

    def _maybe_free_model_hooks(self) -> Any:
        self.forget()
        return self._own["maybe_free_model_hooks"]()

    def _encoding(self, encoder: Any, inputs: Any) -> None:
        self._encodings += 1

    def _note(self, given: Mapping[str, Any], rows: int) -> None:
        images = given.get("num_images_per_prompt") or given.get("num_videos_per_prompt") or 1
        each = self.texts_of(given, "prompt")
        self._pictures = [texts for texts in each for _ in range(images)] or [None] * rows
        self._known_at = self._encodings
        self._changes += 1
        guided = given.get("do_classifier_free_guidance", True)
        negative = self.texts_of(given, "negative_prompt") if guided else []
        tokenizers = tokenizers_of(self.pipe)
        prompts = [("prompt", texts) for texts in each] + [("negative prompt", texts) for texts in negative]
        if notes := list(dict.fromkeys(note for what, texts in prompts for note in cut_notes(tokenizers, texts, what))):
            warn(listed(notes))

    def _worded(self, encoder: str, text: str) -> str:
        """A prompt with each textual inversion of several vectors written out, as the pipeline reads it."""
        convert = getattr(self.pipe, "maybe_convert_prompt", None)
        if convert is None:
            return text
        with untruncated(self._tokenizer(encoder)):
            return str(convert(text, self._tokenizer(encoder)))


def check_watchable(pipe: Any) -> None:
    """Raises CoefficientsError: the pipeline lacks what tells subjects its prompts."""
    missing = [name for name in WATCHED if not hasattr(pipe, name)]
    if missing:
        raise CoefficientsError(
            f"{type(pipe).__name__} has no {' and no '.join(missing)}, by which subjects know what is drawn; expected "
            "a pipeline such as those for text-to-image, image-to-image, inpainting or ControlNet"
        )


def _listed(prompt: Any) -> list[str]:
    """The prompts of a call, as diffusers takes them: one, several, or none."""
    if isinstance(prompt, str):
        return [prompt]
    return [str(one) for one in prompt] if isinstance(prompt, Iterable) else []
