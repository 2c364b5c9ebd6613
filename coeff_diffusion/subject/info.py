"""Where coefficients came from: the card index of a subject, as it stands in its file."""

import json
import sys
import types
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self, get_args, get_origin

from .adapter_kind import AdapterKind
from .errors import CoefficientsError, listed, shown
from .places import LayerKinds

Gate = Literal["trigger", "always"]  # on which prompts a subject acts: on those with its trigger, or on all
MAX_TEXT = 2_000  # characters of any one text in CoefficientsInfo
MAX_LIST = 256  # entries of any one list in it; the largest UNet of Stable Diffusion has 140 attention layers
TURNS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # with them "gpj.exe" reads "exe.jpg"
IN_PROMPTS = f"\n\t{TURNS}"  # those of Arabic and Hebrew may hold them
MAX_INFO = 256 * 1024  # characters of all of it as JSON: fields that nobody knows yet are kept, but not without end

# Of drawn pictures by fives one set in a thousand is 1.6 times as far off as the embedded base's own, photos 2.4 times
# (tools/base/known_pictures.py measures both).
UNKNOWN = 2.0


def not_learned(strangeness: float | None) -> str:
    """What a subject of this strangeness did not reach, as half a sentence; empty where it did, or none is known."""
    if strangeness is None or strangeness < UNKNOWN:
        return ""
    return (
        f"with it the base is still {strangeness:.3g} times as far off as with pictures that it knows, and what it "
        "draws will look like noise"
    )


@dataclass(frozen=True)
class CoefficientsInfo:
    """Where coefficients came from. Every field may be left out; empty means unknown.

    Raises:
        CoefficientsError: a text or list is too long, a text holds control characters, a name one that turns the
            direction of writing, or a number is not finite.
    """

    name: str = ""
    """The subject's name, for people."""
    trigger: str = ""
    """The words that call the subject up, such as "sks dog"."""
    class_word: str = ""
    """What kind of thing the subject is, such as "dog"; takes the trigger's place in a prompt for the base."""
    instance_prompt: str = ""
    class_prompt: str = ""
    base_model: str = ""
    """The base's folder name or Hub id."""
    base_revision: str = ""
    base_architecture: str = ""
    """The base's family, as ModelSpec names it: "stable-diffusion-v1", "stable-diffusion-xl-v1-base", "custom", ..."""
    base_fingerprint: str = ""
    """`fingerprint(unet)` of the base: its attention layers."""
    base_sample: tuple[float, ...] = ()
    """`weight_sample(unet)` of the base: a few of its weights."""
    resolution: int | None = None
    """Pixels of a training picture's side."""
    prediction_type: str = ""
    """What the base predicts: "epsilon" or "v_prediction"."""
    layers: LayerKinds = "all"
    """Which attention layers were trained (see `CoeffConfig`); one of them without coefficients is an error at load."""
    blocks: tuple[str, ...] = ()
    """The block patterns they were chosen by (see `CoeffConfig`)."""
    train_steps: int | None = None
    seed: int | None = None
    gate: Gate = "trigger"
    """Whether the coefficients act on prompts with the trigger only, or on all. Without a trigger they act on all."""
    license: str = ""
    created: str = ""
    """ISO date, UTC."""
    trained_with: str = ""
    """Program and version."""
    final_loss: float | None = None
    effect: float | None = None
    """How much the subject changes the prediction on its own pictures, relative to the base's."""
    strangeness: float | None = None
    """How many times as far off the base is with its pictures, after training, as with pictures that it knows."""
    adapter: str = ""
    """The adapter that learned with it and lies beside it (see `AdapterKind`), such as "lora:4"."""
    adapter_sha256: str = ""
    """Hex SHA-256 of the adapter's file."""
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Fields that a newer version has written; kept as they are."""

    def __post_init__(self) -> None:
        problems = []
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name == "extra":
                continue
            if not _fits(value, item.type):
                problems.append(f"{item.name} is {shown(value)}, expected {_type_name(item.type)}")
            if isinstance(value, tuple) and len(value) > MAX_LIST:
                problems.append(f"{item.name} has {len(value)} entries, expected at most {MAX_LIST}")
                continue
            for text in value if isinstance(value, tuple) else (value,):
                if isinstance(text, str) and len(text) > MAX_TEXT:
                    problems.append(f"{item.name} has {len(text)} characters, expected at most {MAX_TEXT}")
                elif isinstance(text, str) and _controls(text, IN_PROMPTS if "prompt" in item.name else ""):
                    problems.append(f"{item.name} holds control characters: {shown(text)}")
        if problems:
            raise CoefficientsError(f"the info of these coefficients is not valid: {listed(problems)}")
        if self.adapter:
            AdapterKind.parse(self.adapter)

    @property
    def adapter_file(self) -> str:
        """How the file of its adapter is called, where it learned with one."""
        return AdapterKind.parse(self.adapter).file

    def to_json(self) -> str:
        """The fields that are not at their defaults, as compact JSON with sorted keys."""
        default = vars(CoefficientsInfo())
        known = {key: value for key, value in vars(self).items() if key != "extra" and value != default[key]}
        return json.dumps({**self.extra, **known}, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of `to_json`. Fields this version does not know go to `extra`.

        Raises:
            CoefficientsError: too long, not a JSON object, or a field has another type than expected.
        """
        if len(text) > MAX_INFO:
            raise CoefficientsError(
                f"the info of these coefficients has {len(text)} characters, expected at most {MAX_INFO}"
            )
        try:
            data = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise CoefficientsError(f"the info of these coefficients is not JSON: {shown(text)}") from error
        if not isinstance(data, dict):
            raise CoefficientsError(f"the info of these coefficients is {shown(data)}, expected a JSON object")
        names = {item.name for item in fields(cls)} - {"extra"}
        known: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in data.items() if key in names
        }
        info = cls(**known, extra={key: value for key, value in data.items() if key not in names})
        try:
            info.to_json()
        except (ValueError, RecursionError) as error:  # an infinite number, or lists nested without end
            raise CoefficientsError(
                "the info of these coefficients holds a field that cannot be written again"
            ) from error
        return info


def _controls(text: str, allowed: str) -> bool:
    """Whether a text holds characters that steer a terminal, turn the writing around, or are half of a pair."""
    return any(
        (letter in TURNS or unicodedata.category(letter) in ("Cc", "Cs")) and letter not in allowed for letter in text
    )


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _type_name(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(repr, get_args(kind)))}"
    return kind.__name__ if isinstance(kind, type) and get_origin(kind) is None else str(kind).replace("typing.", "")


def _fits(value: object, kind: Any) -> bool:
    """Whether a value is of the type that a field of CoefficientsInfo declares."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if isinstance(kind, types.UnionType):
        return any(_fits(value, option) for option in get_args(kind))
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_fits(item, get_args(kind)[0]) for item in value)
    if kind is float:
        return type(value) in (float, int) and abs(value) <= sys.float_info.max  # type: ignore[arg-type]
    return type(value) is kind
