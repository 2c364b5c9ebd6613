"""One network that goes with a base and comes by itself: from a folder, a file, or the Hub."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..hub import HubError, HubUnreachableError, api, asking, cached_folder, listing
from ..subject.errors import shown
from ..subject.file_kind import SAFETENSORS, kind_of_file
from ..subject.hub_id import is_hub_id
from ..subject.user_file import read_text, user_path
from .errors import BaseModelError, one_line

WEIGHTS = "diffusion_pytorch_model.safetensors"
HALF = "diffusion_pytorch_model.fp16.safetensors"
MAX_CONFIG = 2**20  # bytes
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Part:
    """A kind of network.

    Attributes:
        called, article: "autoencoder", "an".
        classes: of diffusers.
        inside: the folder of it in that of a base.
        from_tensors: makes one of a single file's content; KeyError, RuntimeError or IndexError where that is none.
    """

    called: str
    article: str
    classes: tuple[str, ...]
    inside: str
    from_tensors: Callable[[Tensors], Any]

    @property
    def choices(self) -> str:
        """What a user may name."""
        return f"a diffusers folder (of {self.article} {self.called} or a base), a .safetensors file, or a Hub id"


def load_part(name: str | Path, part: Part) -> Any:
    """The network, in the dtype it was saved in.

    Args:
        name: a folder of diffusers or the id of a repository (of it alone, or of a base), or a single file.

    Raises:
        BaseModelError: there is none, it is damaged, or of another kind.
    """
    path = user_path(str(name))
    if path.is_file():
        return _from_file(path, part)
    if path.is_dir():
        return _from_folder(path, str(name), part)
    if is_hub_id(str(name)):
        return _from_folder(_download(str(name), part), str(name), part)
    raise BaseModelError(f"no {part.called} {str(name)!r}; expected {part.choices}")


def _from_folder(folder: Path, name: str, part: Part) -> Any:
    folder = folder / part.inside if (folder / part.inside).is_dir() else folder
    try:
        config = json.loads(read_text(folder / "config.json", MAX_CONFIG))
        kind = config["_class_name"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BaseModelError(f"{name!r} is no {part.called}: {one_line(error)}; expected {part.choices}") from error
    if kind not in part.classes:
        raise BaseModelError(
            f"{name!r} is {shown(kind)}, expected {part.article} {part.called} ({' or '.join(part.classes)})"
        )
    # Half precision is often all there is, and named so.
    variant = None if (folder / WEIGHTS).exists() else "fp16"
    try:
        return getattr(diffusers, kind).from_pretrained(
            str(folder), use_safetensors=True, local_files_only=True, variant=variant
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise BaseModelError(f"the {part.called} {name!r} is damaged or incomplete: {one_line(error)}") from error


def _from_file(path: Path, part: Part) -> Any:
    tensors = read_tensors(path, f"{part.article} {part.called}")
    try:
        return part.from_tensors(tensors)
    except (KeyError, RuntimeError, IndexError) as error:
        raise BaseModelError(
            f"{str(path)!r} is no {part.called} like the one of this base ({one_line(error)}); expected {part.choices}"
        ) from error


def check_safetensors(path: Path, expected: str) -> None:
    """Nothing else is opened; arguments and error as in `read_tensors`."""
    kind = kind_of_file(path, BaseModelError)
    if kind is not SAFETENSORS:
        raise BaseModelError(f"{str(path)!r} is {kind.name}; expected {expected} as a .safetensors file")


def read_tensors(path: Path, expected: str) -> Tensors:
    """All tensors of a single file.

    Args:
        expected: what it should be, in a sentence.

    Raises:
        BaseModelError: it is of another kind, or damaged.
    """
    check_safetensors(path, expected)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise BaseModelError(f"{str(path)!r} is not a readable .safetensors file: {one_line(error)}") from error


def _download(repo: str, part: Part) -> Path:
    """The local folder of a repository of which nothing but this part is fetched, or the cache's without a network."""
    try:
        names = set(listing(repo).sizes)
        inside = "" if "config.json" in names else f"{part.inside}/"
        full, half = (f"{inside}{name}" for name in (WEIGHTS, HALF))
        wanted = [f"{inside}config.json", full if full in names else half]
        if missing := [one for one in wanted if one not in names]:
            raise BaseModelError(f"{repo} has no {missing[0]}; expected {part.choices}")
        with asking(repo):
            return Path(api().snapshot_download(repo, allow_patterns=wanted))
    except HubError as error:
        configs = ("config.json", f"{part.inside}/config.json")
        if isinstance(error, HubUnreachableError) and (cached := cached_folder(repo, *configs)):
            return cached
        raise BaseModelError(f"{repo}: not a file or folder here, and {error}") from None
