"""Coefficients and LoRA on a real base, by the protocol of PEFT's image generation benchmark; for a GPU.

    git clone --depth 1 https://github.com/huggingface/peft
    pip install datasets
    python benchmarks/real_weights.py --protocol peft/method_comparison/image-gen/default_training_params.json
    python benchmarks/real_weights.py --protocol ... --base stabilityai/stable-diffusion-xl-base-1.0 --resolution 1024

Each way is trained on the protocol's pictures for as many steps, measured on the way and at the end, and written as one
JSON file in the protocol's format below `outputs/real_weights`; what is there is not made again. Base, pictures and the
two models that look at pictures are ids on the Hub or local folders.
"""

import sys
import tempfile
from pathlib import Path

import torch
from fidelity_settings import BenchmarkError
from real_weights_measure import Features
from real_weights_protocol import Protocol, read_pictures
from real_weights_row import Row, read_row, table, write_row
from real_weights_trial import Settings, Trial

from coeff_diffusion.cli import guarded, parse
from coeff_diffusion.families.load import best_device


def run(settings: Settings) -> list[Row]:
    """The results of all ways that are asked for; those that are missing are made.

    Raises:
        BenchmarkError: something is missing or does not fit; one line says what.
    """
    changes = {
        "model_id": settings.base,
        "dataset_id": settings.dataset,
        "dino_model_id": settings.dino_model,
        "resolution": settings.resolution,
        "max_steps": settings.max_train_steps,
    }
    ways, protocol = settings.ways(), Protocol.read(settings.protocol, changes)
    if not {"lr", "weight_decay"} <= protocol.optimizer_kwargs.keys():
        raise BenchmarkError(f"{settings.protocol}: optimizer_kwargs gives no lr and weight_decay for the LoRA")
    files = {way: settings.folder / "results" / f"{way}.json" for way in ways}
    rows = {way: read_row(file, protocol.whole) for way, file in files.items()}
    if None in rows.values():
        split = read_pictures(protocol)
        device = torch.device("cpu") if settings.device == "cpu" else best_device()
        features = Features(protocol.dino_model_id, settings.clip_model, device)
    for way in [way for way, row in rows.items() if row is None]:
        with tempfile.TemporaryDirectory() as scratch:
            training = Path(scratch) / "pictures"
            split.write_training(training, protocol.resolution)
            rows[way] = Trial(way, settings, protocol, split, training, features).row()
        write_row(files[way], rows[way] or {})
    return [row for row in rows.values() if row is not None]


def main() -> int:
    print(table(run(parse("real_weights", Settings, sys.argv[1:]))))
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
