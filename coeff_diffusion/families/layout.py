"""Bases whose attention layers are known by heart: a QR code names its base and leaves the layers' paths out.

A topology is computed from a UNet's config on the meta device, so that no weight is read or made.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from diffusers.models import UNet2DConditionModel

from ..base import embedded_path
from ..method.attachment import layer_heads
from .fingerprint import fingerprint

EMBEDDED = "the embedded base"
# Only what sets a family's attention layers apart from `UNet2DConditionModel`'s defaults, which are those of 1.x.
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "Stable Diffusion 1.x": {"cross_attention_dim": 768, "attention_head_dim": 8},
    "Stable Diffusion 2.x": {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20)},
}
KNOWN = (EMBEDDED, *FAMILIES)


@dataclass(frozen=True)
class Topology:
    """The attention layers of a known base.

    Attributes:
        heads: heads of each layer by attention path, sorted by path.
        text_width: channels of a token embedding.
        fingerprint: `fingerprint(unet)`.
        unet: the whole structure, on the meta device; for `check_fits`, not to be changed.
    """

    heads: Mapping[str, int]
    text_width: int
    fingerprint: str
    unet: UNet2DConditionModel


def find_topology(start: str) -> Topology | None:
    """The known base whose fingerprint starts with `start` (hex), the embedded one first; None where none does.

    Each is built when it is first asked for, in 0.06 s; those after the one that is found are not.
    """
    return next((found for name in KNOWN if (found := _topology(name)) and found.fingerprint.startswith(start)), None)


@cache
def _topology(name: str) -> Topology | None:
    """None for the embedded base where the installation lacks it."""
    try:
        config = FAMILIES.get(name) or json.loads((embedded_path() / "unet" / "config.json").read_bytes())
    except FileNotFoundError:
        return None
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(dict(config))
    heads = dict(sorted(layer_heads(unet).items()))
    return Topology(heads, unet.config.cross_attention_dim, fingerprint(unet), unet)
