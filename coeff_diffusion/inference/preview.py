"""What a picture looks like while it forms, for a fraction of the time that a step takes.

A tiny autoencoder (`AutoencoderTiny`) decodes in full. Of any other the latents are nearly a small, washed-out picture
already: a linear map from their channels to red, green and blue shows it. The map is fitted, once, to a few synthetic
pictures that the autoencoder itself encodes.

Legend: P pictures, C channels of the latents, h x w their size, H x W that of the pictures.
"""

import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny
from PIL import Image
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from ..families.shared_weights import shared_copy

Decoder = Callable[[Tensor], Tensor]
"""Latents as the pipeline has them `[P, C, h, w]` -> colours `[P, 3, h or H, w or W]`, about -1 to 1."""
FIT_CELLS = 16  # latents per side of a picture that the map is fitted to
FIT_PICTURES = 4  # of each kind: smooth ones, and ones of patches


class Preview:
    """Decodes latents cheaply for one pipeline. Safe to call from any thread, best from the one that draws."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()
        self._made_for: object = None  # the autoencoder that the decoder belongs to
        self._decoder: Decoder | None = None  # None: it has none

    def __call__(self, latents: Tensor) -> list[Image.Image]:
        """One picture of full size for each of the latents `[P, C, h, w]`.

        A drawing must not end because of its preview: where none can be made there is one warning that says why, and
        the list is empty from then on.
        """
        scale = self._pipe.vae_scale_factor
        height, width = latents.shape[-2] * scale, latents.shape[-1] * scale
        try:
            with self._lock, torch.no_grad():
                if self._made_for is not self._pipe.vae:
                    self._made_for, self._decoder = self._pipe.vae, None
                    self._decoder = make_decoder(self._pipe, latents.device)
                if self._decoder is None:
                    return []
                colours = self._decoder(latents)
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            self._decoder = None
            name = type(self._pipe.vae).__name__
            warnings.warn(f"there are no previews of what this base draws: {name} refused ({error})", stacklevel=2)
            return []
        levels = (colours.float().nan_to_num(0) * 127.5 + 127.5).round().clamp(0, 255)
        pixels = levels.byte().permute(0, 2, 3, 1).cpu().numpy()  # [P, h or H, w or W, 3]
        return [_enlarged(picture, width, height) for picture in pixels]


def make_decoder(pipe: Any, device: torch.device) -> Decoder:
    """The cheapest way to see the latents of a pipeline.

    Args:
        device: where the pipeline computes.
    """
    vae = pipe.vae
    if isinstance(vae, AutoencoderTiny):
        return lambda latents: vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor).sample
    weight, bias = fit_colours(pipe, device)
    return lambda latents: torch.einsum("pchw,cr->prhw", latents.float().cpu(), weight) + bias[:, None, None]


def fit_colours(pipe: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """The linear map from latents to colours that fits best what the pipeline's autoencoder encodes.

    Returns:
        `[C, 3]` and `[3]`, float32 on the CPU: `colour = latent @ weight + bias`.
    """
    pictures = synthetic_pictures(FIT_CELLS * pipe.vae_scale_factor)
    # Some autoencoders overflow in float16, and say so.
    upcast = pipe.vae.dtype == torch.float16 and pipe.vae.config.get("force_upcast", False)
    vae = shared_copy(pipe.vae, dtype=torch.float32) if upcast else pipe.vae
    encoded = vae.encode(pictures.to(device, vae.dtype)).latent_dist.mode() * vae.config.scaling_factor
    latents = encoded.float().cpu()
    colours = adaptive_avg_pool2d(pictures, latents.shape[-2:])  # what each latent stands for, on average
    known = latents.movedim(1, -1).flatten(0, 2)  # [N, C]
    known = torch.cat([known, torch.ones(len(known), 1)], dim=1)
    fitted = torch.linalg.lstsq(known, colours.movedim(1, -1).flatten(0, 2)).solution  # [C + 1, 3]
    if not fitted.isfinite().all():
        raise ValueError(f"what it encodes in {pipe.vae.dtype} is not finite")
    return fitted[:-1], fitted[-1]


def synthetic_pictures(side: int) -> Tensor:
    """Smooth gradients and patches of random colours, always the same: `[2 * FIT_PICTURES, 3, side, side]`, -1 to 1."""
    few = torch.rand(2 * FIT_PICTURES, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    smooth = interpolate(few[:FIT_PICTURES], size=(side, side), mode="bilinear")
    return torch.cat([smooth, interpolate(few[FIT_PICTURES:], size=(side, side), mode="nearest")])


def _enlarged(pixels: np.ndarray, width: int, height: int) -> Image.Image:
    image = Image.fromarray(pixels)
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BICUBIC)
