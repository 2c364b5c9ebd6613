"""A ControlNet: a second network beside the denoiser that holds a drawing to a picture of edges, depths or poses."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusers import ControlNetModel
from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint
from huggingface_hub import try_to_load_from_cache

from ..method.sites import unwrapped
from ..subject.weight_sample import spread
from .errors import BaseModelError
from .load import base_name, short_name
from .parts import HALF, WEIGHTS, Part, Tensors, load_part
from .registry import by_denoiser, denoiser_of, family_of

# What has to be alike for a ControlNet's layers to fit those of a denoiser, and what people call it.
ALIKE = {
    "cross_attention_dim": "text has a width of",
    "in_channels": "latents have channels:",
    "block_out_channels": "levels have channels:",
    "layers_per_block": "levels have layers:",
}


@dataclass(frozen=True)
class ControlNet:
    """One that is loaded.

    Attributes:
        name: fit for sharing: a Hub id, or the last part of a path.
        digits: 12 hex digits that tell its weights, in their dtype, from any other's.
    """

    name: str
    digits: str
    model: Any = field(compare=False)


def is_fetched(repo: str) -> bool:
    """Whether the weights of a ControlNet, or a refiner, from the Hub are on this computer."""
    return any(
        isinstance(try_to_load_from_cache(repo, f"{inside}{name}"), str)
        for inside in ("", "controlnet/", "unet/")
        for name in (WEIGHTS, HALF)
    )


def load_controlnet(name: str | Path, pipe: Any) -> ControlNet:
    """A ControlNet for the base of this pipeline: in its dtype, where it is, in evaluation mode.

    Args:
        name: a folder of diffusers, the id of a repository, or a single file of any layout, whose config is the base's.

    Raises:
        BaseModelError: there is none, it is damaged, or made for another kind of base.
    """
    denoiser = denoiser_of(pipe)

    def from_tensors(tensors: Tensors) -> Any:
        model = ControlNetModel.from_unet(denoiser, load_weights_from_unet=False)
        model.load_state_dict(convert_controlnet_checkpoint(tensors, dict(model.config)))
        return model

    part = Part("ControlNet", "a", ("ControlNetModel",), "controlnet", from_tensors)
    model = load_part(name, part)
    _check_fits(str(name), model, pipe)
    model = model.to(denoiser.device).eval()
    if model.dtype != denoiser.dtype:
        model = model.to(denoiser.dtype)
    return ControlNet(short_name(str(name)), _digits(model), model)


def _check_fits(name: str, model: Any, pipe: Any) -> None:
    config, family = unwrapped(denoiser_of(pipe)).config, family_of(pipe)
    made_for = by_denoiser(family.denoiser_classes[0], model.config)
    if made_for is not family:
        kind = "another kind of base" if made_for is None else made_for.title
        raise BaseModelError(f"the ControlNet {name!r} is made for {kind}, but this base is {family.title}")
    for key, words in ALIKE.items():
        mine, theirs = (_plain(one.get(key)) for one in (config, model.config))
        if mine != theirs:
            raise BaseModelError(
                f"the ControlNet {name!r} is made for another base than {base_name(pipe)!r}: there {words} {theirs}, "
                f"here {mine}"
            )


def _plain(value: Any) -> Any:
    """As it is in a config's JSON."""
    return list(value) if isinstance(value, tuple) else value


def _digits(model: Any) -> str:
    parameters = list(model.parameters())
    numbers = [value for weight in (*parameters[:4], *parameters[-4:]) for value in spread(weight, 8)]
    shapes = [list(weight.shape) for weight in parameters]
    return hashlib.sha256(json.dumps([shapes, numbers]).encode()).hexdigest()[:12]
