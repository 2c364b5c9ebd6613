"""The safetensors files that a run keeps, read as if anybody had damaged or made them: bounded, and with one error."""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..subject.errors import cut, shown

MAX_BYTES = 2**31  # a checkpoint with an adapter of rank 64 for the largest UNet has 1.5 GB
MAX_STEP = 10**9
MAX_DEPTH = 16


class DamagedFileError(ValueError):
    """What a file holds is not what its writer wrote; the message says what, in one line, without the file's name."""


def read_tensors(path: Path, form: str, types: Sequence[str] = ("F32",)) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a file, and its metadata.

    Args:
        form: what the metadata has to state as `format`.
        types: what its tensors may be of, as safetensors calls them.

    Raises:
        DamagedFileError: it is missing, no regular file, too large, damaged or of another format.
    """
    try:
        if not path.is_file():
            raise DamagedFileError("it is no regular file" if path.exists() else "there is no such file")
        if (size := path.stat().st_size) > MAX_BYTES:
            raise DamagedFileError(f"it has {size:,} bytes, expected at most {MAX_BYTES:,}")
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if (found := metadata.get("format")) != form:
                raise DamagedFileError(f"its format is {shown(found)}, expected {form!r}")
            names = list(file.keys())
            for name in names:
                if (dtype := file.get_slice(name).get_dtype()) not in types:
                    raise DamagedFileError(f"{shown(name)} is of type {dtype}, expected {' or '.join(types)}")
            return {name: file.get_tensor(name) for name in names}, metadata
    except (SafetensorError, OSError, RuntimeError, TypeError) as error:  # torch's own, for shapes beyond any memory
        raise DamagedFileError(cut(str(error).partition("\n")[0], 200)) from error


def read_json(metadata: dict[str, str], key: str) -> Any:
    """What an entry of the metadata holds as JSON; no NaN, and nothing nested without end.

    Raises:
        DamagedFileError: it is missing or no JSON.
    """
    if key not in metadata:
        raise DamagedFileError(f"its metadata has no {key!r}")
    try:
        value = json.loads(metadata[key], parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"its {key!r} is no JSON: {shown(metadata[key])}") from error
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [child for one in level for child in _children(one)]
    if level:
        raise DamagedFileError(f"its {key!r} is nested deeper than {MAX_DEPTH} times")
    return value


def numbers(value: Any, what: str) -> list[float]:
    """The value, if it is a list of finite numbers.

    Raises:
        DamagedFileError: it is not.
    """
    if not isinstance(value, list) or not all(map(is_finite, value)):
        raise DamagedFileError(f"{what} are {shown(value)}, expected a list of finite numbers")
    return [float(one) for one in value]


def losses_by_step(value: Any) -> dict[int, float]:
    """The losses that were measured on the way: a list of steps, each with its finite loss.

    Raises:
        DamagedFileError: it is not.
    """
    pairs = value if isinstance(value, list) else [value]
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs) or not all(
        is_count(step) and is_finite(loss) for step, loss in pairs
    ):
        raise DamagedFileError(f"its validation losses are {shown(value)}, expected steps, each with a finite number")
    found = {step: float(loss) for step, loss in pairs}
    if list(found) != sorted(found) or len(found) != len(pairs):
        raise DamagedFileError("the steps of its validation losses are in no order")
    return found


def is_finite(value: object) -> TypeGuard[float]:
    """Whether it is a number that float can hold."""
    if type(value) is int:
        return abs(value) <= 2**63
    return type(value) is float and math.isfinite(value)


def is_count(value: object) -> TypeGuard[int]:
    """Whether it can be a number of steps."""
    return type(value) is int and 0 <= value <= MAX_STEP


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
