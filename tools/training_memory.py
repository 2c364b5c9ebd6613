"""How much memory a training takes, computed from the sizes of all tensors of a step; no weight and no GPU is needed.

    python -m tools.training_memory "Stable Diffusion XL" --resolution 1024 --train_batch_size 1

What is counted: the frozen base in two bytes a weight, the autoencoder once more in float32 while pictures are encoded,
and the activations of the larger of the two: encoding a picture, or a step with gradient checkpointing, where attention
keeps no maps. The framework's own (0.4 to 1 GB on CUDA) and previews come on top.
"""

import argparse
import weakref
from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import patch

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from coeff_diffusion.families.family import Family
from coeff_diffusion.families.stable_diffusion import StableDiffusion
from coeff_diffusion.families.stable_diffusion_xl import StableDiffusionXL

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


def training_bytes(
    title: str, resolution: int, batch: int, checkpointing: bool = True, quantization: str = "no"
) -> dict[str, int]:
    """Bytes of the parts, by name.

    Args:
        title: one of `BASES`.
        quantization: "int8" counts a byte for each weight of a linear layer, and one of them wide at a time.
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

    vae_weights = sum(weight.numel() for weight in vae.parameters())
    weights = sum(weight.numel() for weight in unet.parameters()) + sum(map(sum, encoders)) + vae_weights
    linear = [module.weight.numel() for module in unet.modules() if isinstance(module, torch.nn.Linear)]
    saved = sum(linear) + sum(layers for layers, _ in encoders) if quantization == "int8" else 0
    return {
        "weights": 2 * weights - saved,
        "encoding": 4 * vae_weights + most_bytes(vae, encode),
        "step": most_bytes(unet, step) + (2 * max(linear) if saved else 0),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", choices=list(BASES))
    parser.add_argument("--resolution", type=int, help="what the base was trained at if left out")
    parser.add_argument("--train_batch_size", type=int, default=1)
    parser.add_argument("--no_gradient_checkpointing", action="store_true")
    parser.add_argument("--quantization", choices=("no", "int8"), default="no", help="of the base's linear layers")
    args = parser.parse_args(arguments)
    resolution = args.resolution or BASES[args.base][0].autoencoder["sample_size"]
    found = training_bytes(
        args.base, resolution, args.train_batch_size, not args.no_gradient_checkpointing, args.quantization
    )
    peak = found["weights"] + max(found["encoding"], found["step"])
    parts = ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in found.items())
    print(f"{args.base} at {resolution} pixels, batch {args.train_batch_size}: {peak / 1e9:.1f} GB ({parts})")
    return 0


if __name__ == "__main__":
    main()
