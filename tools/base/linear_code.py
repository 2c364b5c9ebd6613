"""The base's encoder: principal components of 8 x 8 patches, written into the convolutions of an `EncoderTiny`.

For pictures as smooth as these an encoder does not have to be learned by gradient descent: 16 principal components of
8 x 8 patches keep 31 dB PSNR on characters they were not fitted to, they are found in seconds, and the diffusion model
can start on its latents while the decoder, which owns the texture, is still training (and can be trained further at any
time).
"""

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from recipes import RecipeBook
from render import Renderer

PATCH = 8
LARGEST = 1.25  # standard deviation of the strongest components: the decoder's tanh(x / 3) * 3 must not flatten them


def patches(pictures: torch.Tensor) -> torch.Tensor:
    """All 8 x 8 patches [P, 192] of pictures [B, 3, h, w]; the order within a patch is (colour, y, x)."""
    return F.pixel_unshuffle(pictures, PATCH).permute(0, 2, 3, 1).reshape(-1, 3 * PATCH**2)


def fit(renderer: Renderer, channels: int, seed: int, batches: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """The code z = weight @ (patch - mean): weight [channels, 192] and mean [192] from composites of the training
    concepts.

    Components are scaled to a standard deviation of sqrt(their own), about 1 on average: equal variances would let fine
    texture weigh as much as colour and shape in the diffusion loss, natural ones would let the diffusion model ignore
    it.
    """
    book = RecipeBook(renderer.catalogue)
    found = torch.cat(
        [patches(renderer(book.draw(np.random.default_rng([seed, 1 << 41, i]), 64)[0])) for i in range(batches)]
    ).double()
    mean = found.mean(0)
    centred = found - mean
    variances, directions = torch.linalg.eigh(centred.T @ centred / len(centred))
    variances, directions = variances.flip(0)[:channels], directions.flip(1)[:, :channels]
    deviation = variances.sqrt()
    target = deviation.sqrt()
    target = (target / target.square().mean().sqrt()).clamp_max(LARGEST)
    return ((target / deviation)[:, None] * directions.T).float(), mean.float()


@torch.no_grad()
def write_encoder(vae: AutoencoderTiny, weight: torch.Tensor, mean: torch.Tensor) -> None:
    """Make `vae.encode` compute the code exactly.

    Each of the three strided convolutions gathers 2 x 2 neighbours (the taps 1 and 2 of its 3 x 3 kernel), so a
    pixel's place in its patch is y = y1 + 2 * y2 + 4 * y3. The encoder sees pictures in 0..1: x = 2 * input - 1.
    """
    first, half, quarter, eighth, last = vae.encoder.layers
    channels = len(weight)
    for layer in vae.encoder.layers:
        layer.weight.zero_()
    first.bias.zero_()
    for colour in range(3):
        first.weight[colour, colour, 1, 1] = 1
    for y1, x1 in np.ndindex(2, 2):
        for source in range(3):
            half.weight[source * 4 + y1 * 2 + x1, source, 1 + y1, 1 + x1] = 1
    for y2, x2 in np.ndindex(2, 2):
        for source in range(12):
            quarter.weight[source * 4 + y2 * 2 + x2, source, 1 + y2, 1 + x2] = 1
    # weight [channels, colour, y3, y2, y1, x3, x2, x1] -> [channels, (colour, y1, x1, y2, x2), y3, x3]
    code = weight.reshape(channels, 3, 2, 2, 2, 2, 2, 2).permute(0, 1, 4, 7, 3, 6, 2, 5).reshape(channels, 48, 2, 2)
    eighth.weight[:channels, :, 1:, 1:] = 2 * code
    for channel in range(channels):
        last.weight[channel, channel, 1, 1] = 1
    last.bias.copy_(-weight @ (1 + mean))
