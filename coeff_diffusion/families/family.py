"""What a kind of base has to tell: each file beside this one answers it for one kind, and nothing else does.

Shapes: P prompts; B pictures of a batch; T text positions, D their width; C, h, w channels and size of the latents.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..method.sites import Site, find_sites
from .text_layers import text_heads, text_sites

Conditioning = Mapping[str, Tensor]
"""What a denoiser is told beside noise and time, one row for each prompt, by the family's own names."""
Config = Mapping[str, Any]
"""A component's `config.json`."""
AUTOENCODER = "the autoencoder"
"""The part of a single file that another file may bring."""
PIPELINE_MULTIPLE = 8  # pixels: what diffusers' pipelines insist on for the sides of a picture


@dataclass(frozen=True)
class Framing:
    """What a training picture is a part of, which some bases are told. All in pixels, width before height.

    Attributes:
        original: size of the picture as it was found.
        crop: where the part begins, left and top, in the picture as it was scaled.
        target: size of the part.
    """

    original: tuple[int, int]
    crop: tuple[int, int]
    target: tuple[int, int]


class Family(ABC):
    """One kind of base. Instances hold nothing: they are looked up in `registry`.

    Attributes:
        title: what people call it.
        pipeline: the class of diffusers that draws from text with it.
        denoiser: the component that holds the attention layers, "unet" or "transformer".
        denoiser_classes: what it may be; the first is that of the text-to-image pipeline.
        text_encoders: the components that read prompts, each with the tokenizer of its number.
        unread: how many layers at the end of a text encoder change nothing that the denoiser is told.
        known: the configs of its published denoisers, as far as they differ from their class's defaults, by the name
            that people have for them.
        checkpoint: what a single file in its makers' layout holds: what it is called, and how its tensors are.
        autoencoder: the config of its published autoencoder, for files that hold weights alone.
        distilled: published checkpoints with fewer layers: the number of transformer blocks behind each convolution of
            the original layout ("input_blocks.4"), by the Hub id that their configs come from.
        presets: patterns on attention paths, by the name of a choice of layers that people know of this family.
        usual_preset: the one that is trained where nothing is chosen; empty for all layers.
        refiner: the pipeline of diffusers whose network, another one, takes the last noise out of what this kind draws;
            empty where there is none.
        drawing: which of a request's settings a drawing call of the pipeline takes.
    """

    title: ClassVar[str]
    pipeline: ClassVar[str]
    denoiser: ClassVar[str] = "unet"
    denoiser_classes: ClassVar[tuple[str, ...]] = ("UNet2DConditionModel",)
    text_encoders: ClassVar[tuple[str, ...]] = ("text_encoder",)
    unread: ClassVar[Mapping[str, int]] = {}
    known: ClassVar[Mapping[str, Config]] = {}
    checkpoint: ClassVar[Mapping[str, str]] = {}
    autoencoder: ClassVar[Config] = {}
    distilled: ClassVar[Mapping[str, Mapping[str, int]]] = {}
    presets: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    usual_preset: ClassVar[str] = ""
    refiner: ClassVar[str] = ""
    drawing: ClassVar[tuple[str, ...]] = ("negative_prompt", "guidance_scale", "guidance_rescale")

    @abstractmethod
    def recognizes(self, denoiser: Config) -> bool:
        """Whether a denoiser of this config, of any size, is of this family."""

    @abstractmethod
    def architecture(self, denoiser: Config) -> str | None:
        """ModelSpec's name of a published denoiser; None for any other size."""

    @abstractmethod
    def condition(self, pipe: Any, prompts: Sequence[str], size: tuple[int, int]) -> Conditioning:
        """What the pipeline's own `encode_prompt` makes of prompts, trained tokens included; differentiable in these.

        Args:
            size: width and height in pixels of the pictures they are for.

        Returns:
            `[P, ...]` by name, in the dtype of the text encoders.
        """

    def framing(self, framings: Sequence[Framing]) -> Conditioning:
        """What of `condition` depends on how training pictures were cut out, one row for each; takes its place there.

        Returns:
            `[B, ...]` by name, float32 on the CPU; nothing for bases that are told nothing of it.
        """
        return {}

    @abstractmethod
    def predict(self, denoiser: nn.Module, noised: Tensor, timesteps: Tensor, condition: Conditioning) -> Tensor:
        """What the denoiser says about noised latents, `[B, C, h, w]`.

        Args:
            noised: `[B, C, h, w]`; timesteps: `[B]`; condition: `[B, ...]` by name.
        """

    def mismatches(self, configs: Mapping[str, Config]) -> list[str]:
        """Why components do not draw together from text, as far as their configs are known; one phrase each."""
        denoiser = configs[self.denoiser]
        channels = configs.get("vae", {}).get("latent_channels", denoiser["in_channels"])
        if denoiser["in_channels"] == channels:
            return []
        return [
            f"takes {denoiser['in_channels']} channels where its autoencoder makes {channels}: an inpainting, depth or "
            "upscaling model"
        ]

    def sites(self, denoiser: nn.Module) -> dict[str, Site]:
        """The attention layers that coefficients may belong to, by path, in the network's own order."""
        return find_sites(denoiser)

    def text_sites(self, name: str, encoder: Any) -> dict[str, Site]:
        """The same of a text encoder, by the component's name; see `text_layers`."""
        return text_sites(name, encoder, self.unread.get(name, 0))

    def text_heads(self, name: str, config: Config) -> dict[str, int]:
        """The heads of these layers by the text encoder's config alone."""
        return text_heads(name, config, self.unread.get(name, 0))

    def size(self, pipe: Any) -> tuple[int, int]:
        """Width and height in pixels that the base was trained at."""
        side = getattr(pipe, self.denoiser).config.sample_size
        height, width = (side, side) if isinstance(side, int) else side
        return width * pipe.vae_scale_factor, height * pipe.vae_scale_factor

    def multiple(self, pipe: Any) -> int:
        """What width and height of a drawing have to be a multiple of, in pixels."""
        return math.lcm(PIPELINE_MULTIPLE, pipe.vae_scale_factor)

    def training_multiple(self, pipe: Any) -> int:
        """The same for training pictures, which every level of the denoiser has to halve exactly."""
        levels = len(getattr(pipe, self.denoiser).config.get("block_out_channels", (0,)))
        return math.lcm(pipe.vae_scale_factor * 2 ** (levels - 1), self.multiple(pipe))


def encoded(pipe: Any, prompts: Sequence[str]) -> tuple[Tensor | None, ...]:
    """What `encode_prompt` of a pipeline gives for prompts alone, without guidance."""
    device: torch.device = pipe.text_encoder.device
    found: tuple[Tensor | None, ...] = pipe.encode_prompt(
        prompt=list(prompts), device=device, num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    return found
