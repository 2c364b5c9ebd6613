"""`coeff-diffusion convert` and `blend`: a subject's file out of one or several others."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from ..inference.request import split_strength
from ..sources.image_card import choose, extract
from ..sources.open import locate, open_subject, picture_kind, read
from ..subject.blend import blend
from ..subject.coefficients import Coefficients
from ..subject.errors import CoefficientsError, shown
from ..subject.pruning import keep_strongest
from .config import BlendConfig, ConvertConfig
from .output import check_output


def convert(config: ConvertConfig, say: Callable[[str], None] = print) -> Path:
    """Write the file that `config` asks for and return it.

    Raises:
        CoefficientsError: the subject cannot be read, a number is too large for the type, or `keep` is no share or
            leaves nothing.
        OutputError, OSError: the output exists or cannot be written; what was there is as before.
    """
    path, share = check_output(config.output, ".safetensors", config.overwrite), _share(config.keep)
    whole = _any_version(config.file)
    subject = keep_strongest(whole, share)
    dtype = subject.narrowest if config.dtype == "auto" else getattr(torch, config.dtype)
    rounded = _rounding(subject, Coefficients.from_bytes(subject.to_bytes(dtype)))
    subject.save(path, dtype)
    of_layers = "" if len(subject) == len(whole) else f"{len(subject)} of {len(whole)} layers, "
    say(f"{path}: {path.stat().st_size:,} bytes, {of_layers}{str(dtype).removeprefix('torch.')}; {rounded}")
    return path


def _rounding(subject: Coefficients, written: Coefficients) -> str:
    """How far the numbers that were written are from those of the subject; words have larger ones than layers."""
    before, after = subject.named_tensors(), written.named_tensors()
    if all(torch.equal(tensor, after[name]) for name, tensor in before.items()):
        return "no number changed"
    parts = []
    for called, ending in (("coefficient changed", ".coeff"), ("number of its learned word", "token")):
        if of_kind := [(after[name] - before[name]).double().flatten() for name in before if name.endswith(ending)]:
            changes = torch.cat(of_kind).abs()
            parts.append(f"no {called} by more than {changes.max():.2g} ({changes.mean():.2g} on average)")
    old, new = (torch.cat([one[name].flatten() for name in before]).double() for one in (before, after))
    return f"{', '.join(parts)}; all together by {float((new - old).norm() / old.norm()):.2%}"


def _share(text: str) -> float:
    """50% or 0.5."""
    number = text.strip().removesuffix("%")
    try:
        return float(number) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        raise CoefficientsError(f"--keep is {shown(text)}, expected a share, as 50% or 0.5") from None


def _any_version(source: str) -> Coefficients:
    """A subject, also from a file whose tensors are named in the way of the first versions."""
    path = locate(source)
    kind = picture_kind(path)
    carried = extract(path, old_names=True) if kind and kind.picture == "PNG" else []
    if carried:
        return choose(carried, None, path)
    return read(path) if kind else Coefficients.read(path, old_names=True)


def blend_files(config: BlendConfig, say: Callable[[str], None] = print) -> Path:
    """Write the blend that `config` asks for and return its file.

    Raises:
        CoefficientsError: a subject cannot be read, or they cannot be blended. StudioError: a weight is not finite.
        OutputError, OSError: the output exists or cannot be written; what was there is as before.
    """
    path = check_output(config.output, ".safetensors", config.overwrite)
    parts = [split_strength(text) for text in config.subject]
    subjects = [(open_subject(source), weight) for source, weight in parts]
    mixed = blend(subjects)
    if config.name is not None:
        mixed = mixed.replace(info=replace(mixed.info, name=config.name))
    mixed.save(path)
    info, triggers = mixed.info, sorted({subject.info.trigger for subject, _ in subjects})
    acts = f"acts on prompts with {shown(info.trigger)}"
    if not info.trigger or info.gate == "always":
        acts = "acts on every prompt"
    if not info.trigger and len(triggers) > 1:
        acts += f", for its parts have different triggers ({', '.join(map(shown, triggers))})"
    say(f"{path}: {shown(info.name)}, {path.stat().st_size:,} bytes; {acts}")
    return path
