"""Train the base's UNet and text encoder together, in the latents of a trained autoencoder.

    python tools/base/train_diffusion.py --vae .work/base/autoencoder/vae --output .work/base/diffusion
    torchrun --nproc_per_node 2 tools/base/train_diffusion.py ...             # one process a core, or a GPU
    python tools/base/train_diffusion.py --max_train_minutes 8 --pool_size 700000 --train_batch_size 1024 ...   # a GPU

v-prediction with zero terminal signal-to-noise ratio. The loss of a timestep is weighted by
(min(snr, gamma) + 1) / (snr + 1): min-SNR (Hang et al. 2023) as it has to be for v-prediction, shifted by one so that
pure noise, where snr is 0, still counts.

The curriculum: what a name looks like is the slowest thing to learn, so most pictures are easy at first (one object as
it is, in the middle of a plain ground) and most noise levels high, where nothing but the caption tells what to draw.
Both fade over `--curriculum_share` of the run to the shares that stay.

How far a run is follows its steps, or the clock with `--max_train_minutes`, for devices that are had by the minute.
With `--pool_size` the steps draw from a pool of rendered latents on the device (`pool.py`).
"""

import argparse
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from components import make_scheduler, make_text_encoder, make_unet, train_tokenizer
from diffusers import AutoencoderTiny, DDIMScheduler
from diffusers.models.attention_processor import AttnProcessor
from diffusers.training_utils import EMAModel, compute_snr
from optimizers import MuonAdamW
from pool import LatentPool, encode
from recipes import RecipeBatches, RecipeBook, Recipes
from render import Renderer
from run import Progress, join_processes, load_checkpoint, save_checkpoint, step_generator
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from transformers import CLIPTokenizer

HIGH_NOISE = 0.6  # timesteps from here to the end are "high noise"
EASY_POOL = 0.2  # of the pool: easy pictures differ less, so fewer do


def learning_rate_factor(step: int, done: float, warmup: int, decay_share: float) -> float:
    """Warm up over the first steps, hold, then fall linearly to zero over the last share of the run.

    Args:
        done: how much of the run is over, 0 to 1.
    """
    return min((step + 1) / warmup, 1.0, max((1 - done) / decay_share, 0.0))


@dataclass(frozen=True)
class Fade:
    """A share that falls linearly from `first` to `last` while the run's first `share` goes by."""

    first: float
    last: float
    share: float

    def __call__(self, done: float) -> float:
        return self.last + (self.first - self.last) * max(0.0, 1 - done / self.share)


@dataclass(frozen=True)
class FadeOfBatches:
    """A fade by the number of a batch, for runs that are counted in steps; picklable, for the workers."""

    fade: Fade
    steps: int

    def __call__(self, index: int) -> float:
        return self.fade(index / self.steps)


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
        return self.unet(noisy, timesteps, words.repeat(len(noisy) // len(words), 1, 1), return_dict=False)[0]


def training_loss(
    model: torch.nn.Module, scheduler: DDIMScheduler, latents: torch.Tensor, tokens: torch.Tensor,
    generator: torch.Generator, gamma: float, noise_levels: int, high_share: float,
) -> torch.Tensor:  # fmt: skip
    """The weighted v-prediction loss of latents [B, C, h, w] and tokens [B, 40], each at several noise levels."""
    latents = latents.repeat(noise_levels, 1, 1, 1)
    noise = torch.randn(latents.shape, generator=generator, device=latents.device)
    timesteps = draw_timesteps(len(latents), scheduler.config.num_train_timesteps, high_share, generator)
    noisy = scheduler.add_noise(latents, noise, timesteps)
    target = scheduler.get_velocity(latents, noise, timesteps)
    prediction = model(noisy.contiguous(memory_format=torch.channels_last), timesteps, tokens)
    return weighted_loss(prediction, target, compute_snr(scheduler, timesteps), gamma)


# --- where the latents come from --------------------------------------------------------------------------------------

Latents = Callable[[int, float, torch.Generator], tuple[torch.Tensor, torch.Tensor]]


def recipe_loader(batches: RecipeBatches, workers: int) -> Iterator[tuple[Recipes, torch.Tensor]]:
    return iter(DataLoader(batches, batch_size=None, num_workers=workers, prefetch_factor=8 if workers else None))


def rendered(loader: Iterator[tuple[Recipes, torch.Tensor]], renderer: Renderer, vae: AutoencoderTiny) -> Latents:
    """Every step has pictures of its own: no two alike, and a resumed run sees what it would have seen."""

    def next_batch(count: int, done: float, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        recipes, tokens = next(loader)
        return encode(vae, renderer(recipes)), tokens.to(renderer.device)

    return next_batch


def pooled(easy: LatentPool, full: LatentPool, easy_share: Fade, first: int) -> Latents:
    """Every step draws from two pools, of easy pictures and of full variety, and makes them grow."""
    for pool, least in ((easy, int(first * EASY_POOL)), (full, first)):
        while pool.count < least and pool.grow():
            pass
    calls = 0

    def next_batch(count: int, done: float, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal calls
        calls += 1
        full.grow()
        if calls % int(1 / EASY_POOL) == 0:
            easy.grow()
        simple = max(1, int(easy_share(done) * count))
        drawn = [pool.draw(number, generator) for pool, number in ((easy, simple), (full, count - simple))]
        latents, tokens = zip(*drawn, strict=True)
        return torch.cat(latents), torch.cat(tokens)

    return next_batch


def make_latents(
    args: argparse.Namespace, book: RecipeBook, tokenizer: CLIPTokenizer, renderer: Renderer, vae: AutoencoderTiny,
    seed: int, start: int, pictures: int,
) -> Latents:  # fmt: skip
    easy = Fade(*args.easy_share, args.curriculum_share)
    if not args.pool_size:
        shares = FadeOfBatches(easy, args.max_train_steps)
        batches = RecipeBatches(book, tokenizer, pictures, seed, start, shares)
        return rendered(recipe_loader(batches, args.workers), renderer, vae)
    pools = []
    for share, size, salt in ((1.0, int(args.pool_size * EASY_POOL), 1), (0.0, args.pool_size, 2)):
        constant = FadeOfBatches(Fade(share, share, 1.0), 1)
        # what was drawn before a pause is not rendered again: the pool of a resumed run is new pictures
        batches = RecipeBatches(book, tokenizer, min(512, size), seed + 31 * salt, start, constant)
        workers = max(1, args.workers // 4) if args.workers and share else args.workers
        pools.append(LatentPool(renderer, vae, recipe_loader(batches, workers), size))
    return pooled(*pools, easy, args.pool_start)


# --- parts ------------------------------------------------------------------------------------------------------------


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


def check_gradients(model: torch.nn.Module) -> None:
    """Compilers have left gradients out before, and a model learns without them for hours until somebody looks.

    Raises:
        RuntimeError: some parameters have no gradient, or one of zeros or of no numbers.
    """
    wrong = [
        name
        for name, p in model.named_parameters()
        if p.grad is None or not bool(torch.isfinite(p.grad).all()) or not bool(p.grad.any())
    ]
    if wrong:
        raise RuntimeError(f"{len(wrong)} parameters get no gradient: {', '.join(wrong[:4])}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--sprites", type=Path, default=Path(".work/base/sprites.zip"))
    add("--vae", type=Path, default=Path(".work/base/autoencoder/vae"))
    add("--output", type=Path, default=Path(".work/base/diffusion"))
    add("--init_from", type=Path, help="a diffusers folder whose UNet, text encoder and tokenizer to start from")
    add("--max_train_steps", type=int, default=20_000)
    add("--max_train_minutes", type=float, help="follow the clock in place of the steps; needs --pool_size")
    add("--decay_share", type=float, default=0.4, help="the learning rates fall to zero over this last part of the run")
    add("--train_batch_size", type=int, default=64, help="noised latents a step, of all processes together")
    add("--noise_levels", type=int, default=2, help="noise levels a picture is used at: fewer pictures to render")
    add("--pool_size", type=int, default=0, help="draw from a pool of this many rendered pictures; 0 renders each step")
    add("--pool_start", type=int, default=60_000, help="pictures that are in the pool before the first step")
    add("--learning_rate", type=float, default=9e-4, help="of AdamW: embeddings, norms, biases, first and last layer")
    add("--muon_learning_rate", type=float, default=2.5e-3, help="of Muon: all other weights; 0 leaves all to AdamW")
    add("--warmup_steps", type=int, default=200)
    add("--weight_decay", type=float, default=0.01)
    add("--snr_gamma", type=float, default=5.0)
    add("--ema_decay", type=float, default=0.999)
    add("--curriculum_share", type=float, default=0.6, help="the part of the run over which the next two fade")
    add("--easy_share", type=float, nargs=2, default=(0.9, 0.35), help="easy pictures: at first, in the end")
    add("--high_noise_share", type=float, nargs=2, default=(0.6, 0.1), help="moved timesteps: at first, in the end")
    add("--compile", action="store_true", help="torch.compile the UNet; for GPUs (see README.md)")
    add("--stop_after", type=int, help="save and stop after this step; the same command without it goes on")
    add("--checkpointing_minutes", type=float, default=5)
    add("--scene_variants", type=int, default=32, help="painted pictures of each scene")
    add("--workers", type=int, default=0)
    add("--seed", type=int, default=0)
    args = parser.parse_args()
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if args.train_batch_size % (args.noise_levels * processes):
        parser.error("--train_batch_size has to be a multiple of --noise_levels times the number of processes")
    if args.max_train_minutes and (processes > 1 or not args.pool_size):
        parser.error("--max_train_minutes is for one process with --pool_size: clocks of several differ")
    return args


def main() -> None:
    started = time.monotonic()
    args = parse_arguments()
    rank, processes, device = join_processes()
    torch.manual_seed(args.seed)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
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
    start, before = 0, 0.0
    states = {"model": model, "ema": ema, "optimizer": optimizer}
    if (saved := load_checkpoint(args.output, device)) is not None:
        start, before = saved["step"], saved.get("seconds", 0.0)
        for name, part in states.items():
            part.load_state_dict(saved[name])
    ema.to(device)

    def seconds() -> float:
        return before + time.monotonic() - started

    def done(step: int) -> float:
        """The part of the run that is over, 0 to 1."""
        return seconds() / (60 * args.max_train_minutes) if args.max_train_minutes else step / args.max_train_steps

    def save(step: int) -> None:
        parts = {name: part.state_dict() for name, part in states.items()}
        save_checkpoint(args.output, step, seconds=seconds(), **parts)
        export(model, ema, args.output)

    seed, pictures = args.seed + 1009 * rank, args.train_batch_size // args.noise_levels // processes
    latents_of = make_latents(args, book, tokenizer, renderer, vae, seed, start, pictures)
    high = Fade(*args.high_noise_share, args.curriculum_share)
    trained: torch.nn.Module = model
    if args.compile:
        model.unet.compile()
    if processes > 1:
        trained = DistributedDataParallel(model, broadcast_buffers=False)
    length = 60 * args.max_train_minutes if args.max_train_minutes else args.max_train_steps
    progress = Progress(args.output, start, length, "diffusion", seconds if args.max_train_minutes else None)
    step, saved_at = start, time.monotonic()
    while (step == 0 or done(step) < 1) and step != args.stop_after:  # a slow start leaves one step at least
        share = done(step)
        generator = step_generator(seed, step, device)
        latents, tokens = latents_of(pictures, share, generator)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu"):  # many have none: 15x
            loss = training_loss(
                trained, scheduler, latents, tokens, generator, args.snr_gamma, args.noise_levels, high(share)
            )
        loss.backward()
        if step == start:
            check_gradients(model)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(learning_rate_factor(step, share, args.warmup_steps, args.decay_share))
        ema.step(model.parameters())
        if rank == 0:
            progress.update(step, loss=loss)
            if time.monotonic() - saved_at > 60 * args.checkpointing_minutes:
                save(step + 1)
                saved_at = time.monotonic()
        step += 1
    progress.close()
    if rank == 0:
        save(step)
    if processes > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
