"""A refiner of Stable Diffusion XL in the layout of the published one, narrow and untrained."""

from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionXLImg2ImgPipeline, UNet2DConditionModel

from coeff_diffusion.families.stable_diffusion_xl import REFINER

NARROW: dict[str, Any] = {
    **REFINER,
    "sample_size": 8,
    "attention_head_dim": (2, 4, 4, 4),
    "block_out_channels": (16, 32, 32, 32),
    "layers_per_block": 1,
    "transformer_layers_per_block": 1,
    "norm_num_groups": 8,
    "addition_time_embed_dim": 8,
    "cross_attention_dim": 48,  # what the second text encoder of `tiny_xl_pipe` gives
    "projection_class_embeddings_input_dim": 48 + 5 * 8,  # pooled text, and five numbers: the last is the score
}


def make_refiner(pipe: Any, seed: int = 4, **parts: Any) -> StableDiffusionXLImg2ImgPipeline:
    """One for a tiny XL pipeline.

    Args:
        parts: other parts than the base's.
    """
    torch.manual_seed(seed)
    options = {"vae": pipe.vae, "text_encoder_2": pipe.text_encoder_2, "tokenizer_2": pipe.tokenizer_2, **parts}
    refiner = StableDiffusionXLImg2ImgPipeline(
        text_encoder=None,
        tokenizer=None,
        unet=UNet2DConditionModel(**NARROW).eval(),
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
        **{"scheduler": pipe.scheduler, **options},
    )
    refiner.set_progress_bar_config(disable=True)
    return refiner


def save_refiner(pipe: Any, folder: Path, seed: int = 4, **parts: Any) -> Path:
    """The same as a folder."""
    make_refiner(pipe, seed, **parts).save_pretrained(folder)
    return folder
