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
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..subject.errors import cut, shown
from ..subject.layer_strengths import LayerStrengths
from ..subject.setting import Setting, setting, settings_of
from .drawing_settings import DrawRequest
from .errors import PictureError as PictureError  # a part of what this module offers
from .sampler_names import find_sampler

NEGATIVE = "Negative prompt:"
# `Key: value` or `Key: "quoted value"`, separated by commas: the expression A1111 itself reads with, but with keys of
# bounded length and nothing to go back for, so that the time it takes grows with the text and no faster.
FIELD = re.compile(r'(\w[\w \-/]{1,60}):\s*("(?:[^\\"]|\\.)++"|[^,\n]*)(?:,|$)', re.MULTILINE)
BEGIN = re.compile(r"Steps: ?\d{1,20},")  # of the fields, in every program that writes this form
HASH = re.compile(r"[0-9a-f]{12}")
SIZE = re.compile(r"\(?\s*(\d{1,7})\s*[x×*,]\s*(\d{1,7})\s*\)?", re.IGNORECASE)
WHOLE = re.compile(r"([+-]?\d{1,20})(?:\.0*)?")  # seeds have 20 digits in some programs; more is nothing that is meant
FIRST = ("Steps", "Sampler", "CFG scale", "Guidance rescale", "Seed", "Size", "Model", "Base hash", "Precision",
         "Batch size", "Batch pos", "Hires upscale", "Hires denoising strength", "Hires steps", "Hires upscaler",
         "Refiner", "Refiner switch at", "Postprocess upscale by", "Postprocess upscaler")  # fmt: skip
"""The keys that come first, as other tools have them; all others follow."""
OTHERS = {"Schedule type", "Sampler sigma", "Scheduler"}
"""What other programs call a sampler's schedule where they write it apart."""
LENIENT = {*FIRST} - {"Base hash", "Precision"}
"""Keys that other programs write, too, each in its own way: one that makes no sense is noted and left out."""


@dataclass(frozen=True)
class Parameters(DrawRequest):
    """How a picture was drawn: the request for it, and by what.

    What the text does not say is at its default. `scheduler` is the sampler's name. `batch_size` is the number of
    pictures that were drawn at once: it decides the order in which a computer adds, and so the last bits. Of a subject
    of strength 0 the class word stands in the prompt.
    """

    model: str | None = setting(None, text="Model")
    """The base's name."""
    template: str = setting("", text="Template")
    negative_template: str = setting("", text="Negative Template")
    styles: str = setting("", text="Styles")
    base_hash: str | None = setting(None, text="Base hash")
    """`fingerprint.base_hash` of the base, with its weights in `precision`."""
    precision: str | None = setting(None, text="Precision")
    """Dtype of the base's weights, where it is not float32, and how they are rounded: "bfloat16/int8"."""
    start_digits: str | None = setting(None, text="Start picture")
    """`StartPicture.digits` of the picture that it was drawn from."""
    control_digits: str | None = setting(None, text="Control picture")
    """`ControlPicture.digits` of the picture that it was held to."""
    controlnet: str | None = setting(None, text="ControlNet")
    """The name of the ControlNet."""
    controlnet_hash: str | None = setting(None, text="ControlNet hash")
    """`ControlPicture.net_digits` of it."""
    refiner_name: str | None = setting(None, text="Refiner")
    """The name of the refiner that finished it."""
    refiner_hash: str | None = setting(None, text="Refiner hash")
    """`RefinerName.digits` of it; other programs write none."""
    hires_upscaler: str | None = setting(None, text="Hires upscaler", of="hires_scale")
    """What made it larger for its second pass: Lanczos, or the name of a network."""
    upscaler: str | None = setting(None, text="Postprocess upscaler")
    """What made it larger once it was drawn: as `hires_upscaler`."""
    upscaler_hash: str | None = setting(None, text="Upscaler hash")
    """`Upscaler.digits` of the network."""
    batch_position: int | None = setting(None, text="Batch pos")
    """The place of this picture among those that were drawn at once, from 0; None if it was drawn alone."""
    hashes: Mapping[str, str] = field(default_factory=dict)
    """The first 12 hex digits of each subject's `sha256`, by the same names; empty in older pictures."""
    unsaid: frozenset[str] = frozenset()
    """Fields that our own pictures always say and this one, by another tool, does not."""
    extra: Mapping[str, str] = field(default_factory=dict)
    """Further keys in the order they stand, kept as written."""
    notes: tuple[str, ...] = ()
    """What of the text makes no sense or is taken as something else, a sentence each."""


IN_ORDER = sorted(settings_of(Parameters).values(), key=lambda one: (*FIRST, one.text).index(one.text))
KEYS = {one.text: one for one in IN_ORDER if one.text}
"""The fields that have a key of their own in the text, by that key."""
PICTURES = {"start": "Start picture", "control": "Control picture"}
OF_PICTURES = {one.text: PICTURES[one.of] for one in IN_ORDER if one.of in PICTURES}
"""Keys that others write, too, of pictures that nobody has any more: taken only where there is that key."""
SECOND, SECOND_STRENGTH, STRENGTH = "Hires upscale", "Hires denoising strength", "Denoising strength"
"""A1111 has one key for how much image to image changes, and the second pass: no picture has both."""
OURS = {*KEYS, "Subjects", "Subject hashes", "Exact prompt", "Exact negative prompt"} - LENIENT - OF_PICTURES.keys()
"""Keys that nobody else writes."""


def format_parameters(parameters: Parameters) -> str:
    """The text other UIs read. `parse_parameters` gives back exactly what went in."""
    p = parameters
    said = {key: _written(one, getattr(p, one.name)) for key, one in KEYS.items() if one.name not in p.unsaid}
    said["Size"] = None if p.width is None or p.height is None else f"{p.width}x{p.height}"
    fields: dict[str, object] = {
        **dict.fromkeys(FIRST),
        **said,
        "Subjects": json.dumps(dict(p.subjects), ensure_ascii=False) if p.subjects else None,
        "Subject hashes": json.dumps(dict(p.hashes), ensure_ascii=False) if p.hashes else None,
        **p.extra,
    }
    if fields.get(SECOND) is not None and fields.get(STRENGTH) is None:
        del fields[STRENGTH]
        fields = {STRENGTH if key == SECOND_STRENGTH else key: value for key, value in fields.items()}
    # The form cannot tell every prompt from its own syntax. Where reading would change one, it is kept aside, exactly.
    like = "Size: 8x8, Seed: 1, " + ("Model: 1" if fields.get("Steps") is None else "Steps: 1")
    if _split(f"{_prompts(p)}\n{like}")[:2] != (p.prompt, p.negative_prompt):
        fields |= {"Exact prompt": json.dumps(p.prompt), "Exact negative prompt": json.dumps(p.negative_prompt)}
    line = ", ".join(f"{key}: {_quote(value)}" for key, value in fields.items() if value is not None)
    return f"{_prompts(p)}\n{line}"


def parse_parameters(text: str) -> Parameters:
    """Read the text of any tool that writes A1111's form; keys that are not ours land in `extra`.

    Raises:
        PictureError: a value that only we write is not what it should be.
    """
    prompt, negative, raw = _split(text)
    return from_fields(prompt, negative, {key: _unquote(value) for key, value in raw.items()})


def from_fields(prompt: str, negative: str, fields: Mapping[str, str], notes: tuple[str, ...] = ()) -> Parameters:
    """The parameters that the fields of A1111's form make, whoever wrote them.

    Args:
        notes: what is to be said already.

    Raises:
        PictureError: see `parse_parameters`.
    """
    fields, noted = dict(fields), list(notes)
    try:
        subjects = json.loads(fields.pop("Subjects", "{}"))
        hashes = json.loads(fields.pop("Subject hashes", "{}"))
        exact = (json.loads(fields.pop(f"Exact {name}prompt", "null")) for name in ("", "negative "))
        prompt, negative = (
            words if text is None else str(text) for words, text in zip((prompt, negative), exact, strict=True)
        )
        said = _shared(fields, noted)
        mine = [key for key in KEYS if key in fields and OF_PICTURES.get(key, key) in fields and key not in LENIENT]
        said |= {KEYS[key].name: _read(KEYS[key], fields.pop(key)) for key in mine}
        found = Parameters(
            prompt=prompt,
            negative_prompt=negative,
            subjects={str(name): float(strength) for name, strength in subjects.items()},
            hashes={str(name): _hash(digits) for name, digits in hashes.items()},
            unsaid=frozenset(one.name for one in KEYS.values() if one.always and one.name not in said),
            extra=fields,
            notes=tuple(noted),
            **said,
        )
        for part in (found.prompt, found.negative_prompt, *said.values(), *found.subjects):
            str(part).encode()  # half of a surrogate pair is no text that a tokenizer could read
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise PictureError(f"the picture's parameters cannot be read: {cut(str(error), 200)}") from error
    return found


def _shared(fields: dict[str, str], notes: list[str]) -> dict[str, Any]:
    """What the keys say that other programs write, too. They are taken out; of one that makes no sense there is a note.

    The sampler is called as it is here, where it is known.
    """
    said: dict[str, Any] = {}
    if size := fields.pop("Size", None):
        if sides := SIZE.fullmatch(size.strip()):
            said |= {"width": int(sides[1]), "height": int(sides[2])}
        else:
            notes.append(f"its Size is {shown(size)}, expected two numbers as in 512x512")
    schedule = " ".join(filter(None, (fields.pop(key, "").strip() for key in sorted(OTHERS))))
    for key in FIRST:
        if key not in LENIENT or key not in KEYS:
            continue
        if KEYS[key].of == "hires_scale" and not said.get("hires_scale", 1) > 1:
            continue
        written = STRENGTH if key == SECOND_STRENGTH and key not in fields else key
        if (text := fields.pop(written, None)) is None:
            continue
        try:
            said[KEYS[key].name] = _read(KEYS[key], text)
        except ValueError:
            notes.append(f"its {written} is {shown(text)}, expected a number")
    if "scheduler" in said:
        sampler = find_sampler(said["scheduler"], schedule)
        if sampler.label and sampler.note:
            notes.append(sampler.note)
        said["scheduler"] = sampler.label or f"{said['scheduler']} {schedule}".strip()
    elif schedule:
        notes.append(f"its schedule {shown(schedule)} is said without a sampler")
    return said


# --- the text ---------------------------------------------------------------------------------------------------------


def _prompts(p: Parameters) -> str:
    return f"{p.prompt}\n{NEGATIVE} {p.negative_prompt}" if p.negative_prompt else p.prompt


def _split(text: str) -> tuple[str, str, dict[str, str]]:
    """Prompt, negative prompt and the raw fields, which mostly are the last line, split the way A1111 does."""
    lines = text.strip().split("\n")
    begin, fields = len(lines) - 1, dict(FIELD.findall(lines[-1]))
    if "Steps" not in fields:  # somebody else's line may follow, or the prompt stand before them in the same one
        lines[-1:] = _apart(lines[-1])
        begin = next((i for i, line in reversed([*enumerate(lines)]) if BEGIN.match(line.lstrip())), len(lines) - 1)
        fields = dict(FIELD.findall("\n".join(lines[begin:])))
    if len(fields) < 3:  # then the last line is part of a prompt
        fields, begin = {}, len(lines)
    prompt: list[str] = []
    negative: list[str] = []
    target = prompt
    for line in lines[:begin]:
        stripped = line.strip()
        if stripped.startswith(NEGATIVE):
            target, stripped = negative, stripped[len(NEGATIVE) :].strip()
        target.append(stripped)
    return "\n".join(prompt).strip(), "\n".join(negative).strip(), fields


def _apart(line: str) -> list[str]:
    """Prompts and fields that somebody has written into one line, a line each; any other line as it is."""
    place = re.search(rf"(?<![,\s])\s+{BEGIN.pattern}", line)
    if place is None or len(FIELD.findall(line[place.start() :])) < 3:
        return [line]
    return [*re.split(rf"(?<!\s)\s+(?={NEGATIVE})", line[: place.start()]), line[place.start() :]]


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


def _written(one: Setting, value: Any) -> object:
    """What the text says of a setting; None where it says nothing."""
    if value == one.default and not one.always:
        return None
    return json.dumps(value.changed()) if one.kind is LayerStrengths else value


def _read(one: Setting, text: str) -> Any:
    if one.kind is LayerStrengths:
        return _layers(json.loads(text))
    if one.choices and text not in one.choices:
        raise ValueError(f"{one.text} is {text!r}, expected {' or '.join(one.choices)}")
    if one.kind is int:
        if not (whole := WHOLE.fullmatch(text.strip())):
            raise ValueError(f"{one.text} is {shown(text)}, expected a whole number")
        return int(whole[1])
    return one.kind(text)


def _layers(factors: Mapping[str, float]) -> LayerStrengths:
    if unknown := factors.keys() - vars(LayerStrengths()).keys():
        raise ValueError(f"there are no layers called {', '.join(sorted(unknown))}")
    return LayerStrengths(**{name: float(factor) for name, factor in factors.items()})


def _hash(digits: object) -> str:
    if not isinstance(digits, str) or not HASH.fullmatch(digits):  # fewer digits would fit more than one subject
        raise ValueError(f"a subject's hash is {digits!r}, expected 12 hex digits")
    return digits
