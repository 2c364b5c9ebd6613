"""Put the trained parts together as the `StableDiffusionPipeline` that ships in the package.

    python tools/base/export.py --diffusion .work/base/diffusion --vae .work/base/autoencoder/vae

float16 weights, stock classes, no code of ours in the folder.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

LIMIT = 55_000_000  # bytes: what a clone and a wheel can bear


def assemble(diffusion: Path, vae: Path) -> StableDiffusionPipeline:
    """The pipeline of the averaged weights of `diffusion` and the autoencoder `vae`."""
    return StableDiffusionPipeline(
        vae=AutoencoderTiny.from_pretrained(vae),
        text_encoder=CLIPTextModel.from_pretrained(diffusion / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(diffusion / "tokenizer"),
        unet=UNet2DConditionModel.from_pretrained(diffusion / "unet"),
        scheduler=DDIMScheduler.from_pretrained(diffusion / "scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def tidy(folder: Path) -> None:
    """Mend what `save_pretrained` leaves in the configs.

    transformers loads the dtype that the config names, diffusers float32: the pipeline would be of two minds.
    `AutoencoderTiny` warns at every load about a key that it wrote itself. Where the weights lay is nobody's business.
    """
    for path in folder.glob("*/config.json"):
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)
        if path.parent.name == "text_encoder":
            config["dtype"] = "float32"
        if path.parent.name == "vae":
            config.pop("block_out_channels", None)
        path.write_text(json.dumps(config, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--diffusion", type=Path, default=Path(".work/base/diffusion"))
    parser.add_argument("--vae", type=Path, default=Path(".work/base/autoencoder/vae"))
    parser.add_argument("--output", type=Path, default=Path("coeff_diffusion/base/model"))
    args = parser.parse_args()
    partial = args.output.with_name(args.output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    assemble(args.diffusion, args.vae).to(torch.float16).save_pretrained(partial)
    tidy(partial)
    for path in partial.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    size = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())
    if size > LIMIT:
        raise SystemExit(f"{partial} is {size / 1e6:.1f} MB; the base may be at most {LIMIT / 1e6:.0f} MB.")
    if (args.output / "README.md").exists():
        shutil.copy(args.output / "README.md", partial)
    shutil.rmtree(args.output, ignore_errors=True)
    partial.rename(args.output)
    print(f"{size / 1e6:.1f} MB: {args.output}")


if __name__ == "__main__":
    main()
