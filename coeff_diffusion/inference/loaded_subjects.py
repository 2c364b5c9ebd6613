"""All that is loaded in one pipeline, and what acts in each of its drawings.

The pipeline stays the stock one. Loading attaches recombination to its networks, teaches its text encoders the trigger,
and follows its prompts (`prompt_watch`) and the denoiser's forward, which tells how many rows the guidance makes of the
pictures. Unloading the last subject takes all of that away again. Pipelines that share a denoiser, as `from_pipe` makes
them, may have subjects loaded each.

Legend: B rows of the denoiser's batch (pictures, or twice as many with guidance), S subjects, H heads.
"""

import functools
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..families.fingerprint import other_weights, weight_sample
from ..families.layout import layout_of
from ..families.registry import FamilyError, denoiser_of, encoders_of, family_of, tokenizer_name
from ..method.adapter_hooks import detach_adapters, set_adapters
from ..method.attachment import activate, attach_heads, detach, unwrapped
from ..method.sites import stage_of, text_stages
from ..method.text_offsets import at_positions, attach_offsets, detach_offsets, set_offsets
from ..subject.coefficients import Coefficients
from ..subject.errors import CoefficientsError
from .adapters import acting_adapters, attach_adapter
from .blending import blended, weights_of
from .cut_off import cut_trigger, warn
from .gating import Choice, GuidanceRows, Subject, parts_of
from .prompt_watch import PromptWatch, Texts
from .standing_in import OfPipelines, StandIn
from .text_heads import TextHeads
from .token_strengths import Word, at_strengths
from .trigger import triggers_clash
from .trigger_tokens import TriggerEmbedding, add_trigger, forget_trigger, remove_trigger, without_triggers

ATTRIBUTE, USERS = "_coeff_subjects", "_coeff_users"
# Methods of pipelines that add, remove or save words, or put hooks on every layer, the base's own embedding among them.
WITHOUT_TRIGGERS = (
    "load_textual_inversion",
    "unload_textual_inversion",
    "save_pretrained",
    "load_lora_weights",
    "enable_sequential_cpu_offload",
    "enable_group_offload",
    "remove_all_hooks",
)


class Users(OfPipelines):
    """The pipelines that draw with one denoiser; lives on it while any of them has subjects.

    Attributes:
        drawing: the one whose prompts were encoded last; None between drawings.
    """

    def __init__(self, denoiser: Any) -> None:
        self.all: list[Subjects] = []
        self.drawing: Subjects | None = None
        self.handle = denoiser.register_forward_pre_hook(self._before_forward, with_kwargs=True)

    def pipelines(self) -> list[Any]:
        return [subjects.pipe for subjects in self.all]

    @torch.compiler.disable  # runs before a compiled network, not in it
    def _before_forward(self, denoiser: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        drawing = self.drawing or (self.all[0] if len(self.all) == 1 else None)
        if drawing is None:
            raise CoefficientsError(
                "several pipelines with subjects share this network, and none of them is drawing; draw with one of them"
            )
        drawing.act(args[0] if args else kwargs["sample" if "sample" in kwargs else "hidden_states"])


class Subjects(OfPipelines):
    """All that is loaded in one pipeline; lives on it as an attribute while anything is."""

    def __init__(self, pipe: Any) -> None:
        try:
            family = family_of(pipe)
        except FamilyError as error:
            raise CoefficientsError(str(error)) from error
        self.pipe, self.denoiser, self.component = pipe, denoiser_of(pipe), family.denoiser
        self.sites, self.encoders = family.sites(self.denoiser), encoders_of(pipe)
        self.watch = PromptWatch(pipe, self.encoders, self._around_encoding)
        self.text_heads = TextHeads(pipe, self.watch.texts_of)
        self.loaded: dict[str, Subject] = {}
        self.keys: dict[str, dict[str, str]] = {}  # by name: what to remove the trigger by, for each text encoder
        self.choice = Choice()
        self.embeddings: dict[str, TriggerEmbedding] = {}  # by text encoder
        self._made_for: tuple[int, ...] = ()  # the batch and prompts that the active coefficients were made for

    def pipelines(self) -> list[Any]:
        return [self.pipe]

    def add(self, name: str, subject: Subject, strength: float, guidance_rows: GuidanceRows | None) -> None:
        if name in self.loaded:
            raise CoefficientsError(f"a subject {name!r} is already loaded; give another name, or unload it first")
        choice = replace(
            self.choice,
            strengths=[{**one, name: strength} for one in self.choice.strengths],
            guidance_rows=self.choice.guidance_rows if guidance_rows is None else guidance_rows,
        )
        choice.check({**self.loaded, name: subject})
        self._check_in_place()
        self._check_fits(name, subject.coefficients)
        users = getattr(self.denoiser, USERS, None)
        if users is None:
            attach_heads(self.denoiser, self.sites, trainable=False)
            attach_offsets(self.denoiser, text_stages(self.sites.values()))
        attach_adapter(self.denoiser, subject.coefficients, self.sites)
        try:
            self.text_heads.attach(subject.coefficients)
            self.keys[name] = self._add_tokens(name, subject.coefficients)
        except CoefficientsError:
            self._detach_text()
            if users is None:
                self._detach()
            raise
        if not self.loaded:
            self._open()
        self.loaded[name] = subject
        self.choose(choice)

    def remove(self, name: str) -> None:
        for owner, key in self.keys.pop(name).items():
            forget_trigger(self.encoders[owner], self.embeddings[owner], key)
        del self.loaded[name]
        self._detach_text()
        strengths = [{other: value for other, value in one.items() if other != name} for one in self.choice.strengths]
        self.choose(replace(self.choice, strengths=strengths))
        if not self.loaded:
            self._close()

    def choose(self, choice: Choice) -> None:
        choice.check(self.loaded)
        self.choice = replace(choice, strengths=[dict(one) for one in choice.strengths])  # the caller may change theirs
        self._made_for = ()
        for name, keys in self.keys.items():  # for those who encode prompts without `encode_prompt`, as Compel does
            found = {float(one.get(name, 0)) for one in choice.strengths}
            for owner, key in keys.items():
                self.embeddings[owner].learned[key].rows = tuple(found) if len(found) == 1 else ()

    # --- loading ------------------------------------------------------------------------------------------------------

    def _check_fits(self, name: str, coefficients: Coefficients) -> None:
        if coefficients.of_text_encoder("") and coefficients.denoiser != self.component:
            raise CoefficientsError(
                f"the subject is for a {coefficients.denoiser}, but {type(self.pipe).__name__} draws with a "
                f"{self.component}"
            )
        for other, subject in self.loaded.items():
            mine, theirs = coefficients.info.trigger, subject.coefficients.info.trigger
            if (coefficients.tokens or subject.coefficients.tokens) and triggers_clash(mine, theirs):
                raise CoefficientsError(
                    f"the trigger {mine!r} of {name!r} clashes with {theirs!r} of {other!r}: a prompt could not call "
                    "up one without the other; they cannot be loaded together, unless one is given another trigger"
                )
        layout_of(self.pipe).check_fits(coefficients)
        if difference := other_weights(coefficients.info, weight_sample(self.denoiser)):
            warnings.warn(difference, stacklevel=4)

    def _add_tokens(self, name: str, coefficients: Coefficients) -> dict[str, str]:
        added: dict[str, str] = {}
        try:
            for owner, vectors in coefficients.tokens.items():
                tokenizer, trigger = getattr(self.pipe, tokenizer_name(owner)), coefficients.info.trigger
                added[owner] = add_trigger(
                    tokenizer, self.encoders[owner], name, trigger, vectors, class_word=coefficients.info.class_word
                )
                self.embeddings[owner] = self.encoders[owner].get_input_embeddings()
        except CoefficientsError:
            for owner, key in added.items():
                remove_trigger(self.encoders[owner], key)
            raise
        return added

    def _open(self) -> None:
        """Follow the pipeline's prompts and the denoiser's batches; let others change and save the words meanwhile."""
        users = getattr(self.denoiser, USERS, None)
        if users is None:
            users = Users(self.denoiser)
            setattr(self.denoiser, USERS, users)
        users.all.append(self)
        self.users = users
        self.watch.open()
        for method in WITHOUT_TRIGGERS:
            if (original := getattr(self.pipe, method, None)) is not None:
                setattr(self.pipe, method, StandIn(original, functools.partial(self._aside, original)))
        setattr(self.pipe, ATTRIBUTE, self)

    def _close(self) -> None:
        for method in WITHOUT_TRIGGERS:
            vars(self.pipe).pop(method, None)
        self.watch.close()
        delattr(self.pipe, ATTRIBUTE)
        self.users.all.remove(self)
        if self.users.drawing is self:
            self.users.drawing = None
        if not self.users.all:
            self.users.handle.remove()
            delattr(self.denoiser, USERS)
            self._detach()

    def _detach_text(self) -> None:
        self.text_heads.detach_unused([subject.coefficients for subject in self.loaded.values()])

    def _detach(self) -> None:
        detach_adapters(self.denoiser)
        detach_offsets(self.denoiser)
        detach(self.denoiser)

    def _aside(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        """Run one of these methods while no trigger is in its way."""
        with ExitStack() as stack:
            for encoder in self.encoders.values():
                stack.enter_context(without_triggers(encoder))
            return original(*args, **kwargs)

    def _check_in_place(self) -> None:
        """What someone exchanged in the pipeline would silently go without its subjects."""
        exchanged = [] if unwrapped(getattr(self.pipe, self.component)) is self.denoiser else [self.component]
        exchanged += self.text_heads.exchanged()
        for owner in sorted({owner for keys in self.keys.values() for owner in keys}):
            if (encoder := getattr(self.pipe, owner)) is None:
                continue  # put away for its memory: it reads no prompts any more
            embedding = encoder.get_input_embeddings()
            if not isinstance(embedding, TriggerEmbedding):
                exchanged.append(owner)
            elif not embedding.reads_with(getattr(self.pipe, tokenizer_name(owner))):
                exchanged.append(tokenizer_name(owner))
        if exchanged:
            names = " and ".join(dict.fromkeys(exchanged))
            raise CoefficientsError(
                f"the pipeline's {names} was exchanged or resized after coefficients were loaded, so it would draw "
                "without the subject; unload the coefficients and load them again"
            )

    # --- drawing ------------------------------------------------------------------------------------------------------

    @contextmanager
    def _around_encoding(self, given: dict[str, Any]) -> Iterator[None]:
        """Prompts are read with each trigger at its subject's strength, and with its subject's heads."""
        self._check_in_place()
        self.users.drawing = self
        infos = {name: self.loaded[name].coefficients.info for name, keys in self.keys.items() if keys}
        words = [Word(name, info.trigger, info.class_word, self.keys[name]) for name, info in infos.items()]
        with (
            at_strengths(given, words, self.choice.strengths, self.embeddings),
            self.text_heads.reading(given, self.loaded, self.choice),
        ):
            yield

    def act(self, sample: Tensor) -> None:
        """Activate what acts on each row of this batch, once for each prompt and size."""
        rows, pictures = len(sample), self.watch.pictures
        made_for = (rows, self.watch.version)
        if made_for == self._made_for:
            return
        names = list(self.loaded)
        called = None if pictures is None else self._called(pictures)
        strengths = self.choice.of_rows(rows, called, self.loaded, self._is_perturbed)
        weights = weights_of(strengths, names)  # [S] or [B, S]
        coeffs = [self.loaded[name].coefficients.of_text_encoder("") for name in names]
        activate(self.denoiser, blended(coeffs, weights, self._factor), sample.device)
        offsets = self._offsets(rows, weights, pictures)
        set_offsets(self.denoiser, {stage: offset.to(sample.device) for stage, offset in offsets.items()})
        subjects = [self.loaded[name].coefficients for name in names]
        set_adapters(self.denoiser, acting_adapters(subjects, weights, self.choice.adapter_strength))
        self._made_for = made_for

    @property
    def _is_perturbed(self) -> bool:
        return bool(getattr(self.pipe, "do_perturbed_attention_guidance", False))

    def _factor(self, path: str) -> float:
        return self.choice.layers.factor(self.sites[path].kind, self.sites[path].stage)

    def _offsets(self, rows: int, weights: Tensor, pictures: Sequence[Texts | None] | None) -> dict[str, Tensor]:
        """What is added to the text of each row, `[B, T, D]` by stage, where a trigger with stage tokens stands in it.

        Args:
            weights: the strength of each subject, `[S]`, or `[B, S]` for each row.
        """
        telling = {
            number: name
            for number, name in enumerate(self.loaded)
            if self.loaded[name].coefficients.stage_tokens and weights[..., number].any()
        }
        if not telling:
            return {}
        known = [texts for texts in pictures or () if texts is not None]
        all_known = known and len(known) == len(pictures or ())
        parts = parts_of(rows, len(known), self._is_perturbed) if all_known else None
        if parts is None:
            warnings.warn(
                f"the stage tokens of {', '.join(map(repr, telling.values()))} act where the prompt has the trigger; "
                "the prompt is not known, as prompt_embeds were given, so they do not act; give prompts",
                stacklevel=2,
            )
            return {}
        offsets: dict[str, Tensor] = {}
        for number, name in telling.items():
            subject = self.loaded[name].coefficients
            owner = next(iter(subject.tokens))
            places = self.embeddings[owner].places(self.keys[name][owner], [texts[owner] for texts in known])  # [P, T]
            none = torch.full_like(places, -1)  # an unconditional part has none of the prompt's words
            places = torch.cat([places if by_prompt else none for by_prompt in parts])  # [B, T]
            strength = weights[..., number].view(-1, 1, 1)  # [1, 1, 1] or [B, 1, 1]
            for stage, token in subject.stage_tokens.items():
                factor = self.choice.layers.factor("cross", stage_of(stage))
                offsets[stage] = offsets.get(stage, 0) + at_positions(token, places) * strength * factor
        return offsets

    def _called(self, pictures: Sequence[Texts | None]) -> list[set[str] | None]:
        """The subjects whose trigger the text encoders read in each picture's prompt; None where it is not known."""
        triggers = {name: subject.coefficients.info.trigger for name, subject in self.loaded.items()}
        for name, trigger in triggers.items():
            if trigger and any(texts is not None and self.watch.cuts_off(texts, trigger) for texts in pictures):
                warn(cut_trigger(trigger, name, self.choice.is_gated(self.loaded[name])))
        return [
            None if texts is None else {n for n, t in triggers.items() if t and self.watch.calls(texts, t)}
            for texts in pictures
        ]
