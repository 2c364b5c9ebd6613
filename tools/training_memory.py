"""How much memory a training takes, computed from the sizes of all tensors of a step; no weight and no GPU is needed.

    python -m tools.training_memory "Stable Diffusion XL" --resolution 1024 --train_batch_size 1

What is counted: the frozen base in two bytes a weight, the autoencoder once more in float32 while pictures are encoded,
and the activations of what takes most: encoding a picture, a step, where attention keeps no maps, or previews
(`--num_validation_images`). The framework's own (0.4 to 1 GB on CUDA) comes on top. With `--offload` only networks that
are at work are counted, and all of them once, when they are loaded.
"""

import argparse
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from coeff_diffusion.families.family import Family
from coeff_diffusion.families.stable_diffusion import StableDiffusion
from coeff_diffusion.families.stable_diffusion_xl import StableDiffusionXL
from coeff_diffusion.training.config import TrainConfig

# Weights of text encoders: those of linear layers, and the others, which are mostly words.
CLIP_L, OPEN_CLIP_H, OPEN_CLIP_BIG_G = (84_934_656, 38_125_824), (289_406_976, 50_980_864), (630_784_000, 63_875_840)
BASES: dict[str, tuple[Family, list[tuple[int, int]]]] = {  # family and weights of the text encoders
    "Stable Diffusion 1.x": (StableDiffusion(), [CLIP_L]),
    "Stable Diffusion 2.x": (StableDiffusion(), [OPEN_CLIP_H]),
    **{
        title: (StableDiffusionXL(), [CLIP_L, OPEN_CLIP_BIG_G])
        for title in StableDiffusionXL.known
        if "refiner" not in title
    },
}


class Watch(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive, and the most there were at once."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known = {weight.untyped_storage()._cdata for weight in model.parameters()}  # counted already

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, tuple | list) else (output,):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor.untyped_storage())
        return output

    def add(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self.drop, key, size)

    def drop(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


class Attention(torch.autograd.Function):
    """Attention that keeps what its gradient needs and no maps, as kernels do."""

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any) -> Any:
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        query, key, value, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def most_bytes(model: torch.nn.Module, run: Callable[[], object]) -> int:
    """The most bytes that are alive at once beside the model's weights."""
    with Watch(model) as watch, patch.object(functional, "scaled_dot_product_attention", _attention):
        run()
    return watch.most


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> Any:
    return Attention.apply(query, key, value)


@dataclass(frozen=True)
class TrainingBytes:
    """What a training takes.

    Attributes:
        denoiser, text_encoders, autoencoder: the weights of each.
        encoding, step, preview: what comes on top of them while that is done.
    """

    denoiser: int
    text_encoders: int
    autoencoder: int
    encoding: int
    step: int
    preview: int

    @property
    def weights(self) -> int:
        """All of the base."""
        return self.denoiser + self.text_encoders + self.autoencoder

    def peaks(self, offload: bool = False, learns_in_text: bool = True) -> dict[str, int]:
        """The most at once, by what is done.

        Args:
            offload: only what is at work is counted, as with the setting of that name.
            learns_in_text: a step runs the text encoders, too.
        """
        stepping = self.denoiser + (self.text_encoders if learns_in_text else 0)
        return {
            "loading": self.weights,
            "encoding": (self.autoencoder if offload else self.weights) + self.encoding,
            "a step": (stepping if offload else self.weights) + self.step,
            "a preview": self.weights + self.preview,
        }


def training_bytes(
    title: str, resolution: int, batch: int, checkpointing: bool = True, quantization: str = "no", previews: int = 0
) -> TrainingBytes:
    """Bytes of the parts.

    Args:
        title: one of `BASES`.
        quantization: "int8" counts a byte for each weight of a linear layer, and one of them wide at a time.
        previews: pictures that are drawn at once.
    """
    (family, encoders), side = BASES[title], resolution // 8
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(dict(family.known[title])).to(torch.bfloat16).requires_grad_(False)
        vae = AutoencoderKL.from_config(dict(family.autoencoder)).requires_grad_(False)
        picture = torch.empty(1, 3, resolution, resolution)
        noised = torch.empty(batch, 4, side, side, dtype=torch.bfloat16)
        text = torch.empty(batch, 77, unet.config.cross_attention_dim, dtype=torch.bfloat16, requires_grad=True)
        given = {"text_embeds": torch.empty(batch, 1280), "time_ids": torch.empty(batch, 6)}
        steps = torch.empty(batch)
        latents = torch.empty(previews, 4, side, side, dtype=torch.bfloat16)
    told = unet.config.addition_embed_type == "text_time"
    added = {name: tensor.to(torch.bfloat16) for name, tensor in given.items()} if told else None
    if checkpointing:
        unet.enable_gradient_checkpointing()

    def encode() -> None:
        with torch.no_grad():
            vae.encode(picture)

    def step() -> None:
        # Coefficients of the first layer already want a gradient: all behind it is kept.
        start = noised + text.sum() * 0
        unet(start, steps, encoder_hidden_states=text, added_cond_kwargs=added).sample.sum().backward()

    def decode() -> None:
        with torch.no_grad():
            vae.decode(latents)  # a preview takes most where its pictures are decoded, all at once

    vae_weights = sum(weight.numel() for weight in vae.parameters())
    linear = [module.weight.numel() for module in unet.modules() if isinstance(module, torch.nn.Linear)]
    narrow = quantization == "int8"
    reading = sum(layers * (1 if narrow else 2) + 2 * others for layers, others in encoders)
    encoding = 4 * vae_weights + most_bytes(vae, encode)
    return TrainingBytes(
        denoiser=2 * sum(weight.numel() for weight in unet.parameters()) - (sum(linear) if narrow else 0),
        text_encoders=reading,
        autoencoder=2 * vae_weights,
        encoding=encoding,
        step=most_bytes(unet, step) + (2 * max(linear) if narrow else 0),
        preview=most_bytes(vae.to(torch.bfloat16), decode) if previews else 0,
    )


def peaks_of(config: TrainConfig, title: str = "Stable Diffusion XL") -> dict[str, int]:
    """The most bytes at once, by what is done, of a training with these settings.

    Args:
        title: the base, one of `BASES`.
    """
    previews = config.num_validation_images if config.validation_steps else int(config.measure_base != "never")
    found = training_bytes(
        title,
        side_of(config, title),
        config.train_batch_size,
        config.gradient_checkpointing,
        config.quantization,
        previews,  # or what is drawn to see what the base knows, one picture at a time
    )
    peaks = found.peaks(config.offload, config.trains_token or "text" in config.layers)
    return peaks if previews else {name: size for name, size in peaks.items() if name != "a preview"}


def side_of(config: TrainConfig, title: str) -> int:
    """The side of the pictures in pixels: as asked, or what the base was trained at."""
    return config.resolution or int(BASES[title][0].autoencoder["sample_size"])


def parsed(arguments: Sequence[str] | None = None) -> tuple[str, TrainConfig]:
    """The base that a command line asks about, and the settings that it states."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", choices=list(BASES))
    parser.add_argument("--resolution", type=int, help="what the base was trained at if left out")
    parser.add_argument("--train_batch_size", type=int, default=1)
    parser.add_argument("--no_gradient_checkpointing", action="store_true")
    parser.add_argument("--quantization", choices=("no", "int8"), default="no", help="of the base's linear layers")
    parser.add_argument("--offload", action="store_true", help="only what is at work is on the GPU")
    parser.add_argument("--text_is_constant", action="store_true", help="no step runs the text encoders")
    parser.add_argument("--num_validation_images", type=int, default=0, help="of a preview; 0: none are drawn")
    args = parser.parse_args(arguments)
    return args.base, TrainConfig(
        resolution=args.resolution,
        train_batch_size=args.train_batch_size,
        gradient_checkpointing=not args.no_gradient_checkpointing,
        quantization=args.quantization,
        offload=args.offload,
        train="coefficients" if args.text_is_constant else "coefficients+token",
        validation_steps=int(args.num_validation_images > 0),
        num_validation_images=args.num_validation_images,
        measure_base="never",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    base, config = parsed(arguments)
    peaks = peaks_of(config, base)
    parts = ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in peaks.items())
    what = f"{base} at {side_of(config, base)} pixels, batch {config.train_batch_size}"
    print(f"{what}: {max(peaks.values()) / 1e9:.1f} GB ({parts})")
    return 0


if __name__ == "__main__":
    main()
