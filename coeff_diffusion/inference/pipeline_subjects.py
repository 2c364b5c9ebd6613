"""Subjects on a stock diffusers pipeline: load, blend, set per picture, unload.

What they do to the pipeline stands in `loaded_subjects`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..sources.open import open_subject
from ..subject.coefficients import Coefficients
from ..subject.errors import CoefficientsError
from ..subject.layer_strengths import LayerStrengths
from .gating import Choice, GuidanceRows, Subject
from .gating import Gate as Gate  # a part of what this module offers
from .loaded_subjects import ATTRIBUTE, Subjects


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
        pipe: a pipeline of diffusers whose base is of a known family (`families.registry`).
        source: a file, a folder that holds `coefficients.safetensors`, a Hub id ("user/repo"), or `Coefficients`.
        name: what to call it in `set_coefficients`; default: the name it was saved under, or its trigger.
        strength: 1 is as trained, 0 is the base, which then reads the class word in the trigger's place, bitwise. It is
            a factor on coefficients, stage tokens and adapter, and how far the trigger is from the class word's
            embedding.
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
    adapter_strength: float = 1.0,
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
        adapter_strength: a factor on all of these strengths for the adapters that subjects learned with; at 0 subjects
            act without.

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
            adapter_strength=adapter_strength,
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


def _subjects(pipe: Any) -> Subjects | None:
    return getattr(pipe, ATTRIBUTE, None)
