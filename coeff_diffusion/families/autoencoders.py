"""An autoencoder that takes the place of a base's own: one that float16 does not break, one with better eyes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..hub import HubError, api, asking, listing
from ..subject.errors import shown
from ..subject.file_kind import SAFETENSORS, kind_of_file
from ..subject.hub_id import is_hub_id
from ..subject.user_file import read_text, user_path
from .errors import BaseModelError, one_line
from .family import Config

CLASSES = ("AutoencoderKL", "AutoencoderTiny")
CHOICES = "a diffusers folder (of an autoencoder or a base), a .safetensors file, or a Hub id"
WEIGHTS = "diffusion_pytorch_model.safetensors"
MAX_CONFIG = 2**20  # bytes
PREFIX = "first_stage_model."  # of its tensors in a whole checkpoint


def load_autoencoder(name: str | Path, config: Config, dtype: torch.dtype) -> Any:
    """An autoencoder, in evaluation mode.

    Args:
        name: a folder of diffusers or the id of a repository (of it alone, or of a base), or a single file in the
            layout of its makers, also a whole checkpoint.
        config: of a single file, which does not say it: the base's own.

    Raises:
        BaseModelError: there is none, it is damaged, or of another kind.
    """
    path = user_path(str(name))
    if path.is_file():
        found = _from_file(path, config)
    elif path.is_dir():
        found = _from_folder(path, str(name))
    elif is_hub_id(str(name)):
        found = _from_folder(_download(str(name)), str(name))
    else:
        raise BaseModelError(f"no autoencoder {str(name)!r}; expected {CHOICES}")
    return found.to(dtype).eval()


def _from_folder(folder: Path, name: str) -> Any:
    folder = folder / "vae" if (folder / "vae").is_dir() else folder
    try:
        config = json.loads(read_text(folder / "config.json", MAX_CONFIG))
        kind = config["_class_name"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BaseModelError(f"{name!r} is no autoencoder: {one_line(error)}; expected {CHOICES}") from error
    if kind not in CLASSES:
        raise BaseModelError(f"{name!r} is {shown(kind)}, expected an autoencoder ({' or '.join(CLASSES)})")
    # Half precision is often all there is, and named so.
    variant = None if (folder / WEIGHTS).exists() else "fp16"
    try:
        return getattr(diffusers, kind).from_pretrained(
            str(folder), use_safetensors=True, local_files_only=True, variant=variant
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise BaseModelError(f"the autoencoder {name!r} is damaged or incomplete: {one_line(error)}") from error


def _from_file(path: Path, config: Config) -> Any:
    kind = kind_of_file(path, BaseModelError)
    if kind is not SAFETENSORS:
        raise BaseModelError(f"{str(path)!r} is {kind.name}; expected an autoencoder as a .safetensors file")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise BaseModelError(f"{str(path)!r} is not a readable .safetensors file: {one_line(error)}") from error
    if any(key.startswith(PREFIX) for key in tensors):
        tensors = {key: value for key, value in tensors.items() if key.startswith(PREFIX)}
    model = diffusers.AutoencoderKL.from_config(dict(config))
    try:
        is_diffusers = "decoder.up_blocks.0.resnets.0.conv1.weight" in tensors
        weights: Mapping[str, torch.Tensor] = tensors if is_diffusers else convert_ldm_vae_checkpoint(tensors, config)
        model.load_state_dict(dict(weights))
    except (KeyError, RuntimeError, IndexError) as error:
        raise BaseModelError(
            f"{str(path)!r} is no autoencoder like the one of this base ({one_line(error)}); expected {CHOICES}"
        ) from error
    return model


def _download(repo: str) -> Path:
    """The local folder of a repository of which nothing but the autoencoder is fetched."""
    try:
        names = set(listing(repo).sizes)
        inside = "" if "config.json" in names else "vae/"
        full, half = (f"{inside}{name}" for name in (WEIGHTS, WEIGHTS.replace(".safe", ".fp16.safe")))
        wanted = [f"{inside}config.json", full if full in names else half]
        if missing := [one for one in wanted if one not in names]:
            raise BaseModelError(f"{repo} has no {missing[0]}; expected {CHOICES}")
        with asking(repo):
            return Path(api().snapshot_download(repo, allow_patterns=wanted))
    except HubError as error:
        raise BaseModelError(f"{repo}: not a file or folder here, and {error}") from None
