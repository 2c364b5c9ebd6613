"""The bytes of a file of format version 1 or 2: one safetensors file per subject, read with every check there is.

Tensors: `unet/<attention path>.coeff` `[H, H]`, `unet/<stage>.token` and `text_encoder/token` `[vectors, D]`; version 2
is the same with numbers of eight bits (see `eight_bits`). Metadata: `format`, `format_version`, `info` (JSON of
`CoefficientsInfo`) and ModelSpec 1.0.1 keys for other tools. What is read comes from strangers: it is never unpickled,
its size is bounded before it is opened, and any damage is a `CoefficientsError`.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from itertools import islice
from typing import Any, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from .eight_bits import SCALES, from_steps
from .errors import CoefficientsError, listed, shown
from .file_kind import SAFETENSORS, kind_of
from .info import CoefficientsInfo

FORMAT = "coeff-diffusion"
FORMAT_VERSION, IN_EIGHT_BITS = "1", "2"  # who knows the first alone refuses the second
FILE_NAME = "coefficients.safetensors"
MAX_FILE = 16 * 2**20
MAX_HEADER = 2 * 2**20
MAX_TENSORS = 1_024  # the largest UNet of Stable Diffusion has 140 attention layers
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}  # narrower ones are widened when read
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


class Content(NamedTuple):
    """What a file holds.

    Attributes:
        tensors: by their names in the file, sorted, as wide as they are there; those of eight bits are float32.
        sha256: the hash of the tensors that the file states; empty where it states none.
    """

    tensors: dict[str, Tensor]
    info: CoefficientsInfo
    sha256: str


def file_bytes(tensors: Mapping[str, Tensor], info: CoefficientsInfo) -> bytes:
    """The content of a file; the same tensors and info always give the same bytes.

    Its version is 1, or 2 for what `eight_bits.to_steps` gives. The hash it states is of what a reader gets: the
    numbers, widened to float32.
    """
    if SCALES in tensors:
        return serialize(tensors, _metadata(IN_EIGHT_BITS, tensors_hash(from_steps(tensors)), info))
    return serialize(tensors, _metadata(FORMAT_VERSION, tensors_hash(tensors), info))


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """Hex SHA-256 of all tensors as float32, sorted by name (ModelSpec's `hash_sha256`)."""
    digest = hashlib.sha256()
    for _, tensor in sorted(tensors.items()):
        digest.update(tensor.float().numpy().astype("<f4").tobytes())
    return digest.hexdigest()


def serialize(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file; the same content always gives the same bytes.

    (The library writes the metadata in random order.)
    """
    data = safetensors.torch.save(dict(tensors), dict(metadata))
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # tensors stay aligned
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def parse(data: bytes) -> Content:
    """The inverse of `file_bytes`, with every check of the container.

    What names and values mean is checked where `Coefficients` are made of them.

    Raises:
        CoefficientsError: `data` is too large, damaged or not of this format.
    """
    if len(data) > MAX_FILE:
        raise CoefficientsError(f"larger than {MAX_FILE // 2**20} MiB, which no subject is; {_what_it_is(data)}")
    header = _header(data)
    metadata = header.pop("__metadata__", {})
    _check_format(metadata, header)
    if (in_eight_bits := metadata["format_version"] == IN_EIGHT_BITS) and len(data) > MAX_FILE // 4:
        raise CoefficientsError(f"larger than {MAX_FILE // 2**22} MiB, which no subject in eight bits is")
    try:
        tensors = safetensors.torch.load(data)
    except (SafetensorError, ValueError, TypeError, RuntimeError) as error:  # torch's own, for shapes beyond any memory
        raise CoefficientsError(f"damaged: {str(error).partition(chr(10))[0]}") from error
    if in_eight_bits:
        tensors = from_steps(tensors)
    recorded = metadata.get("modelspec.hash_sha256", "").removeprefix("0x")
    return Content(dict(sorted(tensors.items())), CoefficientsInfo.from_json(metadata["info"]), recorded)


def _header(data: bytes) -> dict[str, Any]:
    """The JSON header of a safetensors file, its size and its keys checked."""
    if (kind := kind_of(data)) is not SAFETENSORS:
        advice = f"; {kind.advice}" if kind.advice else ""
        raise CoefficientsError(f"not a subject: it is {kind.name}; expected a subject's .safetensors file{advice}")
    length = int.from_bytes(data[:8], "little")
    if length > MAX_HEADER:
        raise CoefficientsError(f"not a safetensors file: its header claims {length} bytes, at most {MAX_HEADER} fit")
    if length > len(data) - 8:
        raise CoefficientsError(f"truncated: it has {len(data)} bytes, its header alone needs {length + 8}")
    try:
        header: dict[str, Any] = json.loads(data[8 : 8 + length].decode(), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        if isinstance(error, CoefficientsError):
            raise
        raise CoefficientsError("not a safetensors file: its header is not JSON") from error
    return header  # an object: it begins with a brace


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
    version = metadata.get("format_version")
    if version not in (FORMAT_VERSION, IN_EIGHT_BITS):
        raise CoefficientsError(
            f"format version {shown(version)}, but this program reads {FORMAT_VERSION!r} and {IN_EIGHT_BITS!r}; "
            "a newer coeff-diffusion may read it"
        )
    if not isinstance(metadata.get("info"), str):
        raise CoefficientsError("the metadata has no info; the file is incomplete")
    if len(tensors) > MAX_TENSORS:
        raise CoefficientsError(f"it has {len(tensors)} tensors, expected at most {MAX_TENSORS}")
    dtypes = {name: entry.get("dtype") if isinstance(entry, dict) else entry for name, entry in tensors.items()}
    expected = [*DTYPES, "I8"] if version == IN_EIGHT_BITS else list(DTYPES)
    wrong = [f"{shown(name)} is {shown(dtype)}" for name, dtype in dtypes.items() if dtype not in expected]
    if wrong:
        raise CoefficientsError(f"expected tensors of {', '.join(expected)}, but {listed(wrong)}")


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


def _metadata(version: str, sha256: str, info: CoefficientsInfo) -> dict[str, str]:
    hint = f"Write {info.trigger!r} in the prompt" if info.trigger else "Acts on every prompt"
    modelspec = {
        "sai_model_spec": "1.0.1",
        "architecture": f"{info.base_architecture or 'custom'}/coeff",
        "implementation": "diffusers",
        "title": info.name or info.trigger or "unnamed",
        "date": info.created,
        "hash_sha256": f"0x{sha256}",
        "license": info.license,
        "prediction_type": MODELSPEC_PREDICTION.get(info.prediction_type, ""),
        "resolution": f"{info.resolution}x{info.resolution}" if info.resolution else "",
        "trigger_phrase": info.trigger,
        "usage_hint": hint,
    }
    return {
        "format": FORMAT,
        "format_version": version,
        "info": info.to_json(),
        **{f"modelspec.{key}": value for key, value in modelspec.items() if value},
    }
