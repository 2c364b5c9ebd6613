"""Stable Diffusion XL: a UNet that attends to what two CLIP text encoders say side by side, and is told of sizes."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .family import Conditioning, Config, Family, encoded


class StableDiffusionXL(Family):
    """The base and its fine-tunes. (The refiner reads prompts with the second encoder alone.)"""

    title = "Stable Diffusion XL"
    pipeline = "StableDiffusionXLPipeline"
    text_encoders = ("text_encoder", "text_encoder_2")
    known: ClassVar[Mapping[str, Config]] = {
        "Stable Diffusion XL": {
            "cross_attention_dim": 2048,
            "attention_head_dim": (5, 10, 20),
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
    }
    checkpoint: ClassVar[Mapping[str, str]] = {
        "the UNet": "model.diffusion_model.",
        "the autoencoder": "first_stage_model.",
        "the first text encoder": "conditioner.embedders.0.",
        "the second text encoder": "conditioner.embedders.1.",
    }

    def recognizes(self, denoiser: Config) -> bool:
        return denoiser.get("addition_embed_type") == "text_time" and denoiser.get("encoder_hid_dim") is None

    def architecture(self, denoiser: Config) -> str | None:
        base = denoiser["cross_attention_dim"] == 2048 and denoiser["block_out_channels"][0] == 320
        return "stable-diffusion-xl-v1-base" if base else None

    def condition(self, pipe: Any, prompts: Sequence[str], size: tuple[int, int]) -> Conditioning:
        embeddings, _, pooled, _ = encoded(pipe, prompts)
        assert embeddings is not None
        assert pooled is not None
        width, height = size
        # Original size, where the crop begins, target size (SDXL, section 2.2): a whole picture of the size it has.
        sizes = torch.tensor([height, width, 0, 0, height, width], dtype=pooled.dtype, device=pooled.device)
        return {"prompt_embeds": embeddings, "text_embeds": pooled, "time_ids": sizes.repeat(len(prompts), 1)}

    def predict(self, denoiser: nn.Module, noised: Tensor, timesteps: Tensor, condition: Conditioning) -> Tensor:
        added = {name: condition[name].to(noised.dtype) for name in ("text_embeds", "time_ids")}
        prediction: Tensor = denoiser(
            noised,
            timesteps,
            encoder_hidden_states=condition["prompt_embeds"].to(noised.dtype),
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
        return prediction

    def mismatches(self, configs: Mapping[str, Config]) -> list[str]:
        wrong, width = super().mismatches(configs), configs["unet"]["cross_attention_dim"]
        given = [int(configs[name]["hidden_size"]) for name in self.text_encoders if name in configs]
        if len(given) == len(self.text_encoders) and sum(given) != width:
            wrong.append(f"attends to text of width {width}, but its text encoders give {sum(given)} together")
        return wrong
