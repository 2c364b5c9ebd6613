"""A pool of rendered latents where the model lives, so that a fast device does not wait for pictures.

A GPU trains faster than recipes can be drawn and rendered. Its steps draw at random from a pool that grows by one
batch of new pictures a step until it is full; pictures come again then, with other noise at other levels.
"""

from collections.abc import Iterator

import torch
from diffusers import AutoencoderTiny
from recipes import Recipes
from render import Renderer


class LatentPool:
    """Latents [N, C, h, w] in bf16 and token ids [N, L] of pictures that were rendered before.

    Args:
        batches: endless (recipes, tokens), as `RecipeBatches` yields them.
        size: pictures to hold at most.
    """

    def __init__(
        self, renderer: Renderer, vae: AutoencoderTiny, batches: Iterator[tuple[Recipes, torch.Tensor]], size: int
    ) -> None:
        self.renderer, self.vae, self.batches, self.size = renderer, vae, batches, size
        self.latents: torch.Tensor | None = None
        self.tokens: torch.Tensor | None = None
        self.count = 0

    @torch.no_grad()
    def grow(self) -> bool:
        """Render one more batch into the pool; False where it is full."""
        if self.count >= self.size:
            return False
        recipes, tokens = next(self.batches)
        latents = encode(self.vae, self.renderer(recipes))
        if self.latents is None or self.tokens is None:
            device = latents.device
            self.latents = torch.empty(self.size, *latents.shape[1:], dtype=torch.bfloat16, device=device)
            self.tokens = torch.empty(self.size, tokens.shape[1], dtype=torch.long, device=device)
        room = slice(self.count, min(self.count + len(latents), self.size))
        self.latents[room] = latents[: room.stop - room.start].bfloat16()
        self.tokens[room] = tokens[: room.stop - room.start].to(self.tokens.device)
        self.count = room.stop
        return True

    def draw(self, count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents [count, C, h, w] in float32 and their tokens [count, L], at random with repetition."""
        assert self.latents is not None
        assert self.tokens is not None
        chosen = torch.randint(self.count, (count,), generator=generator, device=self.latents.device)
        return self.latents[chosen].float(), self.tokens[chosen]


@torch.no_grad()
def encode(vae: AutoencoderTiny, picture: torch.Tensor) -> torch.Tensor:
    """Pictures [B, 3, 128, 128] in -1..1 as scaled latents [B, 16, 16, 16] in float32."""
    latents = vae.encode(picture.contiguous(memory_format=torch.channels_last)).latents
    return latents.float() * vae.config.scaling_factor
