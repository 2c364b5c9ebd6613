"""Make the base's autoencoder: fit the linear encoder, then train the decoder on composites.

    python tools/base/train_autoencoder.py --output .work/base/autoencoder
    python tools/base/train_autoencoder.py --init_from coeff_diffusion/base/model/vae ...   # a GPU

`vae/` in the output folder is complete as soon as the encoder is fitted, so that the diffusion model can start; it is
renewed at every checkpoint. Losses of the decoder: L1 and squared error on pixels, L1 on their differences to the
neighbours (edges). A little noise on the latents makes the decoder forgive what the diffusion model leaves behind.
"""

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from components import LATENT_CHANNELS, make_autoencoder
from diffusers import AutoencoderTiny
from diffusers.optimization import get_scheduler
from linear_code import fit, write_encoder
from recipes import RecipeBatches, RecipeBook
from render import Renderer
from run import Progress, load_checkpoint, pick_device, save_checkpoint, step_generator
from torch.utils.data import DataLoader

LATENT_NOISE = 0.06
CROP = 64  # pixels: a convolutional autoencoder learns as much from a quarter of a picture, at a quarter of the cost


def crops(picture: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One random 64 x 64 crop of each picture [B, 3, 128, 128], on the grid of the latents."""
    corners = (
        torch.randint(
            (picture.shape[-1] - CROP) // 8 + 1, (len(picture), 2), generator=generator, device=picture.device
        )
        * 8
    )
    return torch.stack([p[:, y : y + CROP, x : x + CROP] for p, (y, x) in zip(picture, corners.tolist(), strict=True)])


def edges(picture: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return picture.diff(dim=2), picture.diff(dim=3)


def losses(vae: AutoencoderTiny, picture: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """The parts of the decoder's loss on a batch [B, 3, h, w]."""
    with torch.no_grad():
        latents = vae.encode(picture).latents.float()
    noise = torch.randn(latents.shape, generator=generator, device=latents.device)
    decoded = vae.decode(latents + LATENT_NOISE * noise).sample.float()
    return {
        "pixels": F.l1_loss(decoded, picture),
        "squared": F.mse_loss(decoded, picture),
        "edges": sum(
            (F.l1_loss(a, b) for a, b in zip(edges(decoded), edges(picture), strict=True)), start=latents.new_zeros(())
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sprites", type=Path, default=Path(".work/base/sprites.zip"))
    parser.add_argument("--output", type=Path, default=Path(".work/base/autoencoder"))
    parser.add_argument("--init_from", type=Path, help="an AutoencoderTiny to go on from; its encoder stays")
    parser.add_argument("--max_train_steps", type=int, default=6_000)
    parser.add_argument("--train_batch_size", type=int, default=16)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument(
        "--fit_batches", type=int, default=32, help="batches of 64 composites that the encoder is fitted to"
    )
    parser.add_argument("--scene_variants", type=int, default=32, help="painted pictures of each scene")
    parser.add_argument(
        "--stop_after", type=int, help="save and stop after this step; the same command without it goes on"
    )
    parser.add_argument("--checkpointing_minutes", type=float, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    device = pick_device()
    torch.manual_seed(args.seed)
    renderer = Renderer(args.sprites, device, scene_variants=args.scene_variants)
    if args.init_from is not None:
        vae = AutoencoderTiny.from_pretrained(args.init_from)
    else:
        vae = make_autoencoder()
        write_encoder(vae, *(part.cpu() for part in fit(renderer, LATENT_CHANNELS, args.seed, args.fit_batches)))
    vae.encoder.requires_grad_(False)
    vae.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(
        vae.decoder.parameters(), lr=args.learning_rate, betas=(0.9, 0.99), weight_decay=0, fused=True
    )
    schedule = get_scheduler(
        "cosine", optimizer, num_warmup_steps=args.max_train_steps // 20, num_training_steps=args.max_train_steps
    )
    start, last = 0, args.stop_after or args.max_train_steps
    if (saved := load_checkpoint(args.output, device)) is not None:
        start = saved["step"]
        vae.load_state_dict(saved["vae"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])

    def save(step: int) -> None:
        save_checkpoint(
            args.output, step, vae=vae.state_dict(), optimizer=optimizer.state_dict(), schedule=schedule.state_dict()
        )
        vae.save_pretrained(args.output / "vae")

    if start == 0:
        save(0)
    batches = RecipeBatches(RecipeBook(renderer.catalogue), None, args.train_batch_size, args.seed, start)
    loader = DataLoader(batches, batch_size=None, num_workers=args.workers, prefetch_factor=8 if args.workers else None)
    progress, saved_at = Progress(args.output, start, args.max_train_steps, "autoencoder"), time.monotonic()
    for step, (recipes, _) in zip(range(start, last), loader, strict=False):
        generator = step_generator(args.seed, step, device)
        picture = crops(renderer(recipes), generator).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu"):  # many have none: 15x
            parts = losses(vae, picture, generator)
        loss = parts["pixels"] + parts["squared"] + 0.5 * parts["edges"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.decoder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        progress.update(step, **parts)
        if time.monotonic() - saved_at > 60 * args.checkpointing_minutes:
            save(step + 1)
            saved_at = time.monotonic()
    progress.close()
    save(last)


if __name__ == "__main__":
    main()
