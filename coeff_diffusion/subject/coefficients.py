"""What is trained, saved, loaded, blended and shared: the coefficients of one subject and where they came from."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from .adapter import Adapter, adapter_folder
from .adapter_kind import AdapterKind
from .atomic_write import atomic_write
from .eight_bits import to_steps
from .errors import CoefficientsError, cut, listed, shown
from .info import CoefficientsInfo
from .places import LAYER_NAME, PLACE, TEXT_ENCODERS, of_text_encoder
from .safetensors_file import DTYPES, FILE_NAME, MAX_FILE, file_bytes, parse, tensors_hash
from .user_file import open_file, user_path

MAX_HEADS = 128
MAX_TOKEN = (64, 8_192)  # vectors, channels
MAX_MAGNITUDE = 100.0  # the identity is 1, token embeddings are about 0.03: more is damage or an attack

DENOISERS = ("unet", "transformer")
TENSOR_NAME = re.compile(
    rf"({'|'.join(DENOISERS)})/{LAYER_NAME.pattern}\.(coeff|token)"
    rf"|({'|'.join(TEXT_ENCODERS)})/(token|{LAYER_NAME.pattern}\.coeff)"
)
OLD_NAME = re.compile(rf"(unet|{'|'.join(TEXT_ENCODERS)})\.(.*\.coeff|token)")
Opener = Callable[[str | Path, str | None], "Coefficients"]


class Coefficients(Mapping[str, Tensor]):
    """Residual matrices by attention path, what the trigger has learned where it has, and where both came from.

    Immutable: what is read from it is a copy. Equal if tensors and info are.

    Args:
        coeffs: `[H, H]` by attention path (as in `unet.attn_processors`, without `.processor`); paths of a text encoder
            have its name in front (see `places`).
        tokens: the learned vectors of the trigger, `[vectors, D]`, by text encoder ("text_encoder"), or none.
        info: where they came from.
        denoiser: the component of the pipeline that the paths lead into, "unet" or "transformer".
        stage_tokens: what is added to the text that a stage of the denoiser reads, at the trigger's tokens:
            `[vectors, D]` by the stage's path ("down_blocks.0", "mid_block"), as many vectors as the trigger has.
        adapter: what learned with it and lies beside its file; None where there is none, or `info` names one that is
            not there.

    Raises:
        CoefficientsError: a name, shape or value is not valid; the message names the first offenders.
    """

    opener: ClassVar[Opener]
    """What `load` asks: plain files and folders at first. `coeff_diffusion.sources.open`, which comes with
    `from coeff_diffusion import Coefficients`, knows cards, QR codes and the Hub as well."""

    def __init__(
        self,
        coeffs: Mapping[str, Tensor],
        tokens: Mapping[str, Tensor] | None = None,
        info: CoefficientsInfo | None = None,
        denoiser: str = "unet",
        stage_tokens: Mapping[str, Tensor] | None = None,
        adapter: Adapter | None = None,
    ) -> None:
        self.info = info or CoefficientsInfo()
        self.adapter = adapter
        self.denoiser = denoiser
        self._coeffs = {path: _own(coeff) for path, coeff in coeffs.items()}
        self._tokens = {owner: _own(token) for owner, token in (tokens or {}).items()}
        self._stage_tokens = {stage: _own(token) for stage, token in (stage_tokens or {}).items()}
        problems = [
            *(f"{shown(path)} is no attention path" for path in self._coeffs if not PLACE.fullmatch(path)),
            *(f"{shown(stage)} is no stage" for stage in self._stage_tokens if not LAYER_NAME.fullmatch(stage)),
            *(
                f"{cut(path)}.coeff is {list(coeff.shape)}, expected square, 1 to {MAX_HEADS} heads"
                for path, coeff in self._coeffs.items()
                if coeff.ndim != 2 or len(set(coeff.shape)) != 1 or not 1 <= coeff.shape[0] <= MAX_HEADS
            ),
            *(
                f"{shown(owner)} is no text encoder, expected one of {', '.join(TEXT_ENCODERS)}"
                for owner in self._tokens
                if owner not in TEXT_ENCODERS
            ),
            *(
                f"{cut(name)} is {list(token.shape)}, expected [1 to {MAX_TOKEN[0]}, 1 to {MAX_TOKEN[1]}]"
                for name, token in self._named()
                if name.endswith("token")
                and (token.ndim != 2 or any(not 1 <= n <= most for n, most in zip(token.shape, MAX_TOKEN, strict=True)))
            ),
        ]
        if denoiser not in DENOISERS:
            problems.append(f"denoiser is {shown(denoiser)}, expected one of {', '.join(DENOISERS)}")
        if not self._coeffs and not self._tokens:
            problems.append("there are neither coefficients nor a token")
        if self._stage_tokens and len({len(t) for t in [*self._tokens.values(), *self._stage_tokens.values()]}) > 1:
            problems.append("the tokens of stages and text encoders have different numbers of vectors")
        if self._stage_tokens and not self._tokens:
            problems.append("there are tokens of stages, but none of a text encoder, at whose places they are added")
        if adapter is not None and (str(adapter.kind), adapter.sha256) != (self.info.adapter, self.info.adapter_sha256):
            problems.append(f"the adapter is not the one that the info names ({shown(self.info.adapter)})")
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

    def of_text_encoder(self, name: str) -> dict[str, Tensor]:
        """The matrices of a text encoder's layers by path, its name in front; the denoiser's where it is empty."""
        return {path: coeff.clone() for path, coeff in of_text_encoder(self._coeffs, name).items()}

    @property
    def tokens(self) -> dict[str, Tensor]:
        """The learned vectors of the trigger by text encoder, `[vectors, D]`; empty without a learned token."""
        return {owner: token.clone() for owner, token in self._tokens.items()}

    @property
    def stage_tokens(self) -> dict[str, Tensor]:
        """What stages of the denoiser read beside the text at the trigger, `[vectors, D]` by path; empty without."""
        return {stage: token.clone() for stage, token in self._stage_tokens.items()}

    def named_tensors(self) -> dict[str, Tensor]:
        """All tensors under their names in a file, sorted: `unet/<path>.coeff`, `unet/<stage>.token`, `<text
        encoder>/<path>.coeff` and `<text encoder>/token`."""
        return {name: tensor.clone() for name, tensor in self._named()}

    def _named(self) -> list[tuple[str, Tensor]]:
        """The same without copies, which add up when a stranger's file is as large as it may be."""
        prefix = f"{self.denoiser}/"
        named = [(f"{'' if '/' in path else prefix}{path}.coeff", coeff) for path, coeff in self._coeffs.items()]
        named += [(f"{self.denoiser}/{stage}.token", token) for stage, token in self._stage_tokens.items()]
        return sorted(named + [(f"{owner}/token", token) for owner, token in self._tokens.items()], key=itemgetter(0))

    @classmethod
    def from_named_tensors(cls, named: Mapping[str, Tensor], info: CoefficientsInfo | None = None) -> "Coefficients":
        """The inverse of `named_tensors`.

        Raises:
            CoefficientsError: a name is of neither form, or what it names is not valid.
        """
        unexpected = [name for name in named if not TENSOR_NAME.fullmatch(name)]
        if unexpected and all(map(OLD_NAME.fullmatch, unexpected)):
            raise CoefficientsError(
                f"its tensors are named in the way of the first versions ({shown(unexpected[0])}); write it anew with "
                "`coeff-diffusion convert FILE -o NEW.safetensors --dtype float32`"
            )
        if unexpected:
            raise CoefficientsError(
                f"unexpected tensors {listed([shown(name) for name in unexpected])}; expected only "
                "unet/<attention path>.coeff, unet/<stage>.token (or transformer/... alike), text_encoder/token and "
                "text_encoder/<attention path>.coeff"
            )
        coeffs: dict[str, Tensor] = {}
        tokens: dict[str, Tensor] = {}
        stage_tokens: dict[str, Tensor] = {}
        components = set()
        for name, tensor in sorted(named.items()):  # safetensors gives them in random order
            component, _, rest = name.partition("/")
            if rest == "token":
                tokens[component] = tensor
            elif component in TEXT_ENCODERS:
                coeffs[name.removesuffix(".coeff")] = tensor
            else:
                components.add(component)
                path, _, kind = rest.rpartition(".")
                (coeffs if kind == "coeff" else stage_tokens)[path] = tensor
        if len(components) > 1:
            raise CoefficientsError(f"coefficients of {' and '.join(sorted(components))}; a base has one of them")
        return cls(coeffs, tokens, info, next(iter(components), "unet"), stage_tokens)

    @cached_property
    def sha256(self) -> str:
        """Hex digest of all tensor bytes in the order of the file (ModelSpec's `hash_sha256`)."""
        return tensors_hash(dict(self._named()))

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

    def rounded(self) -> "Coefficients":
        """A copy with every number rounded to float16, which a file then holds in half the size, exactly."""
        narrow = {name: tensor.half() for name, tensor in self._named()}
        return Coefficients.from_named_tensors(narrow, self.info).replace(adapter=self.adapter)

    @property
    def narrowest(self) -> torch.dtype:
        """float16 where that keeps every bit, as of `rounded` numbers, and float32 else."""
        exact = all(torch.equal(tensor.half().float(), tensor) for _, tensor in self._named())
        return torch.float16 if exact else torch.float32

    def to_bytes(self, dtype: torch.dtype | None = None) -> bytes:
        """The content of a file of format version 1, or of version 2 for int8.

        Args:
            dtype: of its numbers. float16 and bfloat16 round to half the size of float32, int8 to a quarter, in steps
                of one scale a tensor; None takes the `narrowest`, which int8 never is.

        Raises:
            CoefficientsError: no such dtype in a file.
        """
        dtype = dtype or self.narrowest
        if dtype == torch.int8:
            return file_bytes(to_steps(dict(self._named())), self.info)
        if dtype not in DTYPES.values():
            raise CoefficientsError(f"files hold {', '.join(map(str, [*DTYPES.values(), torch.int8]))}, not {dtype}")
        return file_bytes({name: tensor.to(dtype) for name, tensor in self._named()}, self.info)

    @classmethod
    def from_bytes(cls, data: bytes, *, old_names: bool = False) -> "Coefficients":
        """The inverse of `to_bytes`, with every check; narrow numbers are widened.

        Args:
            old_names: take names of the first versions too (`unet.<path>.coeff`), as `convert` does.

        Raises:
            CoefficientsError: `data` is too large, damaged, not of this format, or its values make no sense.
        """
        tensors, info, recorded = parse(data)
        if old_names:
            tensors = {OLD_NAME.sub(r"\1/\2", name): tensor for name, tensor in tensors.items()}
        found = cls.from_named_tensors(tensors, info)
        if recorded and recorded != found.sha256:
            raise CoefficientsError(
                f"incomplete, changed or damaged: the hash of its {len(tensors)} tensors is {found.sha256[:16]}..., "
                f"but {shown(recorded[:16])}... is recorded"
            )
        return found

    @classmethod
    def read(cls, path: Path, *, old_names: bool = False) -> "Coefficients":
        """Read a `.safetensors` file, and the adapter beside it where it learned with one.

        Raises:
            CoefficientsError: it is missing, no regular file, or what `from_bytes` says; the message names the file.
                Or there is another adapter than its own; one that is missing is missed where it is to act.
        """
        if path.is_symlink():
            raise CoefficientsError(f"{path} is a symbolic link to {path.readlink()}; give the file itself")
        with open_file(path, error=CoefficientsError) as file:
            data = file.read(MAX_FILE + 1)  # of what is too large the beginning tells what it is
        try:
            found = cls.from_bytes(data, old_names=old_names)
        except CoefficientsError as error:
            raise CoefficientsError(f"{path}: {error}") from error
        return found.with_adapter_of(path.with_name(found.info.adapter_file)) if found.info.adapter else found

    def with_adapter_of(self, file: Path) -> "Coefficients":
        """The same with its adapter, if it has one and the file is there.

        Raises:
            CoefficientsError: the file holds another one.
        """
        info = self.info
        adapter = Adapter.read(file, AdapterKind.parse(info.adapter), info.adapter_sha256) if info.adapter else None
        return self if adapter is None else self.replace(adapter=adapter)

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
        return cls.opener(source, name)

    def save(self, path: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write one `.safetensors` file, whole or not at all; the same subject, the same bytes.

        An adapter is written beside it.

        Args:
            dtype: see `to_bytes`; by default no number changes. An adapter keeps its own.

        Raises:
            CoefficientsError: there is an adapter, and the folder is not the subject's own (see `adapter_folder`); or
                it is missing.
        """
        if self.info.adapter and self.adapter is None:
            raise CoefficientsError(
                f"the subject learned with an adapter ({self.info.adapter}), which is not there, so only a part of it "
                f"could be written; put {self.info.adapter_file} beside its file"
            )
        contents = {Path(path): self.to_bytes(dtype)}
        if self.adapter is not None:
            folder = adapter_folder(Path(path))
            contents |= {folder / name: content for name, content in self.adapter.files.items()}
        for place, content in contents.items():
            with atomic_write(place) as file:
                file.write(content)

    def replace(self, **changes: Any) -> "Coefficients":
        """A copy with other `coeffs`, `tokens`, `stage_tokens`, `adapter` or `info`, which says what adapter it is."""
        mine = {"coeffs": self._coeffs, "tokens": self._tokens, "info": self.info, "denoiser": self.denoiser}
        return Coefficients(**{**mine, "stage_tokens": self._stage_tokens, "adapter": self.adapter, **changes})

    def joined(self, adapter: Adapter) -> "Coefficients":
        """A copy that learned with this adapter."""
        info = replace(self.info, adapter=str(adapter.kind), adapter_sha256=adapter.sha256)
        return self.replace(adapter=adapter, info=info)

    def scaled(self, strength: float) -> "Coefficients":
        """A copy with every coefficient and stage token times `strength`. The token is a word; it does not scale."""
        return self.replace(
            coeffs={path: coeff * strength for path, coeff in self._coeffs.items()},
            stage_tokens={stage: token * strength for stage, token in self._stage_tokens.items()},
        )


def _own(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True).contiguous()


def _worst(tensor: Tensor) -> float:
    """The value furthest from zero, NaN before all."""
    flat = tensor.flatten()
    return float(flat[flat.abs().nan_to_num(nan=torch.inf).argmax()])


def _open_file(source: str | Path, name: str | None) -> Coefficients:
    path = user_path(source)
    found = Coefficients.read(path / FILE_NAME if path.is_dir() else path)
    if name is not None and name not in (found.info.name, found.sha256[:12]):
        raise CoefficientsError(f"{path} carries no subject called {shown(name)}")
    return found


Coefficients.opener = staticmethod(_open_file)
