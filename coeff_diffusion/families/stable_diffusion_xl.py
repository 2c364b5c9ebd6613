"""Stable Diffusion XL: a UNet that attends to what two CLIP text encoders say side by side, and is told of sizes."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .family import AUTOENCODER, Conditioning, Config, Family, Framing, encoded
from .stable_diffusion import StableDiffusion

BASE: Config = {
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
}
REFINER: Config = {
    **BASE,
    "cross_attention_dim": 1280,
    "attention_head_dim": (6, 12, 24, 24),
    "block_out_channels": (384, 768, 1536, 1536),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": 4,
    "projection_class_embeddings_input_dim": 2560,
}
NO_MIDDLE: Config = {**BASE, "mid_block_type": "UNetMidBlock2D"}  # the middle has no attention


def _depths(denoiser: Config) -> tuple[Any, ...]:
    """Transformer blocks of each layer on the way down, in the middle and on the way up."""
    depths, layers = denoiser.get("transformer_layers_per_block", 1), denoiser.get("layers_per_block", 2)
    down = [depths] * len(denoiser["down_block_types"]) if isinstance(depths, int) else list(depths)
    up = denoiser.get("reverse_transformer_layers_per_block") or down[::-1]
    middle = denoiser.get("mid_block_type", "UNetMidBlock2DCrossAttn") == "UNetMidBlock2DCrossAttn"
    return (
        *_of_layers(down, denoiser["down_block_types"], layers),
        down[-1] if middle else 0,
        *_of_layers(up, denoiser["up_block_types"], layers + 1),
    )


def _of_layers(depths: Sequence[Any], kinds: Sequence[str], layers: int) -> list[list[int]]:
    """The same of one way, level by level; nothing of levels without attention, whatever their entry says."""
    each = [[depth] * layers if isinstance(depth, int) else list(depth) for depth in depths]
    return [depth if "CrossAttn" in kind else [] for depth, kind in zip(each, kinds, strict=True)]


class StableDiffusionXL(Family):
    """The base, its fine-tunes, and what was distilled from it with fewer steps (Turbo, LCM) or fewer layers.

    The refiner has layers of its own and reads prompts with the second encoder alone: it finishes the pictures of
    another base (`families/refiners.py`), and so is known here, but not loaded as one.
    """

    title = "Stable Diffusion XL"
    pipeline = "StableDiffusionXLPipeline"
    refiner = "StableDiffusionXLImg2ImgPipeline"
    drawing = (*Family.drawing, "prompt_2")
    text_encoders = ("text_encoder", "text_encoder_2")
    unread: ClassVar[Mapping[str, int]] = {"text_encoder": 1}  # the UNet gets what goes into the last layer
    known: ClassVar[Mapping[str, Config]] = {
        "Stable Diffusion XL": BASE,
        "Stable Diffusion XL refiner": REFINER,
        "SSD-1B": {
            **NO_MIDDLE,
            "transformer_layers_per_block": (1, (2, 2), (4, 4)),
            "reverse_transformer_layers_per_block": ((4, 4, 10), (2, 1, 1), 1),
        },
        "Segmind Vega": {
            **NO_MIDDLE,
            "transformer_layers_per_block": (1, (1, 1), (2, 2)),
            "reverse_transformer_layers_per_block": ((2, 2, 2), (1, 1, 1), 1),
        },
    }
    names: ClassVar[Mapping[str, str]] = {
        "Stable Diffusion XL": "stable-diffusion-xl-v1-base",
        "Stable Diffusion XL refiner": "stable-diffusion-xl-v1-refiner",
        "SSD-1B": "ssd-1b",
        "Segmind Vega": "segmind-vega",
    }
    autoencoder: ClassVar[Config] = {
        **StableDiffusion.autoencoder,
        "sample_size": 1024,
        "scaling_factor": 0.13025,
        "force_upcast": True,
    }
    distilled: ClassVar[Mapping[str, Mapping[str, int]]] = {
        "segmind/SSD-1B": {
            **{f"input_blocks.{i}": depth for i, depth in {4: 2, 5: 2, 7: 4, 8: 4}.items()},
            **{f"output_blocks.{i}": depth for i, depth in enumerate((4, 4, 10, 2, 1, 1))},
        },
        "segmind/Segmind-Vega": {
            **{f"input_blocks.{i}": depth for i, depth in {4: 1, 5: 1, 7: 2, 8: 2}.items()},
            **{f"output_blocks.{i}": depth for i, depth in enumerate((2, 2, 2, 1, 1, 1))},
        },
    }
    # What B-LoRA (Frenkel et al. 2024, arXiv 2403.14572) found in these two: what is shown, and how it looks.
    presets: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "content": ("up_blocks.0.attentions.0.*",),
        "style": ("up_blocks.0.attentions.1.*",),
        "light": ("up_blocks.0.attentions.[01].*.attn2", "up_blocks.1.*"),
    }
    usual_preset = "light"  # 9,200 coefficients in a file of 36 KB; those of all 140 layers are 50,000, in 144 KB
    checkpoint: ClassVar[Mapping[str, str]] = {
        "the UNet": "model.diffusion_model.",
        AUTOENCODER: "first_stage_model.",
        "the first text encoder": "conditioner.embedders.0.",
        "the second text encoder": "conditioner.embedders.1.",
    }

    def recognizes(self, denoiser: Config) -> bool:
        return denoiser.get("addition_embed_type") == "text_time" and denoiser.get("encoder_hid_dim") is None

    def architecture(self, denoiser: Config) -> str | None:
        def built(config: Config) -> tuple[Any, ...]:
            return config["cross_attention_dim"], tuple(config["block_out_channels"]), *_depths(config)

        titles = (title for title, config in self.known.items() if built(config) == built(denoiser))
        return self.names.get(next(titles, ""))

    def condition(self, pipe: Any, prompts: Sequence[str], size: tuple[int, int]) -> Conditioning:
        embeddings, _, pooled, _ = encoded(pipe, prompts)
        assert embeddings is not None
        assert pooled is not None
        sizes = self.framing([Framing(size, (0, 0), size)] * len(prompts))["time_ids"].to(pooled)  # a whole picture
        return {"prompt_embeds": embeddings, "text_embeds": pooled, "time_ids": sizes}

    def framing(self, framings: Sequence[Framing]) -> Conditioning:
        """Original size, where the crop begins, target size, height before width (SDXL, section 2.2): `[B, 6]`."""
        rows = [[*one.original[::-1], *one.crop[::-1], *one.target[::-1]] for one in framings]
        return {"time_ids": torch.tensor(rows, dtype=torch.float32)}

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
