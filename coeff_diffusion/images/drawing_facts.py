"""What a picture says of how it was drawn: as plain data, and in words for people."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from itertools import islice
from typing import Any

from .generation_info import KEYS, Parameters

MOST_OTHERS = 30  # keys that other tools wrote into a picture
# Keys of a picture's text that `in_words` has words of its own for; the others are told as they are.
TOLD = ("seed", "batch_size", "batch_position", "model", "base_hash", "precision", "layers", "begin", "end")
Facts = dict[str, Any]


def drawing_facts(parameters: Parameters) -> Facts:
    """All fields by name, null where the picture says nothing of them and there is no default."""
    found = asdict(parameters) | dict.fromkeys(parameters.unsaid)
    del found["start"], found["control"]  # pictures, which the text does not hold
    del found["refiner"]  # whose name and hash are fields of their own
    found |= {
        "sampler": found.pop("scheduler"),
        "batch_size": None if found["batch_size"] == 1 else found["batch_size"],
    }
    return {key: _finite(value) for key, value in found.items() if key != "unsaid"}


def in_words(facts: Facts) -> Facts:
    """What `drawing_facts` gives, in words, None or empty where there is nothing to say; of other tools' keys the first
    few."""
    p, names = {**facts, "scheduler": facts["sampler"]}, facts["hashes"]
    digits = f" (hash {p['base_hash']})" if p["base_hash"] else ""
    begin, end = _number(p["begin"]), _number(p["end"])
    known = {
        "prompt": p["prompt"],
        "negative prompt": p["negative_prompt"],
        "subjects": ", ".join(
            f"{name} at {_number(strength)}" + (f" (hash {names[name]})" if name in names else "")
            for name, strength in p["subjects"].items()
        ),
        "base": f"{p['model'] or 'unknown'}{digits}" if p["model"] or digits else None,
        "precision": p["precision"],
        "seed": p["seed"],
        "batch": f"picture {(p['batch_position'] or 0) + 1} of {p['batch_size']}" if p["batch_size"] else None,
        **{
            (one.label or one.text).lower(): p[one.name]
            for one in KEYS.values()
            if one.name not in TOLD and (one.always or p[one.name] != one.default)
        },
        "layer strengths": ", ".join(
            f"{kind} {_number(factor)}" for kind, factor in p["layers"].items() if factor != 1
        ),
        "subjects act": None if (p["begin"], p["end"]) == (0, 1) else f"from {begin} to {end} of denoising",
        "size": f"{p['width']} x {p['height']}" if p["width"] else None,
        "notes": "; ".join(p["notes"]),
    }
    others = {key: value for key, value in p["extra"].items() if key not in known}
    return {**known, **dict(islice(others.items(), MOST_OTHERS))}


def _number(value: float | None) -> str:
    return "no number" if value is None else f"{value:g}"  # what JSON cannot say: infinity, or not a number


def _finite(value: Any) -> Any:
    """The value as JSON knows it: no NaN, no infinity."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
