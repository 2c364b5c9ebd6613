"""Train the base's UNet and text encoder together, in the latents of a trained autoencoder.

    python tools/base/train_diffusion.py --vae .work/base/autoencoder/vae --output .work/base/diffusion
    torchrun --nproc_per_node 2 tools/base/train_diffusion.py ...             # one process a core, or a GPU

v-prediction with zero terminal signal-to-noise ratio. The loss of a timestep is weighted by
(min(snr, gamma) + 1) / (snr + 1): min-SNR (Hang et al. 2023) as it has to be for v-prediction, shifted by one so that
pure noise, where snr is 0, still counts.

The curriculum: what a name looks like is the slowest thing to learn, so most pictures are easy at first (one object as
it is, in the middle of a plain ground) and most noise levels high, where nothing but the caption tells what to draw.
Both fade over `--curriculum_steps` to the shares that stay.
"""

import argparse
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from components import make_scheduler, make_text_encoder, make_unet, train_tokenizer
from diffusers import AutoencoderTiny, DDIMScheduler
from diffusers.models.attention_processor import AttnProcessor
from diffusers.training_utils import EMAModel, compute_snr
from optimizers import MuonAdamW
from recipes import RecipeBatches, RecipeBook
from render import Renderer
from run import Progress, join_processes, load_checkpoint, save_checkpoint, step_generator
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from transformers import CLIPTokenizer

HIGH_NOISE = 0.6  # timesteps from here to the end are "high noise"


def learning_rate_factor(step: int, total: int, warmup: int, decay: int) -> float:
    """Warm up, hold, then fall linearly to zero over the last `decay` steps."""
    return min((step + 1) / warmup, 1.0, max((total - step) / decay, 0.0))


@dataclass(frozen=True)
class Fade:
    """A share that falls linearly from `first` to `last` over `steps`; picklable, for the workers."""

    first: float
    last: float
    steps: int

    def __call__(self, step: int) -> float:
        return self.last + (self.first - self.last) * max(0.0, 1 - step / self.steps)


def draw_timesteps(count: int, total: int, high_share: float, generator: torch.Generator) -> torch.Tensor:
    """Timesteps [count] out of `total`, even but for a share of them that is moved to the high noise levels."""
    even, chosen = torch.rand(2, count, generator=generator, device=generator.device)
    moved = torch.where(chosen < high_share, HIGH_NOISE + (1 - HIGH_NOISE) * even, even)
    return (moved * total).long().clamp_max(total - 1)


def weighted_loss(prediction: torch.Tensor, target: torch.Tensor, snr: torch.Tensor, gamma: float) -> torch.Tensor:
    """Mean over the batch of the squared error [B, C, h, w], weighted by timestep."""
    error = (prediction.float() - target).square().mean((1, 2, 3))
    return (error * (snr.clamp(max=gamma) + 1) / (snr + 1)).mean()


class Model(torch.nn.Module):
    """Text encoder and UNet as one module: what is trained, averaged and saved."""

    def __init__(self, tokenizer) -> None:
        super().__init__()
        self.text_encoder = make_text_encoder(tokenizer)
        self.unet = make_unet()

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Predict for noisy latents [K * B, C, h, w] of B captions [B, 40]: each caption is encoded once."""
        words = self.text_encoder(tokens)[0]
        return self.unet(noisy, timesteps, words.repeat(len(noisy) // len(words), 1, 1)).sample


def training_loss(
    model: torch.nn.Module, vae: AutoencoderTiny, scheduler: DDIMScheduler, picture: torch.Tensor, tokens: torch.Tensor,
    generator: torch.Generator, gamma: float, noise_levels: int, high_share: float,
) -> torch.Tensor:  # fmt: skip
    """The weighted v-prediction loss of pictures [B, 3, 128, 128] and tokens [B, 40], each at several noise levels."""
    with torch.no_grad():
        latents = vae.encode(picture).latents.float() * vae.config.scaling_factor
    latents = latents.repeat(noise_levels, 1, 1, 1)
    noise = torch.randn(latents.shape, generator=generator, device=latents.device)
    timesteps = draw_timesteps(len(latents), scheduler.config.num_train_timesteps, high_share, generator)
    noisy = scheduler.add_noise(latents, noise, timesteps)
    target = scheduler.get_velocity(latents, noise, timesteps)
    prediction = model(noisy.contiguous(memory_format=torch.channels_last), timesteps, tokens)
    return weighted_loss(prediction, target, compute_snr(scheduler, timesteps), gamma)


def export(model: Model, ema: EMAModel, folder: Path) -> None:
    """Save the averaged weights as `unet/` and `text_encoder/`."""
    ema.store(model.parameters())
    ema.copy_to(model.parameters())
    for name in ("unet", "text_encoder"):
        getattr(model, name).save_pretrained(folder / name)
    ema.restore(model.parameters())


def write_tokenizer(args: argparse.Namespace, book: RecipeBook) -> None:
    """`tokenizer/` in the output folder: that of the weights to start from, or one trained on captions."""
    folder = args.output / "tokenizer"
    if args.init_from is not None:
        shutil.copytree(args.init_from / "tokenizer", folder, dirs_exist_ok=True)
        return
    captions = [
        caption
        for number in range(20)
        for caption in book.draw(np.random.default_rng([args.seed, 1 << 40, number]), 2000)[1]
    ]
    train_tokenizer(captions, folder)


def make_model(args: argparse.Namespace, tokenizer: CLIPTokenizer, device: torch.device) -> Model:
    model = Model(tokenizer)
    if args.init_from is not None:
        for name in ("unet", "text_encoder"):
            part = getattr(model, name)
            part.load_state_dict(type(part).from_pretrained(args.init_from / name, dtype=torch.float32).state_dict())
    if device.type == "cpu":  # the backward of the CPU's flash attention is several times slower
        model.unet.set_attn_processor(AttnProcessor())
    return model.to(device, memory_format=torch.channels_last)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--sprites", type=Path, default=Path(".work/base/sprites.zip"))
    add("--vae", type=Path, default=Path(".work/base/autoencoder/vae"))
    add("--output", type=Path, default=Path(".work/base/diffusion"))
    add("--init_from", type=Path, help="a diffusers folder whose UNet, text encoder and tokenizer to start from")
    add("--max_train_steps", type=int, default=20_000)
    add("--decay_steps", type=int, default=8_000, help="the learning rates fall to zero over these last steps")
    add("--train_batch_size", type=int, default=64, help="noised latents a step, of all processes together")
    add("--noise_levels", type=int, default=2, help="noise levels a picture is used at: fewer pictures to render")
    add("--learning_rate", type=float, default=9e-4, help="of AdamW: embeddings, norms, biases, first and last layer")
    add("--muon_learning_rate", type=float, default=2.5e-3, help="of Muon: all other weights; 0 leaves all to AdamW")
    add("--warmup_steps", type=int, default=200)
    add("--weight_decay", type=float, default=0.01)
    add("--snr_gamma", type=float, default=5.0)
    add("--ema_decay", type=float, default=0.999)
    add("--curriculum_steps", type=int, default=12_000)
    add("--easy_share", type=float, nargs=2, default=(0.9, 0.35), help="easy pictures: at first, in the end")
    add("--high_noise_share", type=float, nargs=2, default=(0.6, 0.1), help="moved timesteps: at first, in the end")
    add("--stop_after", type=int, help="save and stop after this step; the same command without it goes on")
    add("--checkpointing_minutes", type=float, default=5)
    add("--scene_variants", type=int, default=32, help="painted pictures of each scene")
    add("--workers", type=int, default=0)
    add("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.train_batch_size % (args.noise_levels * int(os.environ.get("WORLD_SIZE", "1"))):
        parser.error("--train_batch_size has to be a multiple of --noise_levels times the number of processes")
    return args


def main() -> None:
    args = parse_arguments()
    rank, processes, device = join_processes()
    torch.manual_seed(args.seed)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    renderer = Renderer(args.sprites, device, scene_variants=args.scene_variants)
    book = RecipeBook(renderer.catalogue)
    scheduler = make_scheduler()
    if rank == 0:
        write_tokenizer(args, book)
        scheduler.save_pretrained(args.output / "scheduler")
    if processes > 1:
        torch.distributed.barrier()
    tokenizer = CLIPTokenizer.from_pretrained(args.output / "tokenizer")
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.to(device)
    vae = AutoencoderTiny.from_pretrained(args.vae).to(device, memory_format=torch.channels_last).requires_grad_(False)
    model = make_model(args, tokenizer, device)
    optimizer = MuonAdamW(model, args.learning_rate, args.muon_learning_rate, args.weight_decay)
    ema = EMAModel(model.parameters(), decay=args.ema_decay, foreach=True)
    start, last = 0, args.stop_after or args.max_train_steps
    states = {"model": model, "ema": ema, "optimizer": optimizer}
    if (saved := load_checkpoint(args.output, device)) is not None:
        start = saved["step"]
        for name, part in states.items():
            part.load_state_dict(saved[name])
    ema.to(device)

    def save(step: int) -> None:
        save_checkpoint(args.output, step, **{name: part.state_dict() for name, part in states.items()})
        export(model, ema, args.output)

    easy, high = (Fade(*share, args.curriculum_steps) for share in (args.easy_share, args.high_noise_share))
    seed, pictures = args.seed + 1009 * rank, args.train_batch_size // args.noise_levels // processes
    batches = RecipeBatches(book, tokenizer, pictures, seed, start, easy)
    loader = DataLoader(batches, batch_size=None, num_workers=args.workers, prefetch_factor=8 if args.workers else None)
    trained = DistributedDataParallel(model, broadcast_buffers=False) if processes > 1 else model
    progress = Progress(args.output, start, args.max_train_steps, "diffusion") if rank == 0 else None
    saved_at = time.monotonic()
    for step, (recipes, tokens) in zip(range(start, last), loader, strict=False):
        generator = step_generator(seed, step, device)
        picture = renderer(recipes).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):
            loss = training_loss(
                trained, vae, scheduler, picture, tokens.to(device), generator, args.snr_gamma, args.noise_levels,
                high(step),
            )  # fmt: skip
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(learning_rate_factor(step, args.max_train_steps, args.warmup_steps, args.decay_steps))
        ema.step(model.parameters())
        if progress is not None:
            progress.update(step, loss=loss)
            if time.monotonic() - saved_at > 60 * args.checkpointing_minutes:
                save(step + 1)
                saved_at = time.monotonic()
    if progress is not None:
        progress.close()
        save(last)
    if processes > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
