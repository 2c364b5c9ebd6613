"""Bases as one `.safetensors` file in the layout their makers published, as most people have them."""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.loaders.single_file_utils import SingleFileComponentError
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors import SafetensorError, safe_open

from ..subject.file_kind import PICKLE, SAFETENSORS, kind_of_file
from ..subject.user_file import read_text, user_path
from .autoencoders import load_autoencoder
from .errors import BaseModelError, one_line
from .family import AUTOENCODER, Config, Family
from .parts import MAX_CONFIG
from .registry import EXPECTED, FAMILIES

PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle")
# The components that draw. What a pipeline may carry beside them (safety checker, feature extractor, image encoder)
# plays no part in drawing from text and is passed as None, which also keeps diffusers from fetching it.
NOT_LOADED: dict[str, None] = {"safety_checker": None, "feature_extractor": None, "image_encoder": None}
# Tensor names that give another kind of file away; the first match names it.
OTHERS = (
    (r"^(unet|transformer)/.*\.coeff$", "a subject of coeff-diffusion, not a base (load it with --subject)"),
    (r"^control_model\.|^controlnet_", "a ControlNet, not a base (give it with --controlnet)"),
    (r"^lora_|\.lora_|^lycoris_", "a LoRA, not a base"),
    (
        r"^conditioner\.embedders\.0\.model\.",
        "the Stable Diffusion XL refiner, which finishes pictures of a base",
    ),
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


def load_checkpoint(
    path: Path, config: str | Path | None, vae: str | Path | None = None, dtype: torch.dtype = torch.float32
) -> Any:
    """A stock pipeline from a single file.

    Args:
        config: the diffusers folder or Hub id that its component configs and its tokenizers are read from.
        vae: an autoencoder instead of its own, or of none (see `load_autoencoder`).
        dtype: of all weights, while they are read, too: diffusers makes float32 of a file where none is given, for XL
            7 GB more than anybody needs who draws in half precision.

    Raises:
        BaseModelError: no checkpoint of a known family, damaged, incomplete, or its configs cannot be had.
    """
    family = check_checkpoint(path, lacks=() if vae is None else (AUTOENCODER,))
    folder = None if config is None else user_path(config)
    source = usual_config(path, family) if folder is None else str(folder if folder.exists() else config)
    pipeline = getattr(diffusers, family.pipeline)
    parts: dict[str, Any] = {name: None for name in NOT_LOADED if name in pipeline._optional_components}
    if vae is not None:
        parts["vae"] = load_autoencoder(vae, _autoencoder_config(folder, family), dtype)
    try:
        pipe = pipeline.from_single_file(str(path), config=source, torch_dtype=dtype, **parts)
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
    changes = predicted(*header_of(path))
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **changes) if changes else pipe.scheduler
    return pipe


def _autoencoder_config(folder: Path | None, family: Family) -> Config:
    """How an autoencoder of a single file is built: as in the configs that were given, else as the family's."""
    file = None if folder is None else folder / "vae" / "config.json"
    return family.autoencoder if file is None or not file.is_file() else dict(json.loads(read_text(file, MAX_CONFIG)))


def usual_config(path: Path, family: Family) -> str | None:
    """Where the configs of a checkpoint lie that has other layers than the base of its family; None: diffusers knows.

    The number of transformer blocks behind each convolution tells.
    """
    found: dict[str, int] = {}
    for name in header_of(path)[0]:
        if block := re.match(r"model\.diffusion_model\.(\w+_blocks?\.\d+)\.1\.transformer_blocks\.(\d+)\.", name):
            found[block[1]] = max(found.get(block[1], 0), int(block[2]) + 1)
    return next((home for home, blocks in family.distilled.items() if blocks == found), None)


def predicted(names: Collection[str], metadata: Mapping[str, str]) -> dict[str, Any]:
    """What a checkpoint says of its noise process where that is not the usual one, as settings of a scheduler.

    Fine-tunes of XL that predict v carry an empty tensor "v_pred", and "ztsnr" if they were trained up to pure noise;
    ModelSpec has a key for the first.
    """
    changes: dict[str, Any] = {}
    if "v_pred" in names or metadata.get("modelspec.prediction_type") == "v":
        changes["prediction_type"] = "v_prediction"
    if "ztsnr" in names:
        changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return changes


def check_checkpoint(path: Path, lacks: Collection[str] = ()) -> Family:
    """The family of a single file; pickles, other files and other families are refused from the header alone.

    Args:
        lacks: parts that it need not have.

    Raises:
        BaseModelError: it is one of these; the message says which.
    """
    kind = kind_of_file(path, BaseModelError)
    if kind is not SAFETENSORS:
        both = " (most are published in both forms)" if PICKLE in kind.name else ""
        raise BaseModelError(f"{str(path)!r} is {kind.name}; expected a .safetensors checkpoint{both}")
    if path.suffix.lower() != ".safetensors":  # diffusers goes by the name
        raise BaseModelError(f"{str(path)!r} is {kind.name} under another name; rename it to {path.stem}.safetensors")
    names, _ = header_of(path)
    missing = {family: _missing(family, names, lacks) for family in FAMILIES}
    whole = next((family for family in FAMILIES if not missing[family]), None)
    if whole is not None:
        return whole
    if other := kind_of_tensors(names):
        raise BaseModelError(f"{str(path)!r} is {other}; expected {EXPECTED}")
    nearest = max(FAMILIES, key=lambda family: len(family.checkpoint) - len(missing[family]))
    if len(missing[nearest]) == 1 and missing[nearest][0].startswith(AUTOENCODER):
        raise BaseModelError(
            f"{str(path)!r} lacks {missing[nearest][0]}; give one with --pretrained_vae_model_name_or_path"
        )
    raise BaseModelError(
        f"{str(path)!r} lacks {', '.join(missing[nearest])}; expected a whole checkpoint of {EXPECTED}"
    )


def kind_of_tensors(names: Collection[str]) -> str | None:
    """What a file with tensors of these names is, where it is no whole base; None where nothing tells."""
    return next((other for pattern, other in OTHERS if any(re.search(pattern, name) for name in names)), None)


def header_of(path: Path) -> tuple[list[str], Mapping[str, str]]:
    """The names of the tensors of a single file, and its metadata.

    Raises:
        BaseModelError: it cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys()), file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise BaseModelError(f"{str(path)!r} is not a readable .safetensors file: {one_line(error)}") from error


def _missing(family: Family, names: Sequence[str], lacks: Collection[str]) -> list[str]:
    parts = [(what, start) for what, start in family.checkpoint.items() if what not in lacks]
    return [f"{what} ({start}...)" for what, start in parts if not any(name.startswith(start) for name in names)]
