"""Subjects on a stock diffusers pipeline: load, blend, set per picture, unload.

The pipeline stays the stock one. Loading attaches recombination to its UNet, teaches its text encoder the trigger and
watches two doors: `encode_prompt`, which tells what each picture shows, and the UNet's forward, which tells how many
rows the guidance makes of the pictures. Unloading the last subject takes all of that away again.

Legend: B rows of the UNet's batch (pictures, or twice as many with guidance), S subjects, H heads.
"""

import functools
import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..families.fingerprint import check_fits, check_tokens_fit, other_weights, weight_sample
from ..method.attachment import activate, attach, detach, select_layers, unwrapped
from ..sources.open import open_subject
from ..subject.coefficients import Coefficients
from ..subject.errors import CoefficientsError
from ..subject.layer_strengths import LayerStrengths
from .gating import Choice, GuidanceRows, Subject
from .gating import Gate as Gate  # a part of what this module offers
from .trigger import TriggerEmbedding, add_trigger, remove_trigger, triggers_clash

ATTRIBUTE = "_coeff_subjects"


def load_coefficients(
    pipe: Any,
    source: str | Path | Coefficients,
    name: str | None = None,
    strength: float = 1.0,
    gate: Gate | None = None,
    trigger: str | None = None,
    guidance_rows: GuidanceRows | None = None,
) -> str:
    """Load a subject into a pipeline. It acts at once, beside the subjects that are loaded already.

    Args:
        pipe: a stock Stable Diffusion pipeline of diffusers.
        source: a file, a folder that holds `coefficients.safetensors`, a Hub id ("user/repo"), or `Coefficients`.
        name: what to call it in `set_coefficients`; default: the name it was saved under, or its trigger.
        strength: factor on its coefficients; 1 is as trained, 0 off.
        gate: act on pictures whose prompt holds the trigger ("trigger"), or on all ("always"); default: as saved.
        trigger: call it up by these words instead of its own.
        guidance_rows: see `set_coefficients`.

    Returns:
        The name.

    Raises:
        CoefficientsError: damaged, does not fit the base, or its name or trigger is taken. The pipeline is unchanged.
    """
    coefficients = source if isinstance(source, Coefficients) else open_subject(source)
    if trigger is not None:
        coefficients = coefficients.replace(info=replace(coefficients.info, trigger=trigger))
    info = coefficients.info
    name = name or info.name or info.trigger or "subject"
    subjects = _subjects(pipe) or Subjects(pipe)
    if gate is None:
        gate = info.gate if info.trigger else "always"
    subjects.add(name, Subject(coefficients, gate), strength, guidance_rows)
    return name


def set_coefficients(
    pipe: Any,
    strengths: Mapping[str, float] | None = None,
    *,
    per_sample: Sequence[Mapping[str, float]] | None = None,
    gate: Gate | None = None,
    guidance_rows: GuidanceRows | None = None,
    layers: LayerStrengths | None = None,
) -> None:
    """Choose how strongly each loaded subject acts, as diffusers' `set_adapters` does for LoRAs.

    Args:
        strengths: by name, for all pictures: their coefficients are blended linearly. A subject not named is off.
        per_sample: instead of `strengths`, one mapping for each picture of the next batches (prompts times images per
            prompt).
        gate: override every subject's gate; None leaves each at what it was loaded with.
        guidance_rows: with guidance, act on both branches of a picture ("both", the default), or leave its
            unconditional branch to the base ("cond"). None leaves the setting as it is.
        layers: factors on all of these strengths by kind of layer; None is 1 everywhere. Where a layer's factor is 0,
            it is the base's, bitwise.

    Raises:
        CoefficientsError: an unknown name, a strength or factor that is not finite, or both or none of `strengths` and
            `per_sample`. Nothing has changed then.
    """
    subjects = _subjects(pipe)
    if subjects is None:
        raise CoefficientsError("no coefficients are loaded in this pipeline; load_coefficients(pipe, ...) first")
    if (strengths is None) == (per_sample is None):
        raise CoefficientsError("give either strengths for all pictures or per_sample, one mapping per picture")
    subjects.choose(
        Choice(
            strengths=[strengths or {}] if per_sample is None else per_sample,
            per_sample=per_sample is not None,
            gate=gate,
            guidance_rows=subjects.choice.guidance_rows if guidance_rows is None else guidance_rows,
            layers=layers or LayerStrengths(),
        )
    )


def unload_coefficients(pipe: Any, name: str | None = None) -> None:
    """Take one subject out of the pipeline, or all. With the last one out the pipeline is as before the first, bitwise.

    Raises:
        CoefficientsError: no subject of this name is loaded.
    """
    subjects = _subjects(pipe)
    if name is not None and (subjects is None or name not in subjects.loaded):
        raise CoefficientsError(
            f"no subject {name!r} is loaded; loaded are {sorted(subjects.loaded) if subjects else []}"
        )
    if subjects is not None:
        for one in [name] if name is not None else list(subjects.loaded):
            subjects.remove(one)


def loaded_coefficients(pipe: Any) -> dict[str, Coefficients]:
    """The loaded subjects by name, in the order they were loaded."""
    subjects = _subjects(pipe)
    return {name: subject.coefficients for name, subject in subjects.loaded.items()} if subjects else {}


class Subjects:
    """All that is loaded in one pipeline; lives on it as an attribute while anything is."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.unet = unwrapped(pipe.unet)
        self.loaded: dict[str, Subject] = {}
        self.choice = Choice()
        self.is_cross = {path: attn.is_cross_attention for path, attn in select_layers(self.unet).items()}
        self.prompts: list[str | None] | None = None  # of each picture; None: not known
        self._rows: int | None = None  # the batch that the active coefficients were made for

    def add(self, name: str, subject: Subject, strength: float, guidance_rows: GuidanceRows | None) -> None:
        if name in self.loaded:
            raise CoefficientsError(f"a subject {name!r} is already loaded; give another name, or unload it first")
        choice = replace(
            self.choice,
            strengths=[{**one, name: strength} for one in self.choice.strengths],
            guidance_rows=self.choice.guidance_rows if guidance_rows is None else guidance_rows,
        )
        choice.check({**self.loaded, name: subject})
        self._check_fits(name, subject.coefficients)
        if not self.loaded:
            attach(self.unet, trainable=False)
        try:
            self._add_tokens(name, subject.coefficients)
        except CoefficientsError:
            if not self.loaded:
                detach(self.unet)
            raise
        if not self.loaded:
            self._open_doors()
        self.loaded[name] = subject
        self.choose(choice)

    def remove(self, name: str) -> None:
        for owner in self.loaded[name].coefficients.tokens:
            self._set_tokenizer(owner, remove_trigger(getattr(self.pipe, owner), name))
        del self.loaded[name]
        strengths = [{other: value for other, value in one.items() if other != name} for one in self.choice.strengths]
        self.choose(replace(self.choice, strengths=strengths))
        if not self.loaded:
            self._close_doors()
            detach(self.unet)

    def choose(self, choice: Choice) -> None:
        choice.check(self.loaded)
        self.choice = replace(choice, strengths=[dict(one) for one in choice.strengths])  # the caller may change theirs
        self._rows = None

    # --- loading ------------------------------------------------------------------------------------------------------

    def _check_fits(self, name: str, coefficients: Coefficients) -> None:
        check_fits(coefficients, self.unet)
        for other, subject in self.loaded.items():
            mine, theirs = coefficients.info.trigger, subject.coefficients.info.trigger
            if (coefficients.tokens or subject.coefficients.tokens) and triggers_clash(mine, theirs):
                raise CoefficientsError(
                    f"the trigger {mine!r} of {name!r} clashes with {theirs!r} of {other!r}: a prompt could not call "
                    "up one without the other; they cannot be loaded together, unless one is given another trigger"
                )
        encoders = {owner: getattr(self.pipe, owner, None) for owner in coefficients.tokens}
        widths = {k: e.get_input_embeddings().embedding_dim for k, e in encoders.items() if e is not None}
        check_tokens_fit(coefficients, widths)
        if difference := other_weights(coefficients.info, weight_sample(self.unet)):
            warnings.warn(difference, stacklevel=4)

    def _add_tokens(self, name: str, coefficients: Coefficients) -> None:
        added = []
        try:
            for owner, vectors in coefficients.tokens.items():
                encoder, tokenizer = getattr(self.pipe, owner), getattr(self.pipe, _tokenizer_of(owner))
                self._set_tokenizer(owner, add_trigger(tokenizer, encoder, name, coefficients.info.trigger, vectors))
                added.append(owner)
        except CoefficientsError:
            for owner in added:
                self._set_tokenizer(owner, remove_trigger(getattr(self.pipe, owner), name))
            raise

    def _set_tokenizer(self, owner: str, tokenizer: Any) -> None:
        setattr(self.pipe, _tokenizer_of(owner), tokenizer)

    def _open_doors(self) -> None:
        original = self.pipe.encode_prompt
        signature = inspect.signature(original)

        @functools.wraps(original)
        def encode_prompt(*args: Any, **kwargs: Any) -> Any:
            self._check_in_place()
            result = original(*args, **kwargs)
            given = signature.bind(*args, **kwargs).arguments
            images = given.get("num_images_per_prompt") or 1
            prompt = given.get("prompt")
            prompts = [prompt] if isinstance(prompt, str) else prompt
            self.prompts = [p for p in prompts for _ in range(images)] if prompts else [None] * len(result[0])
            self._rows = None
            return result

        # At the end of a drawing its prompts are over: another pipeline on the same UNet must not draw by them.
        free = self.pipe.maybe_free_model_hooks

        @functools.wraps(free)
        def maybe_free_model_hooks() -> Any:
            self.prompts, self._rows = None, None
            return free()

        self.pipe.encode_prompt = encode_prompt
        self.pipe.maybe_free_model_hooks = maybe_free_model_hooks
        self.hook = self.unet.register_forward_pre_hook(self._before_unet, with_kwargs=True)
        setattr(self.pipe, ATTRIBUTE, self)

    def _close_doors(self) -> None:
        del self.pipe.encode_prompt, self.pipe.maybe_free_model_hooks
        self.hook.remove()
        delattr(self.pipe, ATTRIBUTE)

    def _check_in_place(self) -> None:
        """What someone exchanged in the pipeline would silently go without its subjects."""
        exchanged = [] if unwrapped(self.pipe.unet) is self.unet else ["unet"]
        owners = {owner for subject in self.loaded.values() for owner in subject.coefficients.tokens}
        embeddings = {owner: getattr(self.pipe, owner).get_input_embeddings() for owner in sorted(owners)}
        exchanged += [owner for owner, one in embeddings.items() if not isinstance(one, TriggerEmbedding)]
        if exchanged:
            raise CoefficientsError(
                f"the pipeline's {' and '.join(exchanged)} was exchanged or resized after coefficients were loaded, so "
                "it would draw without the subject; load coefficients last, after textual inversions"
            )

    # --- drawing ------------------------------------------------------------------------------------------------------

    @torch.compiler.disable  # runs before a compiled UNet, not in it
    def _before_unet(self, unet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pre-forward hook of the UNet: activate what acts on each row of this batch, once for each prompt and size."""
        sample = args[0] if args else kwargs["sample"]
        rows = len(sample)
        if rows == self._rows:
            return
        names = list(self.loaded)
        strengths = self.choice.of_rows(rows, self.prompts, self.loaded)
        weights = torch.tensor([[float(one.get(name, 0)) for name in names] for one in strengths])  # [B, S] or [1, S]
        if (weights == weights[0]).all():
            weights = weights[0]  # [S]
        stacks: dict[str, list[tuple[int, Tensor]]] = {}
        for number, name in enumerate(names):
            for path, coeff in self.loaded[name].coefficients.items():
                stacks.setdefault(path, []).append((number, coeff))
        blended = {
            path: torch.tensordot(weights[..., [number for number, _ in stack]], torch.stack([c for _, c in stack]), 1)
            * self.choice.layers.factor(path, self.is_cross[path])
            for path, stack in stacks.items()
        }  # [H, H] or [B, H, H]
        activate(unet, blended, sample.device)
        self._rows = rows


def _subjects(pipe: Any) -> Subjects | None:
    return getattr(pipe, ATTRIBUTE, None)


def _tokenizer_of(text_encoder: str) -> str:
    return text_encoder.replace("text_encoder", "tokenizer")
