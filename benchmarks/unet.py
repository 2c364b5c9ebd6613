"""A whole UNet: a sampling step and a training step with recombination, against the base and against LoRA.

    python benchmarks/unet.py                                  # SD 1.5, about 10 minutes on two cores, 12 GB
    python benchmarks/unet.py --topology embedded sd21 sdxl --repeats 5

Weights are random: time does not depend on them. Ratios are taken turn by turn against the first column.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from timing import Timing, in_turns, machine, peak_memory
from torch import Tensor

from coeff_diffusion import attach, layer_heads
from coeff_diffusion.base import embedded_path
from coeff_diffusion.families.shared_weights import shared_copy
from coeff_diffusion.families.stable_diffusion import StableDiffusion
from coeff_diffusion.families.stable_diffusion_xl import StableDiffusionXL
from coeff_diffusion.method import override as attention_module
from coeff_diffusion.method import recombination
from coeff_diffusion.method.attachment import activate
from coeff_diffusion.method.kernels import recombined_attention

TOPOLOGIES: dict[str, dict[str, Any]] = {
    "embedded": {},
    "sd15": {**StableDiffusion.known["Stable Diffusion 1.x"]},
    "sd21": {**StableDiffusion.known["Stable Diffusion 2.x"]},
    "sdxl": {**StableDiffusionXL.known["Stable Diffusion XL"]},
}
SIDE = 64  # of the latents, for all of them: 512 pixels
LORA = ["to_q", "to_k", "to_v", "to_out.0"]


def make_unet(topology: str, dtype: torch.dtype, device: str) -> UNet2DConditionModel:
    """A UNet with random weights of a sensible size, frozen."""
    if topology == "embedded":
        unet = UNet2DConditionModel.from_pretrained(embedded_path() / "unet")
    else:
        with torch.device("meta"):
            unet = UNet2DConditionModel(**{**TOPOLOGIES[topology], "sample_size": SIDE})
        unet.to_empty(device="cpu")
        for name, weight in unet.named_parameters():
            if weight.ndim > 1:
                weight.data.uniform_(-1, 1).mul_(weight[0].numel() ** -0.5)
            else:
                weight.data.fill_(float(name.endswith("weight")))
    return unet.to(device, dtype).requires_grad_(False).eval()


def make_inputs(unet: UNet2DConditionModel, batch: int, side: int | None = None) -> dict[str, Any]:
    """What a step gets: latents, of the size the base is made for or another, and 77 tokens of text (embedded: 40)."""
    side, channels = side or unet.config.sample_size, unet.config.in_channels
    length = 40 if unet.config.cross_attention_dim < 512 else 77
    options: dict[str, Any] = {"dtype": unet.dtype, "device": unet.device}
    inputs: dict[str, Any] = {
        "sample": torch.randn(batch, channels, side, side, **options),
        "timestep": torch.tensor(500, device=unet.device),
        "encoder_hidden_states": torch.randn(batch, length, unet.config.cross_attention_dim, **options),
    }
    if unet.config.addition_embed_type == "text_time":
        inputs["added_cond_kwargs"] = {
            "text_embeds": torch.randn(batch, 1280, **options),
            "time_ids": torch.zeros(batch, 6, **options),
        }
    return inputs


class Way:
    """One way to compute the steps: a structure of its own over the weights that all ways share."""

    def __init__(self, unet: UNet2DConditionModel, inputs: dict[str, Any], kernel: Any = None) -> None:
        self.unet: Any = shared_copy(unet)
        self.inputs = inputs
        self.kernel = kernel or recombined_attention

    def predict(self) -> Tensor:
        attention_module.recombined_attention = self.kernel
        prediction: Tensor = self.unet(**self.inputs, return_dict=False)[0]
        return prediction

    def sample(self) -> None:
        with torch.no_grad():
            self.predict()

    def train(self) -> None:
        self.predict().float().square().mean().backward()


def coefficients(unet: UNet2DConditionModel, subjects: int = 1, seed: int = 0) -> dict[str, Tensor]:
    """For all layers, of one subject or of another one for each sample."""
    generator = torch.Generator().manual_seed(seed)
    shape = [subjects] if subjects > 1 else []
    return {
        path: 0.1 * torch.randn(*shape, heads, heads, generator=generator) for path, heads in layer_heads(unet).items()
    }


def sampling(unet: UNet2DConditionModel, inputs: dict[str, Any], subjects: int = 1, kernel: Any = None) -> Way:
    """All layers recombined."""
    way = Way(unet, inputs, kernel)
    attach(way.unet, trainable=False)
    activate(way.unet, coefficients(way.unet, subjects))
    return way


def swap(topology: str, unet: UNet2DConditionModel, inputs: dict[str, Any], repeats: int = 20) -> None:
    """Print how long it takes to let another subject act."""
    way = sampling(unet, inputs)
    subjects = [coefficients(way.unet, seed=seed) for seed in (1, 2)]
    seconds = []
    for turn in range(repeats):
        started = time.perf_counter()
        activate(way.unet, subjects[turn % 2])
        seconds.append(time.perf_counter() - started)
    print(f"| {topology}, another subject | recombined | {statistics.median(seconds):.4f} s | | |", flush=True)


def training(unet: UNet2DConditionModel, inputs: dict[str, Any], kernel: Any = None) -> Way:
    """The coefficients of all layers learn."""
    way = Way(unet, inputs, kernel)
    attach(way.unet)
    return way


def lora(unet: UNet2DConditionModel, inputs: dict[str, Any]) -> Way:
    """A LoRA of rank 4 on the attention layers, as PEFT puts it there."""
    way = Way(unet, inputs)
    way.unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=LORA, init_lora_weights="gaussian"))
    return way


def report(title: str, found: dict[str, Timing], memory: dict[str, float]) -> None:
    for name, timing in found.items():
        print(
            f"| {title} | {name} | {timing.median:.3f} s | {timing.ratio:.3f}x | {memory[name]:.0f} MiB |", flush=True
        )


def compare(title: str, ways: dict[str, Callable[[], None]], repeats: int) -> None:
    memory = {}
    for name, way in ways.items():
        way()  # warm
        with peak_memory() as used:
            way()
        memory[name] = used[0]
    report(title, in_turns(ways, repeats, warm_up=0), memory)


def measure(topology: str, args: argparse.Namespace) -> None:
    """Print the rows of one topology."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    unet = make_unet(topology, getattr(torch, args.dtype), device)
    naive = recombination.recombined_attention
    for batch in args.batch:
        inputs = make_inputs(unet, batch)
        columns = {"base": Way(unet, inputs).sample, "recombined": sampling(unet, inputs).sample}
        if args.naive:
            columns["naive"] = sampling(unet, inputs, kernel=naive).sample
        columns["LoRA rank 4"] = lora(unet, inputs).sample
        compare(f"{topology}, sampling, batch {batch}", columns, args.repeats)
    swap(topology, unet, make_inputs(unet, args.batch[0]))
    inputs = make_inputs(unet, args.train_batch)
    columns = {"LoRA rank 4": lora(unet, inputs).train, "recombined": training(unet, inputs).train}
    if args.naive:
        columns["naive"] = training(unet, inputs, naive).train
    compare(f"{topology}, training, batch {args.train_batch}", columns, args.repeats)
    if args.subjects > 1:
        inputs = make_inputs(unet, args.subjects)
        columns = {f"{n} of {args.subjects}": sampling(unet, inputs, n).sample for n in (1, args.subjects)}
        compare(f"{topology}, sampling, subjects", columns, args.repeats)
    inputs = make_inputs(unet, args.batch[0])
    fused = lora(unet, inputs)
    fused.unet.fuse_lora()  # changes the weights that all share, so it comes last
    columns = {"base": Way(unet, inputs).sample, "LoRA rank 4, fused": fused.sample}
    compare(f"{topology}, sampling, batch {args.batch[0]}", columns, args.repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", nargs="+", choices=list(TOPOLOGIES), default=["sd15"])
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--batch", type=int, nargs="+", default=[2], help="rows of a sampling step, guidance included")
    parser.add_argument("--train_batch", type=int, default=1)
    parser.add_argument("--subjects", type=int, default=0, help="also a batch with another subject for each sample")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--naive", action="store_true", help="also materialize all maps: slow, and takes gigabytes")
    args = parser.parse_args()
    torch.manual_seed(0)
    print(f"{machine()}, {args.dtype}; medians of {args.repeats}, ratios turn by turn\n")
    print("| step | way | time | ratio | memory beyond the weights |\n| --- | --- | --- | --- | --- |")
    for topology in args.topology:
        measure(topology, args)


if __name__ == "__main__":
    main()
