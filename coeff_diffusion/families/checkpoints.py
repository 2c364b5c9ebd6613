"""Bases as one `.safetensors` file in the layout their makers published, as most people have them."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
from diffusers.loaders.single_file_utils import SingleFileComponentError
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors import SafetensorError, safe_open

from ..subject.file_kind import PICKLE, SAFETENSORS, kind_of_file
from ..subject.user_file import user_path
from .errors import BaseModelError, one_line
from .family import Family
from .registry import EXPECTED, FAMILIES

PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle")
# The components that draw. What a pipeline may carry beside them (safety checker, feature extractor, image encoder)
# plays no part in drawing from text and is passed as None, which also keeps diffusers from fetching it.
NOT_LOADED: dict[str, None] = {"safety_checker": None, "feature_extractor": None, "image_encoder": None}
# Tensor names that give another kind of file away; the first match names it.
OTHERS = (
    (r"^(unet|transformer)/.*\.coeff$", "a subject of coeff-diffusion, not a base (load it with --subject)"),
    (r"^control_model\.|^controlnet_", "a ControlNet, not a base"),
    (r"^lora_|\.lora_|^lycoris_", "a LoRA, not a base"),
    (r"^conditioner\.embedders\.0\.model\.", "a Stable Diffusion XL refiner"),
    (r"(^|\.)joint_blocks\.", "Stable Diffusion 3"),
    (r"(^|\.)distilled_guidance_layer\.", "Chroma"),
    (r"(^|\.)(single|double)_stream_modulation", "FLUX.2"),
    (r"(^|\.)double_blocks\..*img_attn", "FLUX.1"),
    (r"(^|\.)transformer_blocks\.\d+\.(img|txt)_mod\.|(^|\.)txt_in\.text_norm\.", "Qwen-Image"),
    (r"(^|\.)(noise_refiner|context_refiner)\..*attention\.(qkv|to_q)\.|(^|\.)cap_pad_token$", "Z-Image or Lumina"),
    (r"(^|\.)blocks\.\d+\.mlp\.(inverted_conv|point_conv)\.|(^|\.)transformer_blocks\.\d+\.ff\.conv_inverted", "Sana"),
    (r"(^|\.)blocks\.\d+\.cross_attn\.(q|kv)_linear\.|(^|\.)adaln_single\.", "PixArt"),
    (r"(^|\.)double_layers\.\d+\.attn\.", "AuraFlow"),
    (r"(^|\.)blocks\.\d+\.(attn2|cross_attn)\..*|(^|\.)pooler\.positional_embedding$", "HunyuanDiT or a video model"),
    (
        r"^(down_blocks|mid_block|up_blocks|encoder|decoder)\.",
        "a component of a base alone",
    ),
)


def load_checkpoint(path: Path, config: str | Path | None) -> Any:
    """A stock pipeline from a single file, in the dtype it was saved in.

    Args:
        config: the diffusers folder or Hub id that its component configs and its tokenizers are read from.

    Raises:
        BaseModelError: no checkpoint of a known family, damaged, incomplete, or its configs cannot be had.
    """
    family = check_checkpoint(path)
    folder = None if config is None else user_path(config)
    source = None if folder is None else str(folder if folder.exists() else config)
    pipeline = getattr(diffusers, family.pipeline)
    accepted = {name: None for name in NOT_LOADED if name in pipeline._optional_components}
    try:
        return pipeline.from_single_file(str(path), config=source, **accepted)
    except (LocalEntryNotFoundError, RepositoryNotFoundError) as error:
        wanted = "the component configs and the tokenizer of its family" if source is None else f"config {source!r}"
        raise BaseModelError(
            f"{str(path)!r} holds weights only; {wanted} could not be fetched from the Hub or found in its cache: "
            "connect once, or give a diffusers folder of the same family as config (--base_config)"
        ) from error
    except NotImplementedError as error:  # torch, about a weight of the config that the file never filled
        raise BaseModelError(
            f"{str(path)!r} lacks weights that {source or 'the configs of its family'!r} calls for: the file is "
            "incomplete, or the config is of another family"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SingleFileComponentError) as error:
        raise BaseModelError(f"{str(path)!r} cannot be loaded as {family.title}: {one_line(error)}") from error


def check_checkpoint(path: Path) -> Family:
    """The family of a single file; pickles, other files and other families are refused from the header alone.

    Raises:
        BaseModelError: it is one of these; the message says which.
    """
    kind = kind_of_file(path, BaseModelError)
    if kind is not SAFETENSORS:
        both = " (most are published in both forms)" if PICKLE in kind.name else ""
        raise BaseModelError(f"{str(path)!r} is {kind.name}; expected a .safetensors checkpoint{both}")
    if path.suffix.lower() != ".safetensors":  # diffusers goes by the name
        raise BaseModelError(f"{str(path)!r} is {kind.name} under another name; rename it to {path.stem}.safetensors")
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
    except (SafetensorError, OSError) as error:
        raise BaseModelError(f"{str(path)!r} is not a readable .safetensors file: {one_line(error)}") from error
    missing = {family: _missing(family, names) for family in FAMILIES}
    whole = next((family for family in FAMILIES if not missing[family]), None)
    if whole is not None:
        return whole
    for pattern, other in OTHERS:
        if any(re.search(pattern, name) for name in names):
            raise BaseModelError(f"{str(path)!r} is {other}; expected {EXPECTED}")
    nearest = max(FAMILIES, key=lambda family: len(family.checkpoint) - len(missing[family]))
    raise BaseModelError(
        f"{str(path)!r} lacks {', '.join(missing[nearest])}; expected a whole checkpoint of {EXPECTED}"
    )


def _missing(family: Family, names: Sequence[str]) -> list[str]:
    parts = family.checkpoint.items()
    return [f"{what} ({start}...)" for what, start in parts if not any(name.startswith(start) for name in names)]
