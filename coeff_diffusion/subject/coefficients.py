"""What is trained, saved, loaded, blended and shared: the coefficients of one subject and where they came from."""

import hashlib
import json
import re
import sys
import types
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, Self, get_args, get_origin

import torch
from torch import Tensor

MAX_TEXT = 2_000  # characters of any one text in CoefficientsInfo
MAX_LIST = 256  # entries of any one list in it; the largest UNet of Stable Diffusion has 140 attention layers
MAX_INFO = 256 * 1024  # characters of all of it as JSON: fields that nobody knows yet are kept, but not without end
MAX_HEADS = 128
MAX_TOKEN = (64, 8_192)  # vectors, channels
MAX_MAGNITUDE = 100.0  # the identity is 1, token embeddings are about 0.03: more is damage or an attack

LAYER_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
TOKEN_OWNERS = ("text_encoder", "text_encoder_2")
TENSOR_NAME = re.compile(rf"unet\.{LAYER_NAME.pattern}\.coeff|({'|'.join(TOKEN_OWNERS)})\.token")


class CoefficientsError(ValueError):
    """Coefficients are damaged, contradict themselves or do not fit the base; the message names both sides."""


@dataclass(frozen=True)
class CoefficientsInfo:
    """Where coefficients came from. Every field may be left out; empty means unknown.

    Raises:
        CoefficientsError: a text or list is too long, a text holds control characters, or a number is not finite.
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
    layers: Literal["all", "self", "cross"] = "all"
    """Which attention layers were trained (see `CoeffConfig`); one of them without coefficients is an error at load."""
    blocks: tuple[str, ...] = ()
    """The block patterns they were chosen by (see `CoeffConfig`)."""
    train_steps: int | None = None
    seed: int | None = None
    gate: Literal["trigger", "always"] = "trigger"
    """Whether the coefficients act on prompts with the trigger only, or on all. Without a trigger they act on all."""
    license: str = ""
    created: str = ""
    """ISO date, UTC."""
    trained_with: str = ""
    """Program and version."""
    final_loss: float | None = None
    effect: float | None = None
    """How much the subject changes the prediction on its own pictures, relative to the base's."""
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
                elif isinstance(text, str) and _controls(text, allowed="\n\t" if "prompt" in item.name else ""):
                    problems.append(f"{item.name} holds control characters: {shown(text)}")
        if problems:
            raise CoefficientsError(f"the info of these coefficients is not valid: {listed(problems)}")

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


class Coefficients(Mapping[str, Tensor]):
    """Residual matrices by attention path, the trigger's embedding where there is one, and where both came from.

    Immutable: what is read from it is a copy. Equal if tensors and info are.

    Args:
        coeffs: `[H, H]` by attention path (as in `unet.attn_processors`, without `.processor`).
        tokens: the learned vectors of the trigger, `[vectors, D]`, by text encoder ("text_encoder"), or none.
        info: where they came from.

    Raises:
        CoefficientsError: a name, shape or value is not valid; the message names the first offenders.
    """

    def __init__(
        self,
        coeffs: Mapping[str, Tensor],
        tokens: Mapping[str, Tensor] | None = None,
        info: CoefficientsInfo | None = None,
    ) -> None:
        self.info = info or CoefficientsInfo()
        self._coeffs = {path: _own(coeff) for path, coeff in coeffs.items()}
        self._tokens = {owner: _own(token) for owner, token in (tokens or {}).items()}
        problems = [
            *(f"{shown(path)} is no attention path" for path in self._coeffs if not LAYER_NAME.fullmatch(path)),
            *(
                f"{cut(path)}.coeff is {list(coeff.shape)}, expected square, 1 to {MAX_HEADS} heads"
                for path, coeff in self._coeffs.items()
                if coeff.ndim != 2 or len(set(coeff.shape)) != 1 or not 1 <= coeff.shape[0] <= MAX_HEADS
            ),
            *(
                f"{shown(owner)} is no text encoder, expected one of {', '.join(TOKEN_OWNERS)}"
                for owner in self._tokens
                if owner not in TOKEN_OWNERS
            ),
            *(
                f"{cut(owner)}.token is {list(token.shape)}, expected [1 to {MAX_TOKEN[0]}, 1 to {MAX_TOKEN[1]}]"
                for owner, token in self._tokens.items()
                if token.ndim != 2 or any(not 1 <= n <= most for n, most in zip(token.shape, MAX_TOKEN, strict=True))
            ),
        ]
        if not self._coeffs and not self._tokens:
            problems.append("there are neither coefficients nor a token")
        if self._tokens and not self.info.trigger:
            problems.append("there is a token, but info.trigger does not say for which words")
        problems += [
            f"{cut(name)} holds {_worst(tensor)}, expected finite values of magnitude up to {MAX_MAGNITUDE:g}"
            for name, tensor in self._named()
            if not bool((tensor.abs() <= MAX_MAGNITUDE).all())
        ]
        if problems:
            raise CoefficientsError(f"these coefficients are not valid: {listed(problems)}")

    def __getitem__(self, path: str) -> Tensor:
        return self._coeffs[path].clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self._coeffs)

    def __len__(self) -> int:
        return len(self._coeffs)

    @property
    def tokens(self) -> dict[str, Tensor]:
        """The learned vectors of the trigger by text encoder, `[vectors, D]`; empty without a learned token."""
        return {owner: token.clone() for owner, token in self._tokens.items()}

    def named_tensors(self) -> dict[str, Tensor]:
        """All tensors under their names in a file, sorted: `unet.<path>.coeff` and `<text encoder>.token`."""
        return {name: tensor.clone() for name, tensor in self._named()}

    def _named(self) -> list[tuple[str, Tensor]]:
        """The same without copies, which add up when a stranger's file is as large as it may be."""
        named = [(f"unet.{path}.coeff", coeff) for path, coeff in self._coeffs.items()]
        return sorted(named + [(f"{owner}.token", token) for owner, token in self._tokens.items()], key=itemgetter(0))

    @classmethod
    def from_named_tensors(cls, named: Mapping[str, Tensor], info: CoefficientsInfo | None = None) -> "Coefficients":
        """The inverse of `named_tensors`.

        Raises:
            CoefficientsError: a name is of neither form, or what it names is not valid.
        """
        unexpected = [name for name in named if not TENSOR_NAME.fullmatch(name)]
        if unexpected:
            raise CoefficientsError(
                f"unexpected tensors {listed([shown(name) for name in unexpected])}; expected only "
                "unet.<attention path>.coeff and text_encoder.token"
            )
        ordered = sorted(named.items())  # safetensors gives them in random order
        return cls(
            {k.removeprefix("unet.").removesuffix(".coeff"): tensor for k, tensor in ordered if k.endswith(".coeff")},
            {k.removesuffix(".token"): tensor for k, tensor in ordered if k.endswith(".token")},
            info,
        )

    @cached_property
    def sha256(self) -> str:
        """Hex digest of all tensor bytes in the order of the file (ModelSpec's `hash_sha256`)."""
        digest = hashlib.sha256()
        for _, tensor in self._named():
            digest.update(tensor.numpy().astype("<f4").tobytes())
        return digest.hexdigest()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Coefficients):
            return NotImplemented
        mine, theirs = dict(self._named()), dict(other._named())
        same = self.info == other.info and mine.keys() == theirs.keys()
        return same and all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())

    def __hash__(self) -> int:
        return hash((self.sha256, self.info))

    def __repr__(self) -> str:
        values = sum(tensor.numel() for _, tensor in self._named())
        return f"<Coefficients {self.info.name!r}: trigger {self.info.trigger!r}, {len(self)} layers, {values} values>"

    @classmethod
    def load(cls, source: str | Path, name: str | None = None) -> "Coefficients":
        """Read a file, a card (a picture that carries a subject), a folder that holds `coefficients.safetensors`, or a
        Hub id ("user/repo").

        Args:
            name: which subject of a card that carries several: its name, or the first 12 digits of its hash.

        Raises:
            CoefficientsError: it is missing, damaged, not of this format, holds values that make no sense, or several
                subjects and `name` does not say which.
        """
        from .safetensors_file import locate, read

        return read(locate(source), name)

    def save(self, path: str | Path) -> None:
        """Write one `.safetensors` file of format version 1, whole or not at all."""
        from .safetensors_file import write

        write(self, path)

    def replace(self, **changes: Any) -> "Coefficients":
        """A copy with other `coeffs`, `tokens` or `info`."""
        return Coefficients(**{"coeffs": self._coeffs, "tokens": self._tokens, "info": self.info, **changes})

    def scaled(self, strength: float) -> "Coefficients":
        """A copy with every coefficient times `strength`. The token is a word; it does not scale."""
        return self.replace(coeffs={path: coeff * strength for path, coeff in self._coeffs.items()})


def _own(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True).contiguous()


def _worst(tensor: Tensor) -> float:
    """The value furthest from zero, NaN before all."""
    flat = tensor.flatten()
    return float(flat[flat.abs().nan_to_num(nan=torch.inf).argmax()])


def listed(problems: list[str], most: int = 3) -> str:
    """The first few problems, and how many more there are."""
    return "; ".join(problems[:most]) + (f" (and {len(problems) - most} more)" if len(problems) > most else "")


def shown(value: object) -> str:
    """A value of unknown origin, fit for one line of an error."""
    return cut(repr(value))


def cut(text: str, most: int = 80) -> str:
    """The text, or its beginning where it is longer than `most`: names from strangers can be endless."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _controls(text: str, allowed: str) -> bool:
    """Whether a text holds characters that steer a terminal, or halves of surrogate pairs."""
    return any(unicodedata.category(letter) in ("Cc", "Cs") and letter not in allowed for letter in text)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _type_name(kind: Any) -> str:
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
