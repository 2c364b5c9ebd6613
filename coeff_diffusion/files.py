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
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from .coefficients import Coefficients, CoefficientsError, CoefficientsInfo, listed, shown

FORMAT = "coeff-diffusion"
FORMAT_VERSION = "1"
FILE_NAME = "coefficients.safetensors"
MAX_FILE = 16 * 2**20
MAX_HEADER = 2 * 2**20
DTYPES = ("F32", "F16", "BF16")  # written as F32; narrower ones are widened
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
MODELSPEC_PREDICTION = {"epsilon": "epsilon", "v_prediction": "v"}


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

    Raises:
        CoefficientsError: there is no such file, or the Hub does not give it.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / FILE_NAME).is_file():
            raise CoefficientsError(f"the folder {path} holds no {FILE_NAME}")
        return path / FILE_NAME
    if path.suffix.lower() == ".png":
        raise CoefficientsError(f"{path} is a picture; give the .safetensors file of the subject")
    if isinstance(source, str) and not path.exists() and path.suffix != ".safetensors" and HUB_ID.fullmatch(source):
        return _from_hub(source)
    return path


def read(path: str | Path) -> Coefficients:
    """Read a file of format version 1.

    Raises:
        CoefficientsError: it is missing, no regular file, too large, damaged, not of this format, or its values make no
            sense. The message names the first offenders and what was expected.
    """
    path = Path(path)
    if path.is_symlink():
        raise CoefficientsError(f"{path} is a symbolic link to {path.readlink()}; give the file itself")
    if not path.is_file():
        raise CoefficientsError(f"there is no file {path}" if not path.exists() else f"{path} is not a regular file")
    try:
        with path.open("rb") as file:
            return from_bytes(file.read(MAX_FILE + 1))
    except OSError as error:
        raise CoefficientsError(f"{path} cannot be read: {error.strerror}") from error
    except CoefficientsError as error:
        raise CoefficientsError(f"{path}: {error}") from error


def write(coefficients: Coefficients, path: str | Path) -> None:
    """Write a file of format version 1, whole or not at all. The same coefficients always give the same bytes."""
    with atomic_write(path) as file:
        file.write(to_bytes(coefficients))


def to_bytes(coefficients: Coefficients) -> bytes:
    """The content of a file of format version 1."""
    return serialize(coefficients.named_tensors(), _metadata(coefficients))


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
    if len(data) > MAX_FILE:
        raise CoefficientsError(f"larger than {MAX_FILE // 2**20} MiB, which no subject is; is it a whole model?")
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
        found = "a LoRA" if any("lora" in name for name in tensors) else f"{len(tensors)} tensors"
        raise CoefficientsError(f"not a subject: it is {found} without metadata that says format = {FORMAT!r}")
    if metadata.get("format_version") != FORMAT_VERSION:
        raise CoefficientsError(
            f"format version {shown(metadata.get('format_version'))}, but this program reads {FORMAT_VERSION!r}; "
            "a newer coeff-diffusion may read it"
        )
    if not isinstance(metadata.get("info"), str):
        raise CoefficientsError("the metadata has no info; the file is incomplete")
    dtypes = {name: entry.get("dtype") if isinstance(entry, dict) else entry for name, entry in tensors.items()}
    wrong = [f"{shown(name)} is {shown(dtype)}" for name, dtype in dtypes.items() if dtype not in DTYPES]
    if wrong:
        raise CoefficientsError(f"expected tensors of {', '.join(DTYPES)}, but {listed(wrong)}")


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


def _from_hub(repository: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        # The cache holds links into its own store; a file given by hand may not be one.
        return Path(hf_hub_download(repository, FILE_NAME)).resolve()
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CoefficientsError(f"there is no file {repository}, and the Hub does not give it: {reason}") from error
