"""The inverse of diffusers' single-file loader: a pipeline's weights under the names of the original checkpoints.

Stable Diffusion 1.x was published under the names of the CompVis code (input_blocks, middle_block, output_blocks for
the UNet; encoder.down, decoder.up for the autoencoder), XL under those of Stability's sgm code, whose second text
encoder is open_clip's. diffusers reads them; nothing writes them, so the tests do.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import save_file

UNET_NAMES = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
RESNET_NAMES = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
ATTENTION_NAMES = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def write_original_checkpoint(pipe: StableDiffusionPipeline, path: Path) -> Path:
    """Write UNet, autoencoder and text encoder of `pipe` to one file in the layout of Stable Diffusion 1.x."""
    tensors = _unet_tensors(pipe) | _vae_tensors(pipe)
    for key, value in pipe.text_encoder.state_dict().items():
        tensors[f"cond_stage_model.transformer.text_model.{key.removeprefix('text_model.')}"] = value
    save_file({key: value.to(torch.float16).contiguous() for key, value in tensors.items()}, path)
    return path


def _unet_tensors(pipe: Any) -> dict[str, torch.Tensor]:
    return {f"model.diffusion_model.{_unet_name(k, pipe)}": v for k, v in pipe.unet.state_dict().items()}


def _vae_tensors(pipe: Any) -> dict[str, torch.Tensor]:
    tensors = {}
    for key, value in pipe.vae.state_dict().items():
        name = _vae_name(key, len(pipe.vae.config.block_out_channels))
        is_projection = ".attn_1." in name and name.endswith(".weight") and value.ndim == 2
        tensors[f"first_stage_model.{name}"] = value[:, :, None, None] if is_projection else value
    return tensors


def _unet_name(key: str, pipe: Any) -> str:
    stem, _, leaf = key.rpartition(".")
    if stem in UNET_NAMES:
        return f"{UNET_NAMES[stem]}.{leaf}"
    parts = key.split(".")
    per_block = pipe.unet.config.layers_per_block + 1
    if parts[0] == "mid_block":
        block = f"middle_block.{2 * int(parts[2]) if parts[1] == 'resnets' else 1}"
    elif parts[1:3] and parts[2] == "downsamplers":
        return f"input_blocks.{(int(parts[1]) + 1) * per_block}.0.op.{leaf}"
    elif parts[2] == "upsamplers":  # behind the attention, where there is one
        place = 2 if hasattr(pipe.unet.up_blocks[int(parts[1])], "attentions") else 1
        return f"output_blocks.{(int(parts[1]) + 1) * per_block - 1}.{place}.conv.{leaf}"
    else:
        start, first = ("input_blocks", 1) if parts[0] == "down_blocks" else ("output_blocks", 0)
        position = int(parts[1]) * per_block + int(parts[3]) + first
        block = f"{start}.{position}.{0 if parts[2] == 'resnets' else 1}"
    rest = parts[3:] if parts[0] == "mid_block" else parts[4:]
    if "resnets" in parts:
        rest[0] = RESNET_NAMES[rest[0]]
    return ".".join([block, *rest])


def _vae_name(key: str, levels: int) -> str:
    parts = key.split(".")
    if parts[0] not in ("encoder", "decoder") or parts[1] in ("conv_in", "conv_out", "conv_norm_out"):
        return key.replace("conv_norm_out", "norm_out")
    side = parts[0]
    if parts[1] == "mid_block" and parts[2] == "attentions":
        rest = ".".join(parts[4:])
        for new, old in ATTENTION_NAMES.items():
            rest = rest.replace(new + ".", old + ".")
        return f"{side}.mid.attn_1.{rest}"
    rest = ".".join(parts[4:]).replace("conv_shortcut", "nin_shortcut")
    if parts[1] == "mid_block":
        return f"{side}.mid.block_{int(parts[3]) + 1}.{rest}"
    level = int(parts[2]) if side == "encoder" else levels - 1 - int(parts[2])
    name = f"{side}.{'down' if side == 'encoder' else 'up'}.{level}"
    rest = ".".join(parts[5:]).replace("conv_shortcut", "nin_shortcut")
    if parts[3] == "resnets":
        return f"{name}.block.{parts[4]}.{rest}"
    return f"{name}.{'downsample' if side == 'encoder' else 'upsample'}.{rest}"


# --- Stable Diffusion XL ----------------------------------------------------------------------------------------------

OPEN_CLIP_NAMES = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def write_xl_checkpoint(pipe: StableDiffusionXLPipeline, path: Path, vae: bool = True, **marks: str) -> Path:
    """Write `pipe` to one file in the layout of Stability's sgm code, in half precision as people publish them.

    Args:
        vae: with the autoencoder, which some leave out.
        marks: its metadata.
    """
    tensors = _unet_tensors(pipe) | (_vae_tensors(pipe) if vae else {})
    for key, value in pipe.text_encoder.state_dict().items():
        tensors[f"conditioner.embedders.0.transformer.text_model.{key.removeprefix('text_model.')}"] = value
    tensors |= {f"conditioner.embedders.1.model.{key}": value for key, value in _open_clip(pipe.text_encoder_2).items()}
    save_file({key: value.to(torch.float16).contiguous() for key, value in tensors.items()}, path, marks or None)
    return path


def _open_clip(encoder: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A text encoder's weights as open_clip calls them: query, key and value in one, the projection transposed."""
    weights = {key.removeprefix("text_model."): value for key, value in encoder.state_dict().items()}
    found = {
        "token_embedding.weight": weights["embeddings.token_embedding.weight"],
        "positional_embedding": weights["embeddings.position_embedding.weight"],
        "ln_final.weight": weights["final_layer_norm.weight"],
        "ln_final.bias": weights["final_layer_norm.bias"],
        "text_projection": weights["text_projection.weight"].T,
    }
    for layer in range(encoder.config.num_hidden_layers):
        old, new = f"encoder.layers.{layer}.", f"transformer.resblocks.{layer}."
        for leaf in ("weight", "bias"):
            parts = [weights[f"{old}self_attn.{name}_proj.{leaf}"] for name in "qkv"]
            found[f"{new}attn.in_proj_{leaf}"] = torch.cat(parts)
            found |= {f"{new}{b}.{leaf}": weights[f"{old}{a}.{leaf}"] for a, b in OPEN_CLIP_NAMES.items()}
    return found


def write_refiner_checkpoint(refiner: Any, path: Path) -> Path:
    """Write a refiner to one file in the layout of the published one, in half precision."""
    tensors = _unet_tensors(refiner) | _vae_tensors(refiner)
    encoder = _open_clip(refiner.text_encoder_2)
    tensors |= {f"conditioner.embedders.0.model.{key}": value for key, value in encoder.items()}
    save_file({key: value.to(torch.float16).contiguous() for key, value in tensors.items()}, path)
    return path
