"""An adapter that learned together with a subject: a LoRA or a DoRA of a denoiser's attention projections.

It lies beside the subject's own file, under the name and in the form that diffusers gives to LoRAs, so that a stock
pipeline takes it with `load_lora_weights(folder)`:

    unet.<projection>.lora_A.weight            [rank, in]
    unet.<projection>.lora_B.weight            [out, rank]
    unet.<projection>.lora_magnitude_vector    [out], of a DoRA alone

The subject's info has its kind and the SHA-256 of its file: one that is not the very one it learned with is refused.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from .adapter_kind import AdapterKind
from .atomic_write import atomic_write
from .errors import CoefficientsError, listed, shown
from .safetensors_file import DTYPES, FILE_NAME, serialize
from .user_file import read_file

ADAPTER_FILE = "pytorch_lora_weights.safetensors"
MAX_ADAPTER = 512 * 2**20  # bytes; of rank 64, the largest UNet of Stable Diffusion takes 190 MB
MAX_PROJECTIONS = 4_096
DOWN, UP, MAGNITUDE = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"
TENSOR_NAME = re.compile(rf"(unet)\.([A-Za-z0-9_.]{{1,300}})\.({DOWN}|{UP}|{MAGNITUDE})", re.ASCII)


class Factors(NamedTuple):
    """What is learned of one projection of weights W `[out, in]`.

    A LoRA adds `up @ down` to W; a DoRA gives each row of that sum the length in `magnitude`.
    """

    down: Tensor  # [rank, in]
    up: Tensor  # [out, rank]
    magnitude: Tensor | None = None  # [out]


@dataclass(frozen=True, eq=False)
class Adapter:
    """Factors by projection ("mid_block.attentions.0.transformer_blocks.0.attn1.to_q"). Immutable; equal by hash.

    Raises:
        CoefficientsError: shapes or values that no adapter of this kind has; the message names the first offenders.
    """

    kind: AdapterKind
    factors: Mapping[str, Factors]

    def __post_init__(self) -> None:
        problems = [] if self.factors else ["it holds no projection"]
        if len(self.factors) > MAX_PROJECTIONS:
            problems.append(f"it holds {len(self.factors)} projections, expected at most {MAX_PROJECTIONS}")
        for path, (down, up, magnitude) in self.factors.items():
            shapes = [tuple(tensor.shape) for tensor in (down, up)]
            if [len(shape) for shape in shapes] != [2, 2] or {down.shape[0], up.shape[1]} != {self.kind.rank}:
                problems.append(f"{path} has factors of {shapes}, expected [rank, in] and [out, rank] of {self.kind}")
            elif (magnitude is None) != (self.kind.method == "lora"):
                problems.append(f"{path} has {'no' if magnitude is None else 'a'} magnitude, which is not {self.kind}")
            elif magnitude is not None and magnitude.shape != up.shape[:1]:
                problems.append(f"{path} has a magnitude of {list(magnitude.shape)}, expected {list(up.shape[:1])}")
            if not all(bool(tensor.isfinite().all()) for tensor in (down, up, magnitude) if tensor is not None):
                problems.append(f"{path} holds values that are no numbers")
        if problems:
            raise CoefficientsError(f"this adapter is not valid: {listed(problems)}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Adapter) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)

    @property
    def values(self) -> int:
        """How many numbers it holds."""
        return sum(tensor.numel() for one in self.factors.values() for tensor in one if tensor is not None)

    @cached_property
    def data(self) -> bytes:
        """The content of its file; the same numbers, the same bytes."""
        tensors: dict[str, Tensor] = {}
        for path, one in self.factors.items():
            named = {DOWN: one.down, UP: one.up, MAGNITUDE: one.magnitude}
            tensors |= {f"unet.{path}.{name}": t.contiguous() for name, t in named.items() if t is not None}
        return serialize(tensors, {"format": "pt"})

    @cached_property
    def sha256(self) -> str:
        """Hex SHA-256 of its file."""
        return hashlib.sha256(self.data).hexdigest()

    def save(self, path: Path) -> None:
        """Write its file, whole or not at all."""
        with atomic_write(path) as file:
            file.write(self.data)

    @classmethod
    def from_bytes(cls, data: bytes, sha256: str) -> "Adapter":
        """Read what `save` wrote.

        Args:
            sha256: of the file that is expected.

        Raises:
            CoefficientsError: it is another file, or no adapter.
        """
        if (digits := hashlib.sha256(data).hexdigest()) != sha256:
            raise CoefficientsError(
                f"it is not the adapter that the subject learned with: its SHA-256 is {digits[:12]}..., expected "
                f"{sha256[:12]}...; put that file back"
            )
        try:
            tensors = safetensors.torch.load(data)
        except (SafetensorError, ValueError, TypeError, KeyError, RuntimeError) as error:
            raise CoefficientsError(f"it is no readable adapter: {str(error).partition(chr(10))[0]}") from error
        found: dict[str, dict[str, Tensor]] = {}
        for name, tensor in sorted(tensors.items()):
            if not (known := TENSOR_NAME.fullmatch(name)) or tensor.dtype not in DTYPES.values():
                raise CoefficientsError(f"it is no readable adapter: it holds {shown(name)} of {tensor.dtype}")
            found.setdefault(known[2], {})[known[3]] = tensor
        if lacking := [path for path, named in found.items() if not {DOWN, UP} <= named.keys()]:
            raise CoefficientsError(f"it is no readable adapter: {lacking[0]} lacks a factor")
        factors = {path: Factors(named[DOWN], named[UP], named.get(MAGNITUDE)) for path, named in found.items()}
        first = next(iter(factors.values()), None)
        method = "lora" if first is None or first.magnitude is None else "dora"
        return cls(AdapterKind(method, 0 if first is None else len(first.down)), factors)

    @classmethod
    def read(cls, path: Path, sha256: str) -> "Adapter | None":
        """The adapter in a file; None where there is no file.

        Raises:
            CoefficientsError: it is another one than that of this hash, damaged or no regular file; names the file.
        """
        if not path.exists():
            return None
        try:
            return cls.from_bytes(read_file(path, MAX_ADAPTER, CoefficientsError), sha256)
        except CoefficientsError as error:
            raise CoefficientsError(f"{path}: {error}") from error


def adapter_place(file: Path) -> Path:
    """Where the adapter of a subject's file is written: in the folder that both of them have to themselves.

    Raises:
        CoefficientsError: another subject, or a LoRA of somebody else's, may lie there.
    """
    place = file.with_name(ADAPTER_FILE)
    if file.name != FILE_NAME or (place.exists() and not file.exists()):
        raise CoefficientsError(
            f"a subject that learned with an adapter takes a folder of its own; give {FILE_NAME} in a new folder, "
            f"not {file}"
        )
    return place
