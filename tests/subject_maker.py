"""A subject that visibly does something, without training: random coefficients and a random token."""

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextModel

from coeff_diffusion import Coefficients, CoefficientsInfo
from coeff_diffusion.attachment import layer_heads


def make_subject(
    unet: UNet2DConditionModel, text_encoder: CLIPTextModel, name: str, trigger: str, class_word: str, seed: int = 1
) -> Coefficients:
    generator = torch.Generator().manual_seed(seed)
    coeffs = {path: torch.randn(heads, heads, generator=generator) for path, heads in layer_heads(unet).items()}
    token = torch.randn(1, text_encoder.config.hidden_size, generator=generator)
    info = CoefficientsInfo(name=name, trigger=trigger, class_word=class_word)
    return Coefficients(coeffs, tokens={"text_encoder": token}, info=info)
