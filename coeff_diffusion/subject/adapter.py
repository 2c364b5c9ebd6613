"""An adapter that learned together with a subject: of a denoiser's attention projections.

It lies beside the subject's own file, in the form in which others load it (see `adapter_methods`). A LoRA has the name
and the form that diffusers gives it, so that a stock pipeline takes it with `load_lora_weights(folder)`:

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

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from .adapter_kind import AdapterKind
from .adapter_methods import ADAPTER_FILES, PEFT_CONFIG
from .atomic_write import atomic_write
from .errors import CoefficientsError, listed, shown
from .safetensors_file import DTYPES, FILE_NAME, serialize
from .user_file import read_file

MAX_ADAPTER = 512 * 2**20  # bytes; of rank 64, a LoRA of the largest UNet of Stable Diffusion has 190 MB, a LoHa twice
MAX_PROJECTIONS = 4_096

Factors = Mapping[str, Tensor]
"""What is learned of one projection, by the tensors' names."""


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
        for path, named in self.factors.items():
            shapes = {name: tuple(tensor.shape) for name, tensor in named.items()}
            if self.kind.sides(shapes) is None:
                found = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
                problems.append(f"{path} has {found}, which is not {self.kind}")
            if not all(bool(tensor.isfinite().all()) for tensor in named.values()):
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
        return sum(tensor.numel() for named in self.factors.values() for tensor in named.values())

    @cached_property
    def data(self) -> bytes:
        """The content of its file; the same numbers, the same bytes."""
        tensors = {
            f"{self.kind.prefix}{path}.{name}": tensor.contiguous()
            for path, named in self.factors.items()
            for name, tensor in named.items()
        }
        return serialize(tensors, {"format": "pt"})

    @property
    def files(self) -> dict[str, bytes]:
        """All that lies beside the subject, by name: its file, and what tells others how to load it."""
        config = self.kind.peft_config()
        return {self.kind.file: self.data, **({PEFT_CONFIG: config} if config else {})}

    @cached_property
    def sha256(self) -> str:
        """Hex SHA-256 of its file."""
        return hashlib.sha256(self.data).hexdigest()

    def save(self, path: Path) -> None:
        """Write its file, whole or not at all."""
        with atomic_write(path) as file:
            file.write(self.data)

    @classmethod
    def from_bytes(cls, data: bytes, kind: AdapterKind, sha256: str) -> "Adapter":
        """Read what `save` wrote.

        Args:
            kind: of the adapter that is expected.
            sha256: of the file that is expected.

        Raises:
            CoefficientsError: it is another file, or no adapter of this kind.
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
        names = "|".join(map(re.escape, kind.about.starts))
        pattern = re.compile(rf"{re.escape(kind.prefix)}([A-Za-z0-9_.]{{1,300}})\.({names})", re.ASCII)
        found: dict[str, dict[str, Tensor]] = {}
        for name, tensor in sorted(tensors.items()):
            if not (known := pattern.fullmatch(name)) or tensor.dtype not in DTYPES.values():
                raise CoefficientsError(f"it is no readable {kind}: it holds {shown(name)} of {tensor.dtype}")
            found.setdefault(known[1], {})[known[2]] = tensor
        return cls(kind, found)

    @classmethod
    def read(cls, path: Path, kind: AdapterKind, sha256: str) -> "Adapter | None":
        """The adapter in a file; None where there is no file.

        Raises:
            CoefficientsError: it is another one than that of this hash, damaged or no regular file; names the file.
        """
        if not path.exists():
            return None
        try:
            return cls.from_bytes(read_file(path, MAX_ADAPTER, CoefficientsError), kind, sha256)
        except CoefficientsError as error:
            raise CoefficientsError(f"{path}: {error}") from error


def adapter_folder(file: Path) -> Path:
    """Where the adapter of a subject's file is written: the folder that both of them have to themselves.

    Raises:
        CoefficientsError: another subject, or an adapter of somebody else's, may lie there.
    """
    folder = file.parent
    taken = not file.exists() and any((folder / name).exists() for name in (*ADAPTER_FILES, PEFT_CONFIG))
    if file.name != FILE_NAME or taken:
        raise CoefficientsError(
            f"a subject that learned with an adapter takes a folder of its own; give {FILE_NAME} in a new folder, "
            f"not {file}"
        )
    return folder
