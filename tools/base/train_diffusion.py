"""Train the base's UNet and text encoder together, in the latents of a trained autoencoder.

    python tools/base/train_diffusion.py --vae .work/base/autoencoder/vae --output .work/base/diffusion

v-prediction with zero terminal signal-to-noise ratio. The loss of a timestep is weighted by
(min(snr, gamma) + 1) / (snr + 1): min-SNR (Hang et al. 2023) as it has to be for v-prediction, shifted by one so that
pure noise, where snr is 0, still counts.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from components import make_scheduler, make_text_encoder, make_unet, train_tokenizer
from diffusers import AutoencoderTiny, DDIMScheduler
from diffusers.models.attention_processor import AttnProcessor
from diffusers.training_utils import EMAModel, compute_snr
from recipes import RecipeBatches, RecipeBook
from render import Renderer
from run import Progress, load_checkpoint, pick_device, save_checkpoint, step_generator
from torch.utils.data import DataLoader


def learning_rate_factor(step: int, total: int, warmup: int, decay: int) -> float:
    """Warm up, hold, then fall linearly to zero over the last `decay` steps."""
    return min((step + 1) / warmup, 1.0, max((total - step) / decay, 0.0))


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
    generator: torch.Generator, gamma: float, noise_levels: int,
) -> torch.Tensor:  # fmt: skip
    """The weighted v-prediction loss of pictures [B, 3, 128, 128] and tokens [B, 40], each at several noise levels."""
    with torch.no_grad():
        latents = vae.encode(picture).latents.float() * vae.config.scaling_factor
    latents = latents.repeat(noise_levels, 1, 1, 1)
    noise = torch.randn(latents.shape, generator=generator, device=latents.device)
    timesteps = torch.randint(
        scheduler.config.num_train_timesteps, (len(latents),), generator=generator, device=latents.device
    )
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sprites", type=Path, default=Path(".work/base/sprites.zip"))
    parser.add_argument("--vae", type=Path, default=Path(".work/base/autoencoder/vae"))
    parser.add_argument("--output", type=Path, default=Path(".work/base/diffusion"))
    parser.add_argument(
        "--init_from", type=Path, help="a folder with unet/ and text_encoder/ to start from, e.g. the shipped base"
    )
    parser.add_argument("--max_train_steps", type=int, default=40_000)
    parser.add_argument(
        "--decay_steps", type=int, default=14_000, help="the learning rate falls to zero over these last steps"
    )
    parser.add_argument("--train_batch_size", type=int, default=32, help="noised latents a step")
    parser.add_argument(
        "--noise_levels", type=int, default=2, help="noise levels a picture is used at: fewer pictures to render"
    )
    parser.add_argument("--learning_rate", type=float, default=9e-4)
    parser.add_argument("--warmup_steps", type=int, default=300)
    parser.add_argument("--weight_decay", type=float, default=0.01)
    parser.add_argument("--snr_gamma", type=float, default=5.0)
    parser.add_argument("--ema_decay", type=float, default=0.999)
    parser.add_argument(
        "--stop_after", type=int, help="save and stop after this step; the same command without it goes on"
    )
    parser.add_argument("--checkpointing_minutes", type=float, default=5)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile the UNet: minutes to start, a fifth faster"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    device = pick_device()
    torch.manual_seed(args.seed)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    renderer = Renderer(args.sprites, device)
    book = RecipeBook(renderer.catalogue)
    captions = [
        caption
        for number in range(20)
        for caption in book.draw(np.random.default_rng([args.seed, 1 << 40, number]), 2000)[1]
    ]
    tokenizer = train_tokenizer(captions, args.output / "tokenizer")
    scheduler = make_scheduler()
    scheduler.save_pretrained(args.output / "scheduler")
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.to(device)
    vae = AutoencoderTiny.from_pretrained(args.vae).to(device, memory_format=torch.channels_last).requires_grad_(False)

    model = Model(tokenizer)
    if args.init_from is not None:
        for name in ("unet", "text_encoder"):
            part = getattr(model, name)
            part.load_state_dict(type(part).from_pretrained(args.init_from / name).state_dict())
    model.to(device, memory_format=torch.channels_last)
    if device.type == "cpu":
        model.unet.set_attn_processor(
            AttnProcessor()
        )  # the backward of the CPU's flash attention is several times slower
    ema = EMAModel(model.parameters(), decay=args.ema_decay, foreach=True)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.learning_rate, betas=(0.9, 0.99), weight_decay=args.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, args.max_train_steps, args.warmup_steps, args.decay_steps)
    )
    start, last = 0, args.stop_after or args.max_train_steps
    if (saved := load_checkpoint(args.output, device)) is not None:
        start = saved["step"]
        model.load_state_dict(saved["model"])
        ema.load_state_dict(saved["ema"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
    ema.to(device)

    def save(step: int) -> None:
        states = {"model": model, "ema": ema, "optimizer": optimizer, "schedule": schedule}
        save_checkpoint(args.output, step, **{name: part.state_dict() for name, part in states.items()})
        export(model, ema, args.output)

    batches = RecipeBatches(book, tokenizer, args.train_batch_size // args.noise_levels, args.seed, start)
    loader = DataLoader(batches, batch_size=None, num_workers=args.workers, prefetch_factor=8 if args.workers else None)
    if args.compile:
        model.unet.compile()
    progress, saved_at = Progress(args.output, start, args.max_train_steps, "diffusion"), time.monotonic()
    for step, (recipes, tokens) in zip(range(start, last), loader, strict=False):
        generator = step_generator(args.seed, step, device)
        picture = renderer(recipes).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):
            loss = training_loss(
                model, vae, scheduler, picture, tokens.to(device), generator, args.snr_gamma, args.noise_levels
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        ema.step(model.parameters())
        progress.update(step, loss=loss)
        if time.monotonic() - saved_at > 60 * args.checkpointing_minutes:
            save(step + 1)
            saved_at = time.monotonic()
    progress.close()
    save(last)


if __name__ == "__main__":
    main()
