"""Where the attention layers of a UNet of ComfyUI's layout are, under the names that subjects call them by.

ComfyUI numbers the blocks of a UNet in one row each way, diffusers by level and position; with `n` residual blocks a
level, `down_blocks.i.attentions.j` is input block `(n + 1) i + j + 1` and `up_blocks.i.attentions.j` output block
`(n + 1) i + j`.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ...subject.adapter_methods import LORA_FILE
from ...subject.coefficients import Coefficients
from ...subject.errors import CoefficientsError, cut, listed
from ...subject.info import CoefficientsInfo
from ...subject.places import text_encoder_of
from ...subject.safetensors_file import DTYPES
from ...subject.weight_sample import spread
from ..attachment import CoeffConfig
from ..sites import Site, stage_of, text_stages

Block = tuple[str, int]  # as in `extra_options["block"]`: ("input", 4), ("middle", 0)
LAYER = re.compile(r"(input|middle|output)_blocks?\.(\d+)\.(?:\d+\.)?transformer_blocks\.(\d+)\.(attn[12])")
ORDER = ("down", "up", "mid")  # of diffusers' `attn_processors`, which a fingerprint is taken of


class Place(NamedTuple):
    """An attention layer, and where ComfyUI's patches find it.

    Attributes:
        name: "attn1" or "attn2".
        transformer: number of the transformer block in its block.
    """

    site: Site
    name: str
    block: Block
    transformer: int

    @property
    def stage(self) -> str:
        """The part of the UNet that hands the text on to this layer, by path ("down_blocks.0", "mid_block")."""
        return text_stages([replace(self.site, kind="cross")])[0]

    @property
    def key(self) -> tuple[str, int, int]:
        """The layer in ComfyUI's `patches_replace[name]`."""
        return (*self.block, self.transformer)


def find_places(unet: Any) -> dict[str, Place]:
    """All attention layers of ComfyUI's UNet by their path in diffusers, in diffusers' order.

    Raises:
        CoefficientsError: not a UNet of Stable Diffusion 1.x, 2.x or XL.
    """
    counts = getattr(unet, "num_res_blocks", None)
    if not isinstance(counts, list):
        raise CoefficientsError(
            f"this model is a {type(unet).__name__}; expected the UNet of a Stable Diffusion 1.x, 2.x or XL"
        )
    blocks, found = block_paths(counts), []
    for name, module in unet.named_modules():
        if match := LAYER.fullmatch(name):
            way, number, index, attention = match.groups()
            block = (way, 0 if way == "middle" else int(number))
            path = f"{blocks[block]}.transformer_blocks.{index}.{attention}"
            kind = "self" if attention == "attn1" else "cross"
            site = Site(path, module, module.heads, kind, stage_of(path))  # type: ignore[arg-type]
            found.append(Place(site, attention, block, int(index)))
    return {one.site.path: one for one in sorted(found, key=lambda one: ORDER.index(one.site.stage))}


def block_paths(counts: Sequence[int]) -> dict[Block, str]:
    """What diffusers calls the attention of each of ComfyUI's blocks.

    Args:
        counts: residual blocks of each level, from fine to coarse.
    """
    down: list[str | None] = [None]  # the first convolution
    for level, count in enumerate(counts):
        down += [f"down_blocks.{level}.attentions.{number}" for number in range(count)]
        down.append(None)  # the step to the next level
    up = [
        f"up_blocks.{level}.attentions.{number}"
        for level, count in enumerate(reversed(counts))
        for number in range(count + 1)
    ]
    found = {("input", number): path for number, path in enumerate(down) if path}
    return {**found, ("middle", 0): "mid_block.attentions.0", **{("output", n): path for n, path in enumerate(up)}}


def fingerprint(places: Mapping[str, Place]) -> str:
    """`base_fingerprint` of the file format: path, heads, inner width and context width of every attention layer."""
    topology = [(path, one.site.heads, *widths(one.site)) for path, one in places.items()]
    return hashlib.sha256(json.dumps(topology).encode()).hexdigest()


def weight_sample(unet: Any, places: Mapping[str, Place]) -> tuple[float, ...]:
    """`base_sample` of the file format; empty where the weights are rounded to less than 16 bits, or elsewhere."""
    middle: Any = list(places.values())[len(places) // 2].site.module
    weights = [unet.input_blocks[0][0].weight, unet.out[-1].weight, middle.to_v.weight]
    if any(weight.is_meta or weight.dtype not in DTYPES.values() for weight in weights):
        return ()
    return tuple(value for weight in weights for value in spread(weight, 8))


def widths(site: Site) -> tuple[int, int]:
    """The inner width and the context width of a layer."""
    layer: Any = site.module
    return layer.to_q.out_features, layer.to_k.in_features


def beside(info: CoefficientsInfo) -> str:
    """What a subject needs beside what is loaded here, as a sentence; empty where there is nothing."""
    if not info.adapter:
        return ""
    remedy = "draw it with coeff-diffusion or diffusers"
    if info.adapter_file == LORA_FILE:
        remedy = f"load {LORA_FILE}, which lies beside its file, as a LoRA"
    return f"the subject learned with an adapter ({info.adapter}), which is not loaded with it here: {remedy}"


def check_fits(subject: Coefficients, places: Mapping[str, Place]) -> None:
    """Make sure that a subject belongs to this UNet.

    Raises:
        CoefficientsError: it does not; the message names the first offenders and both sides. Or it recombines heads of
            text encoders, which here are read by others.
    """
    if in_text := [path for path in subject if text_encoder_of(path)]:
        raise CoefficientsError(
            f"the subject also recombines heads of {len(in_text)} layers of the text encoder, which is not done here; "
            'draw it with coeff-diffusion or in a pipeline of diffusers, or train it without "text" in --layers'
        )
    info, sites = subject.info, {path: place.site for path, place in places.items()}
    wrong = [] if subject.denoiser == "unet" else [f"its layers are those of a {subject.denoiser}"]
    wrong += [f"{cut(path)} is no attention layer of this model" for path in subject if path not in sites]
    wrong += [
        f"{path} has {len(coeff)} heads, in this model {sites[path].heads}"
        for path, coeff in subject.items()
        if path in sites and len(coeff) != sites[path].heads
    ]
    stages = text_stages(sites.values())
    texts = {widths(site)[1] for site in sites.values() if site.kind == "cross"}
    for stage, token in subject.stage_tokens.items():
        if stage not in stages:
            wrong.append(f"{cut(stage)} is no stage of this model that reads the prompt")
        elif texts != {token.shape[1]}:
            wrong.append(f"the token of {stage} has {token.shape[1]} channels, in this model {min(texts)}")
    if subject and not wrong:
        config = CoeffConfig(layers=info.layers, blocks=info.blocks)
        expected = [path for path, site in sites.items() if config.selects(site)]
        wrong += [f"{path} has no coefficients" for path in expected if path not in subject]
    if not wrong and info.base_fingerprint not in ("", fingerprint(places)):
        wrong.append("the attention layers have other widths")
    if wrong:
        base, family = cut(info.base_model) or "a base", cut(info.base_architecture) or "unknown family"
        raise CoefficientsError(
            f"the subject is for {base} ({family}, {len(subject)} layers), this model has {len(sites)} attention "
            f"layers: {listed(wrong)}"
        )
