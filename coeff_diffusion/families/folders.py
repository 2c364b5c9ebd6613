"""Bases in the layout of diffusers: a folder, or a repository of the Hub that is fetched into one."""

import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors import SafetensorError
from tqdm import tqdm

from ..hub import HubError, HubUnreachableError, api, asking, cached_folder, listing
from ..subject.user_file import read_text
from .checkpoints import NOT_LOADED, PICKLES
from .errors import CHOICES, BaseModelError, one_line
from .family import Family
from .registry import EXPECTED, by_pipeline, tokenizer_name

Fetched = Callable[[int, int], None]
"""Told of the bytes that are there, and of how many there will be, as far as is known."""
INDEX = "model_index.json"
MAX_CONFIG = 2**20  # bytes
VARIANT = "fp16"  # the one that people publish beside the full weights, or instead of them
WEIGHTS = re.compile(r"[^/]+\.safetensors(\.index(\.\w+)?\.json)?")  # whole, a shard, or the index of shards
SETTINGS = re.compile(r"[^/]+\.(json|txt|model)")
# How the pipelines of other families are called in an error; any other class is shown by its own name.
OTHERS = {
    "StableDiffusionXLImg2Img": "the Stable Diffusion XL refiner, which finishes pictures of a base",
    "StableDiffusionXL": "another kind of Stable Diffusion XL",
    "StableDiffusion3": "Stable Diffusion 3",
    "StableDiffusionInpaint": "Stable Diffusion inpainting",
    "Flux": "FLUX",
    "PixArt": "PixArt",
    "Kandinsky": "Kandinsky",
}


def load_folder(folder: Path, name: str, dtype: torch.dtype) -> Any:
    """A stock pipeline from a folder.

    Args:
        name: what the errors call it.

    Raises:
        BaseModelError: no base of a known family, pickled weights only, damaged or incomplete.
    """
    family = check_model_index(_read_index(folder, name), name)
    pipeline = getattr(diffusers, family.pipeline)
    left_out = {part: None for part in NOT_LOADED if part in pipeline._optional_components}
    files = [path.relative_to(folder).as_posix() for path in folder.glob("*/*")]
    try:
        return pipeline.from_pretrained(
            str(folder),
            dtype=dtype,
            variant=variant_of(files, _components(family)),
            use_safetensors=True,
            local_files_only=True,
            **left_out,
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        pickled = sorted(file for file in files if file.endswith(PICKLES))
        if pickled and not any(file.startswith(f"{family.denoiser}/") and WEIGHTS.search(file) for file in files):
            raise BaseModelError(
                f"{name!r} holds pickled weights only ({pickled[0]}), which are never opened because they can run "
                "code; expected .safetensors (write them with save_pretrained(..., safe_serialization=True))"
            ) from error
        raise BaseModelError(f"{name!r} is damaged or incomplete: {one_line(error)}") from error


def weight_files(folder: Path, name: str) -> list[Path]:
    """The files of a folder whose tensors are loaded.

    Raises:
        BaseModelError: no base of a known family.
    """
    family = check_model_index(_read_index(folder, name), name)
    files = [path.relative_to(folder).as_posix() for path in folder.glob("*/*")]
    return [folder / file for file in files_to_fetch(files, family) if file.endswith(".safetensors")]


def check_model_index(index: Mapping[str, Any], name: str) -> Family:
    """The family that a `model_index.json` is of.

    Raises:
        BaseModelError: none that is known; the message names it.
    """
    found = str(index.get("_class_name"))
    family = by_pipeline(found)
    if family is None:
        kind = next((text for start, text in OTHERS.items() if found.startswith(start)), "another kind of model")
        raise BaseModelError(f"{name!r} is {kind} ({found}); expected {EXPECTED}")
    return family


def _read_index(folder: Path, name: str) -> Mapping[str, Any]:
    index = folder / INDEX
    if not index.is_file():
        if (folder / "coefficients.safetensors").is_file():
            raise BaseModelError(f"{name!r} is a subject's folder, not a base; load it with --subject {name}")
        raise BaseModelError(f"{name!r} is not a diffusers folder: it has no {INDEX}; a base is {CHOICES}")
    try:
        found = json.loads(read_text(index, MAX_CONFIG))
        found["_class_name"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BaseModelError(f"{name!r}: {INDEX} does not name a pipeline ({one_line(error)})") from error
    return dict(found)


# --- which files ------------------------------------------------------------------------------------------------------


def _components(family: Family) -> tuple[str, ...]:
    return (*family.text_encoders, family.denoiser, "vae")


def _is_variant(file: str) -> bool:
    return f".{VARIANT}." in file or f".{VARIANT}-" in file


def variant_of(files: Sequence[str], parts: Sequence[str]) -> str | None:
    """The variant of the weights of these components to load: none where the full ones are there."""
    full = {part: [f for f in _weights(files, part) if not _is_variant(f)] for part in parts}
    lacking = [part for part, found in full.items() if not found]
    return VARIANT if any(_is_variant(file) for part in lacking for file in _weights(files, part)) else None


def _weights(files: Sequence[str], part: str) -> list[str]:
    return [file for file in files if file.startswith(f"{part}/") and WEIGHTS.fullmatch(file.partition("/")[2])]


def files_to_fetch(files: Sequence[str], family: Family) -> list[str]:
    """Of a repository's files those that drawing takes: settings, and one set of weights of each component."""
    others = "scheduler", *map(tokenizer_name, family.text_encoders)
    return [INDEX, *files_of_parts(files, _components(family), others)]


def files_of_parts(files: Sequence[str], parts: Sequence[str], others: Sequence[str]) -> list[str]:
    """The same of some components.

    Args:
        parts: those with weights; others: those without.
    """
    variant, wanted = variant_of(files, parts), list[str]()
    for part in (*parts, *others):
        inside = [file for file in files if file.startswith(f"{part}/")]
        weights = _weights(files, part)
        wanted += [file for file in inside if file not in weights and SETTINGS.fullmatch(file.partition("/")[2])]
        chosen = [file for file in weights if _is_variant(file) == (variant is not None)]
        wanted += chosen or weights
    return wanted


# --- the Hub ----------------------------------------------------------------------------------------------------------


def download(repo: str, revision: str | None, fetched: Fetched | None = None) -> Path:
    """The local folder of a Hub repository: fetched, or from the cache when the Hub is out of reach.

    Args:
        fetched: is told how far it is, instead of bars in the terminal.

    Raises:
        BaseModelError: there is none that may be fetched, or it is of no known family.
    """
    where = repo if revision is None else f"{repo} (revision {revision})"
    try:
        names = list(listing(repo, revision).sizes)
        if INDEX not in names:
            raise BaseModelError(f"{where} is not a diffusers repository: it has no {INDEX}; a base is {CHOICES}")
        with asking(repo, revision):
            index = Path(api().hf_hub_download(repo, INDEX, revision=revision))
        family = check_model_index(_read_index(index.parent, repo), repo)  # before gigabytes of another come down
        with asking(repo, revision):
            wanted = files_to_fetch(names, family)
            bar = None if fetched is None else _telling(fetched)
            return Path(api().snapshot_download(repo, revision=revision, allow_patterns=wanted, tqdm_class=bar))
    except HubError as error:
        if isinstance(error, HubUnreachableError) and (cached := cached_folder(repo, INDEX, revision=revision)):
            return cached
        raise BaseModelError(f"{where}: not a folder here, and {error}") from None


def _telling(fetched: Fetched) -> type[Any]:
    """A bar that shows nothing and tells of the bytes that are there, of all files together."""

    class Bar(tqdm):  # type: ignore[type-arg]
        def __init__(self, *given: Any, **options: Any) -> None:
            options.pop("name", None)  # the library's own, of its bars
            super().__init__(*given, **{**options, "disable": False, "file": io.StringIO()})

        def update(self, n: float | None = 1) -> bool | None:
            shown = super().update(n)
            if self.unit == "B" and self.n:
                fetched(int(self.n), int(self.total or 0))
            return shown

    return Bar
