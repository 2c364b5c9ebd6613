"""Stable Diffusion bases of real sizes with random weights, in folders like those that people download.

    python -m tools.real_size_models sd15 base/          # narrow: what is real about it stands below
    python -m tools.real_size_models sd21 base/ --full   # all 1.3 billion weights

Tokenizers, vocabularies, widths of text encoders, attention layers with their paths and heads, samplers and the names
in the files are always those of the published checkpoints. What makes a base quick is left out unless `full`: channels
of the UNet and the autoencoder, layers of the text encoders.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from coeff_diffusion.families.stable_diffusion import StableDiffusion
from coeff_diffusion.families.stable_diffusion_xl import StableDiffusionXL
from tools.clip_tokenizer import END, LENGTH, clip_tokenizer, write_tokenizer_files

VOCABULARY = 49_408
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
}
# Ids that no CLIP has: transformers wrote them into every config before 2023, and the published ones still say so.
TEXT_IDS = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
CLIP_L = {
    **TEXT_IDS,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
}
CLIP_H = {
    **TEXT_IDS,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
    "projection_dim": 512,
}
CLIP_G = {
    **TEXT_IDS,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projection_dim": 1280,
}
VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
}
NARROW_TEXT = {"num_hidden_layers": 2, "intermediate_size": 256}
NARROW_VAE = {"block_out_channels": (8, 8, 16, 16), "layers_per_block": 1, "norm_num_groups": 8, "sample_size": 64}


@dataclass(frozen=True)
class Family:
    """A published base.

    Attributes:
        unet: the config of its UNet, as far as it is not diffusers' default; narrow: what makes it narrow.
        texts: the configs of its text encoders.
        pads: what fills up short prompts, by tokenizer.
        scheduler: the class of its sampler and what sets it apart.
        is_old: written by a diffusers that called the autoencoder's attention weights otherwise.
    """

    unet: Mapping[str, Any]
    narrow: Mapping[str, Any]
    texts: tuple[Mapping[str, Any], ...]
    pads: tuple[str, ...]
    scheduler: tuple[str, Mapping[str, Any]]
    vae: Mapping[str, Any] = field(default_factory=dict)
    is_old: bool = True


FAMILIES = {
    "sd15": Family(
        unet={**StableDiffusion.known["Stable Diffusion 1.x"], "sample_size": 64},
        narrow={"sample_size": 8, "block_out_channels": (32, 64, 64, 64)},
        texts=(CLIP_L,),
        pads=(END,),
        scheduler=("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": False}),
        vae={"sample_size": 512},
    ),
    "sd21": Family(
        unet={**StableDiffusion.known["Stable Diffusion 2.x"], "sample_size": 96, "upcast_attention": True},
        narrow={"sample_size": 8, "block_out_channels": (20, 40, 80, 80), "norm_num_groups": 20},
        texts=(CLIP_H,),
        pads=("!",),
        scheduler=(
            "DDIMScheduler",
            {"prediction_type": "v_prediction", "clip_sample": False, "set_alpha_to_one": False},
        ),
        vae={"sample_size": 768},
    ),
    "sdxl": Family(
        unet={**StableDiffusionXL.known["Stable Diffusion XL"], "sample_size": 128},
        narrow={"sample_size": 8, "block_out_channels": (20, 40, 80), "norm_num_groups": 20},
        texts=(CLIP_L, CLIP_G),
        pads=(END, "!"),
        scheduler=("EulerDiscreteScheduler", {"timestep_spacing": "leading"}),
        vae={"sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
        is_old=False,
    ),
}


def make_base(family: str, *, full: bool = False, seed: int = 0) -> Any:
    """A pipeline with random weights; the same seed gives the same ones.

    Args:
        family: "sd15", "sd21" or "sdxl".
        full: all weights of the published base, and the size of its pictures.

    Raises:
        VocabularyError: see `clip_tokenizer`.
    """
    chosen = FAMILIES[family]
    name, settings = chosen.scheduler
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(**{**chosen.unet, **({} if full else chosen.narrow)})
        vae = AutoencoderKL(**{**VAE, **chosen.vae, **({} if full else NARROW_VAE)})
        encoders = [_text_encoder({**text, **({} if full else NARROW_TEXT)}) for text in chosen.texts]
    tokenizers = [clip_tokenizer(pad) for pad in chosen.pads]
    parts = {"unet": unet, "vae": vae, "scheduler": getattr(diffusers, name)(**SCHEDULE, **settings)}
    for suffix, encoder, tokenizer in zip(("", "_2"), encoders, tokenizers, strict=False):
        parts |= {f"text_encoder{suffix}": encoder, f"tokenizer{suffix}": tokenizer}
    if family == "sdxl":
        return StableDiffusionXLPipeline(**parts)
    others = dict.fromkeys(("safety_checker", "feature_extractor"))
    return StableDiffusionPipeline(**parts, **others, requires_safety_checker=False)


def write_base(family: str, folder: Path, *, full: bool = False, seed: int = 0) -> Path:
    """Write a base as it is published: the names of files and weights are those that old versions have written."""
    make_base(family, full=full, seed=seed).save_pretrained(folder)
    chosen = FAMILIES[family]
    for suffix, pad in zip(("", "_2"), chosen.pads, strict=False):
        (folder / f"tokenizer{suffix}" / "tokenizer.json").unlink()
        write_tokenizer_files(folder / f"tokenizer{suffix}", pad)
        _rename(folder / f"text_encoder{suffix}" / "model.safetensors", _old_text_names)
    if chosen.is_old:
        _rename(folder / "vae" / "diffusion_pytorch_model.safetensors", _old_vae_names)
        index = json.loads((folder / "model_index.json").read_text())
        # The published ones name parts that nobody here loads; their folders are not fetched either.
        index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
        index["feature_extractor"] = ["transformers", "CLIPFeatureExtractor"]
        (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    return folder


def _text_encoder(config: Mapping[str, Any]) -> CLIPTextModel | CLIPTextModelWithProjection:
    kind = CLIPTextModelWithProjection if config["hidden_size"] == CLIP_G["hidden_size"] else CLIPTextModel
    return kind(CLIPTextConfig(vocab_size=VOCABULARY, max_position_embeddings=LENGTH, **config)).eval()


def _rename(path: Path, renamed: Callable[[Mapping[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file(renamed(load_file(path)), path, metadata={"format": "pt"})


def _old_text_names(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Everything but the projection below `text_model`, and the positions, which were part of the weights."""
    named = {
        name if name.startswith(("text_model.", "text_projection.")) else f"text_model.{name}": weight
        for name, weight in weights.items()
    }
    return named | {"text_model.embeddings.position_ids": torch.arange(LENGTH).unsqueeze(0)}


def _old_vae_names(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    new = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def old(name: str) -> str:
        if ".attentions." not in name:
            return name
        for now, before in new.items():
            name = name.replace(f".{now}.", f".{before}.")
        return name

    return {old(name): weight for name, weight in weights.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=list(FAMILIES))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--full", action="store_true", help="all weights of the published base")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    print(f"wrote {write_base(args.family, args.folder, full=args.full, seed=args.seed)}")
    return 0


if __name__ == "__main__":
    main()
