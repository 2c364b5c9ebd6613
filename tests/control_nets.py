"""A ControlNet that visibly does something, without training."""

from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel


def make_net(unet: Any, folder: Path, seed: int = 5) -> Path:
    """A ControlNet of the layout of this UNet that acts: a new one begins with convolutions of zeros."""
    generator = torch.Generator().manual_seed(seed)
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32))
    with torch.no_grad():
        for weight in net.parameters():
            if not weight.any():
                weight.copy_(0.2 * torch.randn(weight.shape, generator=generator))
    net.save_pretrained(folder)
    return folder
