"""Files of format version 1: one safetensors file per subject, read with every check there is, written whole.

Tensors: `unet.<attention path>.coeff` `[H, H]` and `text_encoder.token` `[vectors, D]`. Metadata: `format`,
`format_version`, `info` (JSON of `CoefficientsInfo`) and ModelSpec 1.0.1 keys for other tools. What is read comes from
strangers: it is never unpickled, its size is bounded before it is opened, and any damage is a `CoefficientsError`.
"""

import json
import os
import re
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from .coefficients import Coefficients, CoefficientsError, CoefficientsInfo, listed, shown

FORMAT = "coeff-diffusion"
FORMAT_VERSION = "1"
FILE_NAME = "coefficients.safetensors"
MAX_FILE = 16 * 2**20
MAX_HEADER = 2 * 2**20
MAX_TENSORS = 1_024  # the largest UNet of Stable Diffusion has 140 attention layers
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}  # narrower ones are widened when read
PICTURES = (".png", ".jpg", ".jpeg", ".webp")  # a subject is in a chunk of a PNG, or in a QR code in any of them
HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+)(?:@([\w./-]+))?")  # user/repository, user/repository@revision
PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
MODELSPEC_PREDICTION = {"epsilon": "epsilon", "v_prediction": "v"}
# What else people have in .safetensors files: by the format in the metadata, and by the name of any tensor.
OTHER_FORMATS = {
    "coeff-diffusion-timeline": "a timeline, which keeps many steps of a training run; the subject of the run is "
    f"{FILE_NAME} beside it",
    "coeff-diffusion-checkpoint": f"a checkpoint of a training run; the subject of the run is {FILE_NAME}",
}
OTHER_TENSORS = (
    (r"lora", "a LoRA"),
    (r"^(model\.diffusion_model|(first|cond)_stage_model|conditioner)\.", "a whole checkpoint, which is a base"),
    (r"^(down_blocks|mid_block|up_blocks)\.", "the UNet of a base"),
    (r"^emb_params$|^string_to_param|^clip_[gl]$|^<.*>$", "a textual inversion"),
)


@contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """A file that appears under `path` complete when the block ends well, and not at all when it does not.

    Whatever fails, the file that was there before is left as it was and nothing else stays behind.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def locate(source: str | Path) -> Path:
    """The file that `source` means: a file, a folder that holds `coefficients.safetensors`, or a Hub id ("user/repo").

    A file is a subject's own, or a picture that carries one (see `cards`). An id may name a branch, tag or commit
    ("user/repo@v1").

    Raises:
        CoefficientsError: there is no such file, or the Hub does not give it.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / FILE_NAME).is_file():
            raise CoefficientsError(f"the folder {path} holds no {FILE_NAME}")
        return path / FILE_NAME
    names_a_file = path.suffix.lower() in (".safetensors", *PICTURES)
    if isinstance(source, str) and not path.exists() and not names_a_file and HUB_ID.fullmatch(source):
        from ..sources.hub import fetch_coefficients

        return fetch_coefficients(source)
    return path


def read(path: str | Path, name: str | None = None) -> Coefficients:
    """Read a file of format version 1, or the subject that a picture carries.

    Args:
        name: which subject, where a picture carries several; any other file has to be of this name.

    Raises:
        CoefficientsError: it is missing, no regular file, too large, damaged, not of this format, or its values make no
            sense. The message names the first offenders and what was expected.
    """
    from ..sources.image_card import choose, read_card

    path = Path(path)
    if path.is_symlink():
        raise CoefficientsError(f"{path} is a symbolic link to {path.readlink()}; give the file itself")
    if not path.is_file():
        raise CoefficientsError(f"there is no file {path}" if not path.exists() else f"{path} is not a regular file")
    if path.suffix.lower() in PICTURES:
        return read_card(path, name)
    try:
        with path.open("rb") as file:
            subject = from_bytes(file.read(MAX_FILE + 1))
    except OSError as error:
        raise CoefficientsError(f"{path} cannot be read: {error.strerror}") from error
    except CoefficientsError as error:
        raise CoefficientsError(f"{path}: {error}") from error
    return choose([subject], name, path)


def write(coefficients: Coefficients, path: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a file of format version 1, whole or not at all. The same coefficients always give the same bytes."""
    data = to_bytes(coefficients, dtype)
    with atomic_write(path) as file:
        file.write(data)


def to_bytes(coefficients: Coefficients, dtype: torch.dtype = torch.float32) -> bytes:
    """The content of a file of format version 1.

    Args:
        dtype: of its numbers: float32 keeps every bit, float16 and bfloat16 round to half the size. The hash is of what
            a reader gets: the rounded numbers, widened again.

    Raises:
        CoefficientsError: no such dtype in a file, or a number is too large for it.
    """
    if dtype not in DTYPES.values():
        raise CoefficientsError(f"files hold {', '.join(map(str, DTYPES.values()))}, not {dtype}")
    tensors = {name: tensor.to(dtype) for name, tensor in coefficients.named_tensors().items()}
    return serialize(tensors, _metadata(Coefficients.from_named_tensors(tensors, coefficients.info)))


def serialize(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file; the same content always gives the same bytes.

    (The library writes the metadata in random order.)
    """
    data = safetensors.torch.save(dict(tensors), dict(metadata))
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # tensors stay aligned
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def from_bytes(data: bytes) -> Coefficients:
    """The inverse of `to_bytes`, with every check.

    Raises:
        CoefficientsError: `data` is too large, damaged, not of this format, or its values make no sense.
    """
    if len(data) > MAX_FILE:
        raise CoefficientsError(f"larger than {MAX_FILE // 2**20} MiB, which no subject is; {_what_it_is(data)}")
    header = _header(data)
    metadata = header.pop("__metadata__", {})
    _check_format(metadata, header)
    try:
        tensors = safetensors.torch.load(data)
    except (SafetensorError, ValueError, TypeError, RuntimeError) as error:  # torch's own, for shapes beyond any memory
        raise CoefficientsError(f"damaged: {str(error).partition(chr(10))[0]}") from error
    coefficients = Coefficients.from_named_tensors(tensors, CoefficientsInfo.from_json(metadata["info"]))
    recorded = metadata.get("modelspec.hash_sha256", "").removeprefix("0x")
    if recorded and recorded != coefficients.sha256:
        raise CoefficientsError(
            f"incomplete, changed or damaged: the hash of its {len(tensors)} tensors is {coefficients.sha256[:16]}..., "
            f"but {shown(recorded[:16])}... is recorded"
        )
    return coefficients


def _header(data: bytes) -> dict[str, Any]:
    """The JSON header of a safetensors file, its size and its keys checked."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(MAX_HEADER, len(data) - 8):
        if data.startswith(PICKLE_STARTS):
            raise CoefficientsError("a pickle, which can run any code when it is opened; only .safetensors is read")
        if length > MAX_HEADER:
            raise CoefficientsError(
                f"not a safetensors file: its header claims {length} bytes, at most {MAX_HEADER} fit"
            )
        raise CoefficientsError(f"truncated: it has {len(data)} bytes, its header alone needs {length + 8}")
    try:
        header = json.loads(data[8 : 8 + length].decode(), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        if isinstance(error, CoefficientsError):
            raise
        raise CoefficientsError("not a safetensors file: its header is not JSON") from error
    if not isinstance(header, dict):
        raise CoefficientsError("not a safetensors file: its header is not a JSON object")
    return header


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = Counter(name for name, _ in pairs)
        raise CoefficientsError(f"the header names {shown(names.most_common(1)[0][0])} twice")
    return found


def _check_format(metadata: Any, tensors: dict[str, Any]) -> None:
    """Format, version, and the type of each tensor; their names and shapes are checked with their values."""
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        unknown = f"{len(tensors)} tensors without metadata that says format = {FORMAT!r}"
        raise CoefficientsError(f"not a subject: it is {_other_kind(metadata, tensors) or unknown}")
    if metadata.get("format_version") != FORMAT_VERSION:
        raise CoefficientsError(
            f"format version {shown(metadata.get('format_version'))}, but this program reads {FORMAT_VERSION!r}; "
            "a newer coeff-diffusion may read it"
        )
    if not isinstance(metadata.get("info"), str):
        raise CoefficientsError("the metadata has no info; the file is incomplete")
    if len(tensors) > MAX_TENSORS:
        raise CoefficientsError(f"it has {len(tensors)} tensors, expected at most {MAX_TENSORS}")
    dtypes = {name: entry.get("dtype") if isinstance(entry, dict) else entry for name, entry in tensors.items()}
    wrong = [f"{shown(name)} is {shown(dtype)}" for name, dtype in dtypes.items() if dtype not in list(DTYPES)]
    if wrong:
        raise CoefficientsError(f"expected tensors of {', '.join(DTYPES)}, but {listed(wrong)}")


def _other_kind(metadata: Any, tensors: Mapping[str, Any]) -> str | None:
    """What a file is that is no subject, as far as its header tells."""
    found = metadata.get("format") if isinstance(metadata, dict) else None
    if isinstance(found, str) and found in OTHER_FORMATS:
        return OTHER_FORMATS[found]
    names = list(islice(tensors, MAX_TENSORS))  # the first ones tell; a stranger's header may have very many
    return next((kind for pattern, kind in OTHER_TENSORS if any(re.search(pattern, name) for name in names)), None)


def _what_it_is(beginning: bytes) -> str:
    """What a file is that is too large for a subject; only its header is looked at."""
    try:
        header = _header(beginning)
    except CoefficientsError as error:
        return str(error)
    kind = _other_kind(header.pop("__metadata__", None), header)
    return f"it is {kind}" if kind else "is it a whole model?"


def _metadata(coefficients: Coefficients) -> dict[str, str]:
    info = coefficients.info
    hint = f"Write {info.trigger!r} in the prompt" if info.trigger else "Acts on every prompt"
    modelspec = {
        "sai_model_spec": "1.0.1",
        "architecture": f"{info.base_architecture or 'custom'}/coeff",
        "implementation": "diffusers",
        "title": info.name or info.trigger or "unnamed",
        "date": info.created,
        "hash_sha256": f"0x{coefficients.sha256}",
        "license": info.license,
        "prediction_type": MODELSPEC_PREDICTION.get(info.prediction_type, ""),
        "resolution": f"{info.resolution}x{info.resolution}" if info.resolution else "",
        "trigger_phrase": info.trigger,
        "usage_hint": hint,
    }
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "info": info.to_json(),
        **{f"modelspec.{key}": value for key, value in modelspec.items() if value},
    }
