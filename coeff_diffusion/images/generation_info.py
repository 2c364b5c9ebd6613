"""The text that remembers how a picture was drawn.

It follows the form that A1111's web UI writes into the PNG chunk `parameters` and that most tools read:

    a photo of sks dog on the beach
    Negative prompt: blurry
    Steps: 20, Sampler: DDIM, CFG scale: 7.5, Seed: 7, Size: 128x128, Model: embedded, Base hash: 41b5f3c6a0d2,
    Subjects: "{\"dog\": 0.8}", Subject hashes: "{\"dog\": \"9332f95acd2a\"}"

(the fields are one line in the picture).
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from ..subject.errors import UserError, cut
from ..subject.layer_strengths import LayerStrengths

NEGATIVE = "Negative prompt:"
# `Key: value` or `Key: "quoted value"`, separated by commas: the expression A1111 itself reads with, but with keys of
# bounded length and nothing to go back for, so that the time it takes grows with the text and no faster.
FIELD = re.compile(r'(\w[\w \-/]{1,60}):\s*("(?:[^\\"]|\\.)++"|[^,]*)(?:,|$)')
HASH = re.compile(r"[0-9a-f]{12}")
Number = TypeVar("Number", int, float)
Gate = Literal["trigger", "always"]


class PictureError(UserError, ValueError):
    """A picture cannot be read or written, or carries no parameters."""


@dataclass(frozen=True)
class Parameters:
    """How a picture was drawn.

    Attributes:
        model: the base's name.
        base_hash: `fingerprint.base_hash` of the base, with its weights in `precision`.
        precision: dtype of the base's weights, where it is not float32.
        batch_size: pictures that were drawn at once, where it was not this one alone: their number decides the order in
            which a computer adds, and so the last bits.
        batch_position: the place of this one among them, from 0.
        gate: what the request asked for; None is what each subject was saved with.
        subjects: strength of each subject, by name. At 0 only its learned word takes part.
        hashes: the first 12 hex digits of each subject's `sha256`, by the same names; empty in older pictures.
        layers: factors on the strengths by kind of layer; written down where one is not 1.
        begin, end: the part of denoising in which the subjects act, 0 to 1; written down where it is not all of it.
        extra: further keys in the order they stand, kept as written.
    """

    prompt: str
    negative_prompt: str = ""
    steps: int | None = None
    sampler: str | None = None
    guidance_scale: float | None = None
    guidance_rescale: float | None = None
    seed: int | None = None
    width: int | None = None
    height: int | None = None
    model: str | None = None
    base_hash: str | None = None
    precision: str | None = None
    batch_size: int | None = None
    batch_position: int | None = None
    gate: Gate | None = None
    subjects: Mapping[str, float] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)
    layers: LayerStrengths = field(default_factory=LayerStrengths)
    begin: float = 0.0
    end: float = 1.0
    extra: Mapping[str, str] = field(default_factory=dict)


def format_parameters(parameters: Parameters) -> str:
    """The text other UIs read. `parse_parameters` gives back exactly what went in."""
    p = parameters
    fields: dict[str, object] = {
        "Steps": p.steps,
        "Sampler": p.sampler,
        "CFG scale": p.guidance_scale,
        "Guidance rescale": p.guidance_rescale,
        "Seed": p.seed,
        "Size": None if p.width is None or p.height is None else f"{p.width}x{p.height}",
        "Model": p.model,
        "Base hash": p.base_hash,
        "Precision": p.precision,
        "Batch size": p.batch_size,
        "Batch pos": p.batch_position,
        "Gate": p.gate,
        "Layer strengths": json.dumps(p.layers.changed()) if p.layers.changed() else None,
        "Act from": p.begin if p.begin != 0 else None,
        "Act until": p.end if p.end != 1 else None,
        "Subjects": json.dumps(dict(p.subjects), ensure_ascii=False) if p.subjects else None,
        "Subject hashes": json.dumps(dict(p.hashes), ensure_ascii=False) if p.hashes else None,
        **p.extra,
    }
    # The form cannot tell every prompt from its own syntax. Where reading would change one, it is kept aside, exactly.
    if _split(f"{_prompts(p)}\nSteps: 1, Seed: 1, Size: 8x8")[:2] != (p.prompt, p.negative_prompt):
        fields |= {"Exact prompt": json.dumps(p.prompt), "Exact negative prompt": json.dumps(p.negative_prompt)}
    line = ", ".join(f"{key}: {_quote(value)}" for key, value in fields.items() if value is not None)
    return f"{_prompts(p)}\n{line}"


def parse_parameters(text: str) -> Parameters:
    """Read the text of any tool that writes A1111's form; keys that are not ours land in `extra`.

    Raises:
        PictureError: a value of ours is not what it should be.
    """
    prompt, negative, raw = _split(text)
    fields = {key: _unquote(value) for key, value in raw.items()}
    size = fields.pop("Size", None)
    try:
        width, height = (int(side) for side in size.lower().split("x")) if size else (None, None)
        subjects = json.loads(fields.pop("Subjects", "{}"))
        hashes = json.loads(fields.pop("Subject hashes", "{}"))
        layers = json.loads(fields.pop("Layer strengths", "{}"))
        found = Parameters(
            prompt=str(json.loads(fields.pop("Exact prompt", json.dumps(prompt)))),
            negative_prompt=str(json.loads(fields.pop("Exact negative prompt", json.dumps(negative)))),
            steps=_optional(int, fields.pop("Steps", None)),
            sampler=fields.pop("Sampler", None),
            guidance_scale=_optional(float, fields.pop("CFG scale", None)),
            guidance_rescale=_optional(float, fields.pop("Guidance rescale", None)),
            seed=_optional(int, fields.pop("Seed", None)),
            width=width,
            height=height,
            model=fields.pop("Model", None),
            base_hash=fields.pop("Base hash", None),
            precision=fields.pop("Precision", None),
            batch_size=_optional(int, fields.pop("Batch size", None)),
            batch_position=_optional(int, fields.pop("Batch pos", None)),
            gate=_gate(fields.pop("Gate", None)),
            subjects={str(name): float(strength) for name, strength in subjects.items()},
            hashes={str(name): _hash(digits) for name, digits in hashes.items()},
            layers=_layers(layers),
            begin=float(fields.pop("Act from", 0)),
            end=float(fields.pop("Act until", 1)),
            extra=fields,
        )
        for part in (found.prompt, found.negative_prompt, found.sampler, found.model, *found.subjects):
            (part or "").encode()  # half of a surrogate pair is no text that a tokenizer could read
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise PictureError(f"the picture's parameters cannot be read: {cut(str(error), 200)}") from error
    return found


# --- the text ---------------------------------------------------------------------------------------------------------


def _prompts(p: Parameters) -> str:
    return f"{p.prompt}\n{NEGATIVE} {p.negative_prompt}" if p.negative_prompt else p.prompt


def _split(text: str) -> tuple[str, str, dict[str, str]]:
    """Prompt, negative prompt and the raw fields of the last line, split the way A1111 does."""
    lines = text.strip().split("\n")
    fields = dict(FIELD.findall(lines[-1]))
    if len(fields) < 3:  # then the last line is part of a prompt
        fields = {}
    else:
        lines = lines[:-1]
    prompt: list[str] = []
    negative: list[str] = []
    target = prompt
    for line in lines:
        stripped = line.strip()
        if stripped.startswith(NEGATIVE):
            target, stripped = negative, stripped[len(NEGATIVE) :].strip()
        target.append(stripped)
    return "\n".join(prompt).strip(), "\n".join(negative).strip(), fields


def _quote(value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
    return json.dumps(text, ensure_ascii=False) if not text or re.search(r'[,:"\\]|\s$|^\s|[\x00-\x1f]', text) else text


def _unquote(text: str) -> str:
    if len(text) < 2 or text[0] != '"' or text[-1] != '"':
        return text.strip()
    try:
        return str(json.loads(text))
    except ValueError:
        return text


def _gate(text: str | None) -> Gate | None:
    known: dict[str | None, Gate | None] = {None: None, "trigger": "trigger", "always": "always"}
    if text not in known:
        raise ValueError(f"Gate is {text!r}, expected trigger or always")
    return known[text]


def _layers(factors: Mapping[str, float]) -> LayerStrengths:
    if unknown := factors.keys() - vars(LayerStrengths()).keys():
        raise ValueError(f"there are no layers called {', '.join(sorted(unknown))}")
    return LayerStrengths(**{name: float(factor) for name, factor in factors.items()})


def _hash(digits: object) -> str:
    if not isinstance(digits, str) or not HASH.fullmatch(digits):  # fewer digits would fit more than one subject
        raise ValueError(f"a subject's hash is {digits!r}, expected 12 hex digits")
    return digits


def _optional(kind: Callable[[str], Number], text: str | None) -> Number | None:
    return None if text is None else kind(text)
