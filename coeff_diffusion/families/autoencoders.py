"""An autoencoder that takes the place of a base's own: one that float16 does not break, one with better eyes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

from .family import Config
from .parts import Part, Tensors, load_part

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

    def from_tensors(tensors: Tensors) -> Any:
        if any(key.startswith(PREFIX) for key in tensors):
            tensors = {key: value for key, value in tensors.items() if key.startswith(PREFIX)}
        model = diffusers.AutoencoderKL.from_config(dict(config))
        is_diffusers = "decoder.up_blocks.0.resnets.0.conv1.weight" in tensors
        weights: Mapping[str, torch.Tensor] = tensors if is_diffusers else convert_ldm_vae_checkpoint(tensors, config)
        model.load_state_dict(dict(weights))
        return model

    part = Part("autoencoder", "an", ("AutoencoderKL", "AutoencoderTiny"), "vae", from_tensors)
    return load_part(name, part).to(dtype).eval()
