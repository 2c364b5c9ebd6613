"""How much memory trainings by the shipped presets take on this GPU, beside what was computed, and how long a step is.

    python benchmarks/preset_memory.py                                    # XL with random weights; needs 14 GB of disk
    python benchmarks/preset_memory.py --base my-xl/ --presets sdxl-8gb

Neither hangs on what the weights are. Each training is a process of its own, a few steps long, with a preview where the
preset draws some. "allocated" is the most that tensors took, "reserved" what PyTorch asked the GPU for.
"""

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from real_size import take_photos
from timing import machine

from coeff_diffusion.training.config import TrainConfig

ROOT = Path(__file__).resolve().parents[1]
PRESETS = ("sdxl-24gb", "sdxl-16gb", "sdxl", "sdxl-8gb")
STEPS = 4
# Trains by the flags it is given and prints, last, the most that was allocated and reserved, and seconds of a step.
CHILD = """
import json, statistics, sys, time, torch
from coeff_diffusion.training.config import parse_train_config
from coeff_diffusion.training.trainer import train
ended = []
train(parse_train_config(sys.argv[1:]), on_step=lambda report: ended.append(time.perf_counter()))
steps = [later - earlier for earlier, later in zip(ended, ended[1:])]
print(json.dumps([torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved(), statistics.median(steps)]))
"""


def flags(preset: str, base: str, photos: Path, output: Path) -> list[str]:
    """A training of a few steps by a preset, with its preview at the end."""
    config = ROOT / "configs" / f"{preset}.yaml"
    last = STEPS if TrainConfig.from_yaml(config).validation_steps else 0
    return [
        "--config", str(config), "--pretrained_model_name_or_path", base, "--instance_data_dir", str(photos),
        "--class_word", "dog", "--output_dir", str(output), "--max_train_steps", str(STEPS),
        "--validation_steps", str(last), "--checkpointing_steps", "0",
    ]  # fmt: skip


def measured(asked: Sequence[str]) -> tuple[float, float, float]:
    """Bytes allocated, bytes reserved and seconds of a step of a training in a process of its own."""
    done = subprocess.run([sys.executable, "-c", CHILD, *asked], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    allocated, reserved, seconds = json.loads(done.stdout.strip().splitlines()[-1])
    return allocated, reserved, seconds


def computed(preset: str) -> float:
    """The same bytes, as `tools/training_memory.py` computes them."""
    sys.path.insert(0, str(ROOT))  # the tools are no part of the package
    tool: Any = importlib.import_module("tools.training_memory")
    return float(max(tool.peaks_of(TrainConfig.from_yaml(ROOT / "configs" / f"{preset}.yaml")).values()))


def measure(args: argparse.Namespace, folder: Path) -> None:
    """Print the row of each preset."""
    base, photos = args.base or str(folder / "base"), folder / "photos"
    if not args.base:
        command = [sys.executable, "-m", "tools.real_size_models", "sdxl", base, "--full"]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    take_photos(photos, 5, 1024)
    print(f"{machine()}\n\n| preset | computed | allocated | reserved | a step |\n" + "| --- " * 5 + "|")
    for preset in args.presets:
        expected = f"| {preset} | {computed(preset) / 1e9:.1f} GB |"
        try:
            allocated, reserved, seconds = measured(flags(preset, base, photos, folder / preset))
        except RuntimeError as error:
            print(f"{expected} {error} | | |", flush=True)
            continue
        print(f"{expected} {allocated / 1e9:.1f} GB | {reserved / 1e9:.1f} GB | {seconds:.2f} s |", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--base", help="a Stable Diffusion XL: folder, file or Hub id; default: random weights")
    args = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.exit("this measures the memory of a GPU, and none was found; tools/training_memory.py computes it anywhere")
    with tempfile.TemporaryDirectory() as folder:
        measure(args, Path(folder))


if __name__ == "__main__":
    main()
