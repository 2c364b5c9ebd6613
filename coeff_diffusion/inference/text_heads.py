"""Subjects that recombine the heads of text encoders, in a pipeline: each text is read by those it calls up.

A text encoder reads one text a row, so the gate is the text's own: a prompt without the trigger, and a negative prompt
without it, is read by the base, bitwise, whatever stands beside it in the batch. With the gate open ("always") all
texts are read with the subject; `guidance_rows="cond"` leaves negative prompts to the base in any case.

Legend: P prompts of an encoding.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ..families.registry import encoders_of, family_of, tokenizer_name
from ..method.attachment import activate, attach_heads, detach, is_attached
from ..method.errors import AttachmentError
from ..subject.coefficients import Coefficients
from ..subject.errors import CoefficientsError
from .blending import blended, weights_of
from .cut_off import warn
from .gating import Choice, Subject
from .prompt_watch import Texts
from .standing_in import OfPipelines
from .token_strengths import of_prompts, one_strength
from .trigger import reads_trigger

READERS = "_coeff_readers"
Strengths = Sequence[Mapping[str, float]]  # by subject, one mapping for each text
TextsOf = Callable[[Mapping[str, Any], str], Sequence[Texts]]


class _Reading:
    """A pre-forward hook of one text encoder during one `encode_prompt`: it reads the prompts, then the negative ones.

    Args:
        owner: the text encoder's name.
        subjects: the matrices of each subject in it, by path.
        calls: the strengths in the texts of each call.
        factor: on all of them.
    """

    def __init__(
        self, owner: str, subjects: Mapping[str, Mapping[str, Tensor]], calls: Sequence[Strengths], factor: float
    ) -> None:
        self.owner, self.subjects, self.factor = owner, subjects, factor
        self.calls = list(calls)

    def __call__(self, encoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = args[0] if args else kwargs["input_ids"]
        strengths = self.calls.pop(0) if self.calls else ()
        if len(strengths) != len(ids):
            raise CoefficientsError(
                f"the {self.owner} reads {len(ids)} texts where {len(strengths)} are known, so subjects cannot "
                "recombine its heads; draw with a pipeline that reads all prompts at once, then all negative prompts"
            )
        weights = weights_of(strengths, list(self.subjects))
        activate(encoder, blended(list(self.subjects.values()), weights, lambda path: self.factor), ids.device)


class TextHeads(OfPipelines):
    """The text encoders of one pipeline whose heads are recombined.

    Args:
        pipe: of a known family.
        texts_of: what each text encoder reads of an argument of `encode_prompt` ("prompt", "negative_prompt").
    """

    def __init__(self, pipe: Any, texts_of: TextsOf) -> None:
        self.pipe, self.texts_of = pipe, texts_of
        self.encoders: dict[str, Any] = {}  # those that are attached to

    def pipelines(self) -> list[Any]:
        return [self.pipe]

    def attach(self, coefficients: Coefficients) -> None:
        """Let a subject act in the text encoders that it has matrices for. It does not yet.

        Raises:
            CoefficientsError: a text encoder computes its attention in a way that cannot be recombined.
        """
        family = family_of(self.pipe)
        for name, encoder in encoders_of(self.pipe).items():
            if name in self.encoders or not coefficients.of_text_encoder(name):
                continue
            if not is_attached(encoder):  # another pipeline may read with it, too
                try:
                    attach_heads(encoder, family.text_sites(name, encoder), trainable=False)
                except AttachmentError as error:
                    raise CoefficientsError(str(error)) from error
                setattr(encoder, READERS, [])
            getattr(encoder, READERS).append(self)
            self.encoders[name] = encoder

    def detach_unused(self, subjects: Sequence[Coefficients]) -> None:
        """Give those text encoders back, as they were, that none of the subjects has matrices for."""
        for name in [name for name in self.encoders if not any(one.of_text_encoder(name) for one in subjects)]:
            encoder = self.encoders.pop(name)
            getattr(encoder, READERS).remove(self)
            if not getattr(encoder, READERS):
                delattr(encoder, READERS)
                detach(encoder)

    def exchanged(self) -> list[str]:
        """Text encoders of the pipeline that somebody has put in the place of those that are attached to."""
        return [name for name, encoder in self.encoders.items() if getattr(self.pipe, name) not in (None, encoder)]

    @contextmanager
    def reading(self, given: Mapping[str, Any], loaded: Mapping[str, Subject], choice: Choice) -> Iterator[None]:
        """Meanwhile `encode_prompt` reads each text with the subjects that it calls up.

        Args:
            given: the arguments of `encode_prompt`, as they are read.

        Raises:
            CoefficientsError: pictures of one prompt have different strengths.
        """
        acting = {name: one for name, one in loaded.items() if self._acts(one, name, choice)}
        each = of_prompts(given, choice.strengths) if acting else None
        if each is None:  # where it does not fit the prompts, whoever draws with them says so
            yield
            return
        if not self.texts_of(given, "prompt"):
            warn(
                f"{', '.join(map(repr, acting))} also acts where the prompt is read; prompt_embeds were given, so it "
                "does not act there; give prompts"
            )
            yield
            return
        strengths = [{name: one_strength(name, pictures) for name in acting} for pictures in each]
        handles = []
        try:
            for owner, encoder in self.encoders.items():
                subjects = {name: one.coefficients.of_text_encoder(owner) for name, one in acting.items()}
                calls = self._calls(given, owner, strengths, acting, choice)
                hook = _Reading(owner, subjects, calls, choice.layers.text)
                handles.append(encoder.register_forward_pre_hook(hook, with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()
            for encoder in self.encoders.values():
                activate(encoder, None)

    def _acts(self, subject: Subject, name: str, choice: Choice) -> bool:
        has = any(subject.coefficients.of_text_encoder(owner) for owner in self.encoders)
        return has and choice.layers.text != 0 and any(one.get(name) for one in choice.strengths)

    def _calls(
        self, given: Mapping[str, Any], owner: str, strengths: Strengths, acting: Mapping[str, Subject], choice: Choice
    ) -> list[Strengths]:
        """The strengths in the texts that a text encoder reads first, the prompts, and then, the negative prompts."""
        tokenizer = getattr(self.pipe, tokenizer_name(owner))

        def called(argument: str, those: Strengths) -> Strengths:
            texts = [one[owner] for one in self.texts_of(given, argument)] or [""]
            texts = texts * len(those) if len(texts) == 1 else texts
            return [
                {name: value for name, value in one.items() if _calls_up(acting[name], tokenizer, text, choice)}
                for text, one in zip(texts, those, strict=False)
            ]

        shown = called("prompt", strengths)
        return [shown, called("negative_prompt", shown) if choice.guidance_rows == "both" else [{}] * len(shown)]


def _calls_up(subject: Subject, tokenizer: Any, text: str, choice: Choice) -> bool:
    """Whether a subject acts in a text."""
    return not choice.is_gated(subject) or reads_trigger(tokenizer, text, subject.coefficients.info.trigger)
