"""A refiner: the second stage of some bases, a network of its own that takes the last noise out of what they draw.

It draws with the base's autoencoder, since it reads and writes the base's latents, and with the base's second text
encoder where its own has the same weights.
"""

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_open_clip_checkpoint
from safetensors import SafetensorError
from torch import nn

from ..hub import HubError, HubUnreachableError, api, asking, cached_folder, listing
from ..subject.errors import shown
from ..subject.hub_id import is_hub_id
from ..subject.user_file import read_text, user_path
from .checkpoints import header_of, kind_of_tensors
from .errors import BaseModelError, one_line
from .family import Family
from .fingerprint import base_hash
from .folders import INDEX, MAX_CONFIG, files_of_parts, variant_of
from .load import base_name, quietly, short_name
from .parts import check_safetensors, read_tensors
from .process import training_schedule
from .quantization import quantization_of, quantize
from .registry import denoiser_of, family_of

ENCODER, TOKENIZER = "text_encoder_2", "tokenizer_2"
WEIGHTS = (ENCODER, "unet")
IN_FILE = {"the UNet": "model.diffusion_model.", "the text encoder": "conditioner.embedders.0.model."}
CHOICES = "a diffusers folder, a .safetensors file, or a Hub id (stabilityai/stable-diffusion-xl-refiner-1.0)"


@dataclass(frozen=True)
class Refiner:
    """One that is loaded.

    Attributes:
        name: fit for sharing: a Hub id, or the last part of a path.
        digits: 12 hex digits that tell its weights, in their dtype, from any other's.
        pipe: diffusers' pipeline of it.
    """

    name: str
    digits: str
    pipe: Any = field(compare=False)


def load_refiner(name: str | Path, pipe: Any) -> Refiner:
    """A refiner for the base of this pipeline: in its dtype and rounding, where it is, in evaluation mode.

    Args:
        name: a diffusers folder, the id of a repository, or a single file in the layout of the published one.

    Raises:
        BaseModelError: there is none, it is damaged, no refiner, or does not go with this base.
    """
    family, name = family_of(pipe), str(name)
    if not family.refiner:
        raise BaseModelError(f"{base_name(pipe)!r} is {family.title}, which has no refiner; draw without one")
    with quietly():
        refiner = _load(name, pipe, family)
    _check_goes_with(name, refiner, pipe)
    denoiser = denoiser_of(pipe)
    for part in (refiner.unet, getattr(refiner, ENCODER)):
        part.requires_grad_(False).eval()
        if part.dtype != denoiser.dtype:
            part.to(denoiser.dtype)
    quantize(refiner, quantization_of(denoiser))
    if _alike(getattr(refiner, ENCODER), getattr(pipe, ENCODER)):
        refiner.register_modules(**{part: getattr(pipe, part) for part in (ENCODER, TOKENIZER)})
    for part in (refiner.unet, getattr(refiner, ENCODER)):
        part.to(denoiser.device)
    refiner.set_progress_bar_config(disable=True)
    return Refiner(short_name(name), base_hash(refiner.unet, getattr(refiner, ENCODER)) or "", refiner)


def _load(name: str, pipe: Any, family: Family) -> Any:
    path = user_path(name)
    if path.is_file():
        return _from_file(path, pipe, family)
    if path.is_dir():
        return _from_folder(path, name, pipe, family)
    if is_hub_id(name):
        return _from_folder(_download(name, family), name, pipe, family)
    raise BaseModelError(f"no refiner {name!r}; expected {CHOICES}")


def _from_folder(folder: Path, name: str, pipe: Any, family: Family) -> Any:
    _check_index(folder / INDEX, name, family)
    files = [path.relative_to(folder).as_posix() for path in folder.glob("*/*")]
    try:
        return getattr(diffusers, family.refiner).from_pretrained(
            str(folder),
            vae=pipe.vae,
            text_encoder=None,
            tokenizer=None,
            add_watermarker=False,
            dtype=denoiser_of(pipe).dtype,
            variant=variant_of(files, WEIGHTS),
            use_safetensors=True,
            local_files_only=True,
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise BaseModelError(f"the refiner {name!r} is damaged or incomplete: {one_line(error)}") from error


def _check_index(index: Path, name: str, family: Family) -> None:
    try:
        found = dict(json.loads(read_text(index, MAX_CONFIG)))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise BaseModelError(f"{name!r} is no refiner: {one_line(error)}; expected {CHOICES}") from error
    kind = str(found.get("_class_name"))
    whole = found.get("text_encoder") not in (None, [None, None])  # a base as it is saved for image to image
    if kind != family.refiner or whole:
        what = "a base with both text encoders" if kind == family.refiner else kind
        raise BaseModelError(f"{name!r} is {shown(what)}, not the refiner of {family.title}; expected {CHOICES}")


def _download(repo: str, family: Family) -> Path:
    """The local folder of a repository, of which no more is fetched than is drawn with; the cache if offline."""
    try:
        names = list(listing(repo).sizes)
        with asking(repo):
            index = Path(api().hf_hub_download(repo, INDEX))
        _check_index(index, repo, family)  # before gigabytes of another come down
        wanted = [INDEX, *files_of_parts(names, WEIGHTS, ("scheduler", TOKENIZER))]
        with asking(repo):
            return Path(api().snapshot_download(repo, allow_patterns=wanted))
    except HubError as error:
        if isinstance(error, HubUnreachableError) and (cached := cached_folder(repo, INDEX)):
            return cached
        raise BaseModelError(f"{repo}: not a file or folder here, and {error}") from None


def _from_file(path: Path, pipe: Any, family: Family) -> Any:
    """Built as the published one is, the text encoder as the base's second; the noise schedule is the base's."""
    check_safetensors(path, "a refiner")
    names, _ = header_of(path)
    missing = [part for part, start in IN_FILE.items() if not any(one.startswith(start) for one in names)]
    if missing:
        kind = kind_of_tensors(names) or f"a file without {' and '.join(missing)} of one"
        raise BaseModelError(f"{str(path)!r} is {kind}, not the refiner of {family.title}; expected {CHOICES}")
    own, config = getattr(pipe, ENCODER), family.known[f"{family.title} refiner"]
    encoder = type(own)(copy.deepcopy(own.config))
    try:
        tensors = read_tensors(path, "a refiner")
        with torch.device("meta"):
            unet = diffusers.UNet2DConditionModel.from_config(dict(config))
        unet.load_state_dict(convert_ldm_unet_checkpoint(tensors, dict(unet.config)), assign=True)
        encoder.load_state_dict(convert_open_clip_checkpoint(encoder, tensors, prefix=IN_FILE["the text encoder"]))
    except (KeyError, RuntimeError, IndexError) as error:
        raise BaseModelError(f"the refiner {str(path)!r} is damaged or incomplete: {one_line(error)}") from error
    return getattr(diffusers, family.refiner)(
        vae=pipe.vae,
        text_encoder=None,
        text_encoder_2=encoder,
        tokenizer=None,
        tokenizer_2=getattr(pipe, TOKENIZER),
        unet=unet,
        scheduler=pipe.scheduler,
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )


def _check_goes_with(name: str, refiner: Any, pipe: Any) -> None:
    """Whether it goes on where the base stops: at the same noise, in the same latents."""
    width, given = refiner.unet.config.cross_attention_dim, getattr(refiner, ENCODER).config.hidden_size
    if width != given:
        raise BaseModelError(f"{name!r} attends to text of width {width}, its text encoder gives {given}: no refiner")
    mine, theirs = (training_schedule(one.scheduler.config) for one in (pipe, refiner))
    alike = mine.alphas_cumprod.shape == theirs.alphas_cumprod.shape
    if not alike or not torch.allclose(mine.alphas_cumprod, theirs.alphas_cumprod):
        raise BaseModelError(
            f"the refiner {name!r} was trained with another noise schedule than {base_name(pipe)!r}, so it cannot go "
            "on where this base stops; draw without it"
        )
    predicts, expected = (one.config.prediction_type for one in (theirs, mine))
    if predicts != expected:
        raise BaseModelError(
            f"the refiner {name!r} predicts {predicts!r} and {base_name(pipe)!r} predicts {expected!r}, which no "
            "sampler draws in one go; draw without it"
        )


def _alike(encoder: nn.Module, own: nn.Module) -> bool:
    """Whether two text encoders have the same weights, bit by bit, in the base's dtype."""
    mine, theirs = own.state_dict(), encoder.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key].cpu(), one) for key, one in theirs.items())
