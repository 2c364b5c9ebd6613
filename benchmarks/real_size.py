"""The whole journey on a base of full size: train, draw, make a card, draw it again; time and memory of each command.

    python benchmarks/real_size.py                                  # SD 1.5 at 256 pixels: 10 minutes on two cores
    python benchmarks/real_size.py --family sd21 --size 512 --steps 20 --dtype bfloat16
    python benchmarks/real_size.py --family sdxl --steps 2 --drawing_steps 2   # 20 minutes; 15 GB of disk and memory

Weights are random, as time and memory do not depend on them; tokenizer, widths, layers and files are those of the
published checkpoint (`tools/real_size_models.py`). Each command is a process of its own, as for users: its time
includes starting Python and reading the base. SD 1.5 and 2.1 take 4 to 5 GB of disk, and 6 GB of memory at 256 pixels
in float32.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image, ImageDraw
from timing import machine

ROOT = Path(__file__).resolve().parents[1]
PRECISIONS = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}
# Runs a module's `main` and prints, last, the most memory it had and the most of it on a GPU, in MiB.
CHILD = """
import importlib, resource, sys, torch
code = importlib.import_module(sys.argv[1]).main(sys.argv[2:])
gpu = torch.cuda.max_memory_allocated() >> 20 if torch.cuda.is_available() else 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10, gpu)
sys.exit(code)
"""


def stage(title: str, module: str, *arguments: object) -> list[str]:
    """Run a command, print its row of the table and return the lines it said."""
    started = time.perf_counter()
    command = [sys.executable, "-c", CHILD, module, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"{title} failed: {done.stderr.strip()}")
    *said, memory = done.stdout.strip().splitlines()
    main_memory, gpu = (f"{int(size):,} MiB" for size in memory.split())
    print(f"| {title} | {seconds:.1f} s | {main_memory} | {gpu} |", flush=True)
    return said


def take_photos(folder: Path, count: int, side: int) -> None:
    """Pictures of something to teach."""
    folder.mkdir()
    for number in range(count):
        image = Image.new("RGB", (side + 32 * number, side), (40 * number % 256, 120, 200))
        corner = side // 8 + 8 * number
        ImageDraw.Draw(image).ellipse((corner, corner, corner + side // 2, corner + side // 2), fill=(255, 90, 20))
        image.save(folder / f"{number}.png")


def only(folder: Path) -> Path:
    """The one file in a folder."""
    (file,) = folder.iterdir()
    return file


def journey(args: argparse.Namespace, folder: Path) -> None:
    """Print the rows of all commands."""
    base, run, photos = folder / args.family, folder / "run", folder / "photos"
    take_photos(photos, args.pictures, args.size)
    cli, precision = "coeff_diffusion.cli", PRECISIONS[args.dtype]
    narrow = [] if args.narrow else ["--full"]
    stage("make the base", "tools.real_size_models", args.family, base, *narrow)
    stage(
        f"train {args.steps} steps of {args.batch}, a preview", cli, "train",
        "--pretrained_model_name_or_path", base, "--instance_data_dir", photos, "--class_word", "dog",
        "--output_dir", run, "--resolution", args.size, "--max_train_steps", args.steps, "--cached_views", args.views,
        "--train_batch_size", args.batch, "--validation_steps", args.steps, "--num_validation_images", 1,
        "--checkpointing_steps", args.steps, "--mixed_precision", precision,
    )  # fmt: skip
    drawing = ["--base", base, "--dtype", args.dtype]
    asked = ["--prompt", "a photo of a sks dog on the beach", "--seed", 1, "--num_inference_steps", args.drawing_steps]
    size = ["--width", args.size, "--height", args.size]
    title = f"draw, {args.drawing_steps} steps"
    stage(title, cli, "generate", *drawing, *asked, *size, "--subject", run, "--output_dir", folder / "drawn")
    stage("make a card", cli, "card", run, only(folder / "drawn"), "-o", folder / "card.png")
    title = f"draw the card again, {args.drawing_steps} steps"
    again = ["--from", folder / "card.png", "--base", base, "--output_dir", folder / "again"]
    stage(title, cli, "generate", *again)
    stage("verify", cli, "verify", run, "--base", base)
    if args.family == "sd15" and not args.narrow:
        stage("QR code", cli, "qr", run, "-o", folder / "qr.png")
    pictures = [Image.open(only(folder / name)).tobytes() for name in ("drawn", "again")]
    sizes = ", ".join(
        f"{path.name} {path.stat().st_size:,} bytes" for path in (*run.glob("*.safetensors"), folder / "card.png")
    )
    print(f"\nThe card's picture came again {'bit by bit' if pictures[0] == pictures[1] else 'DIFFERENTLY'}; {sizes}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=["sd15", "sd21", "sdxl"], default="sd15")
    parser.add_argument("--steps", type=int, default=3, help="of training")
    parser.add_argument("--batch", type=int, default=1, help="pictures of a training step")
    parser.add_argument("--pictures", type=int, default=2, help="that the subject is taught from")
    parser.add_argument("--views", type=int, default=2, help="of each of them that are encoded")
    parser.add_argument("--drawing_steps", type=int, default=4)
    parser.add_argument("--size", type=int, default=256, help="pixels of a picture's side, a multiple of 64")
    parser.add_argument("--dtype", choices=list(PRECISIONS), default="float32")
    parser.add_argument("--narrow", action="store_true", help="few channels and layers, to try this script")
    parser.add_argument("--folder", type=Path, help="where the files go; by default they are deleted in the end")
    args = parser.parse_args()
    print(f"{args.family}{', narrow' if args.narrow else ''}, {args.size} pixels, {args.dtype}; {machine()}\n")
    print("| command | time | most memory | of the GPU's |\n| --- | --- | --- | --- |")
    if args.folder is not None:
        args.folder.mkdir(parents=True)
        journey(args, args.folder.resolve())
        return
    with tempfile.TemporaryDirectory() as folder:
        journey(args, Path(folder))


if __name__ == "__main__":
    main()
