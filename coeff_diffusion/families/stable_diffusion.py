"""Stable Diffusion 1.x and 2.x: a UNet that attends to what one CLIP text encoder makes of the prompt."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from ..method.sites import Site
from .family import AUTOENCODER, Conditioning, Config, Family, encoded


class StableDiffusion(Family):
    """Both generations: they differ in the width of the text, in the number of heads and in what is predicted."""

    title = "Stable Diffusion 1.x or 2.x"
    pipeline = "StableDiffusionPipeline"
    denoiser_classes = ("UNet2DConditionModel", "UNetMotionModel")  # AnimateDiff's has layers between frames besides
    known: ClassVar[Mapping[str, Config]] = {  # the class's defaults are those of 1.x
        "Stable Diffusion 1.x": {"cross_attention_dim": 768, "attention_head_dim": 8},
        "Stable Diffusion 2.x": {
            "cross_attention_dim": 1024,
            "attention_head_dim": (5, 10, 20, 20),
            "use_linear_projection": True,
        },
    }
    autoencoder: ClassVar[Config] = {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "sample_size": 512,
    }
    checkpoint: ClassVar[Mapping[str, str]] = {
        "the UNet": "model.diffusion_model.",
        AUTOENCODER: "first_stage_model.",
        "the text encoder": "cond_stage_model.",
    }

    def recognizes(self, denoiser: Config) -> bool:
        return denoiser.get("addition_embed_type") is None and denoiser.get("encoder_hid_dim") is None

    def architecture(self, denoiser: Config) -> str | None:
        names = {768: "stable-diffusion-v1", 1024: "stable-diffusion-v2"}
        return names.get(denoiser["cross_attention_dim"]) if denoiser["block_out_channels"][0] == 320 else None

    def sites(self, denoiser: nn.Module) -> dict[str, Site]:
        return {path: site for path, site in super().sites(denoiser).items() if "motion_modules." not in path}

    def condition(self, pipe: Any, prompts: Sequence[str], size: tuple[int, int]) -> Conditioning:
        embeddings, _ = encoded(pipe, prompts)
        assert embeddings is not None
        return {"prompt_embeds": embeddings}  # [P, T, D]

    def predict(self, denoiser: nn.Module, noised: Tensor, timesteps: Tensor, condition: Conditioning) -> Tensor:
        prediction: Tensor = denoiser(
            noised, timesteps, encoder_hidden_states=condition["prompt_embeds"].to(noised.dtype), return_dict=False
        )[0]
        return prediction

    def mismatches(self, configs: Mapping[str, Config]) -> list[str]:
        width, text = configs["unet"]["cross_attention_dim"], configs.get("text_encoder", {}).get("hidden_size")
        wrong = super().mismatches(configs)
        if text not in (None, width):
            wrong.append(
                f"attends to text of width {width}, but its text encoder gives {text}: the parts are of different "
                "families"
            )
        return wrong
