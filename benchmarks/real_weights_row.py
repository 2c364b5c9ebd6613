"""A result in the format of PEFT's method comparison, one JSON file each, and the table of several."""

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from fidelity_settings import BenchmarkError

from coeff_diffusion.hub import NO_ANSWER
from coeff_diffusion.subject.atomic_write import atomic_write
from coeff_diffusion.subject.user_file import read_text, user_path

PACKAGES = ("transformers", "peft", "datasets", "diffusers", "torch", "coeff-diffusion")
MAX_FILE = 2**24  # bytes
COLUMNS = {
    "values": ("train_info", "num_trainable_params", "{:,}"),
    "file, bytes": ("train_info", "file_size", "{:,}"),
    "test DINOv2": ("last", "test dino_similarity", "{:.4f}"),
    "test CLIP": ("last", "test clip_similarity", "{:.4f}"),
    "CLIP, text": ("last", "test clip_text_similarity", "{:.4f}"),
    "drift": ("last", "drift", "{:.4f}"),
    "drift as shipped": ("last", "drift as shipped", "{:.4f}"),
    "training, s": ("train_info", "train_time", "{:.0f}"),
    "memory, bytes": ("train_info", "accelerator_memory_max", "{:,}"),
}
Row = dict[str, Any]


def meta_info(model: str, dataset: str) -> dict[str, Any]:
    """Which model and data set, with which packages, on what."""
    from huggingface_hub import HfApi

    gpu = torch.cuda.is_available()
    return {
        "model_info": _revision(model, HfApi().model_info),
        "dataset_info": _revision(dataset, HfApi().dataset_info),
        "package_info": {
            key: value
            for name in PACKAGES
            for key, value in ((f"{name}-version", _version(name)), (f"{name}-commit-hash", None))
        },
        "system_info": {
            **{what: getattr(platform, what)() for what in ("system", "release", "version", "machine", "processor")},
            "accelerator": torch.cuda.get_device_name(0) if gpu else "none",
        },
        "pytorch_info": torch.__config__.show(),
    }


def _revision(name: str, ask: Any) -> dict[str, str | None]:
    """What the Hub has of a model or data set now; nothing of folders, and where it does not answer."""
    unknown: dict[str, str | None] = {"sha": None, "created_at": None}
    if user_path(name).exists():
        return unknown
    try:
        found = ask(name)
    except (NO_ANSWER, OSError) as error:  # type: ignore[misc]  # it is a class of httpx or of httpx2
        print(f"note: the result will not say which revision of {name} it is of: {str(error).splitlines()[0][:120]}")
        return unknown
    return {"sha": found.sha, "created_at": found.created_at.isoformat()}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def plain(value: Any) -> Any:
    """As JSON has it: sets and tuples as lists, what it does not know as text."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(map(plain, value))
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return value if isinstance(value, str | int | float | None) else str(value)


def write_row(file: Path, row: Row) -> None:
    """Whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(file) as target:
        target.write(json.dumps(row, indent=2).encode())


def read_row(file: Path, train_config: Mapping[str, Any]) -> Row | None:
    """The result that is there; None where there is none.

    Raises:
        BenchmarkError: it is of other settings, or damaged.
    """
    if not file.is_file():
        return None
    try:
        row: Row = json.loads(read_text(file, MAX_FILE))
        there = row["run_info"]["train_config"]
    except (ValueError, KeyError, TypeError) as error:
        raise BenchmarkError(f"{file} holds no result; delete it to measure again") from error
    differ = [name for name in {*there, *train_config} if there.get(name) != plain(train_config).get(name)]
    if differ:
        name = min(differ)
        raise BenchmarkError(
            f"{file} is a result of other settings: {name} is {there.get(name)!r} there and {train_config.get(name)!r} "
            "now; delete it, or give another --output_dir"
        )
    return row


def table(rows: Sequence[Row]) -> str:
    """One line for each."""
    lines = [f"| method | {' | '.join(COLUMNS)} |", "| --- " * (1 + len(COLUMNS)) + "|"]
    for row in rows:
        parts = {**row, "last": row["train_info"]["metrics"][-1]}
        cells = [shape.format(parts[part][name]) for part, name, shape in COLUMNS.values()]
        lines.append(f"| {row['run_info']['experiment_name']} | {' | '.join(cells)} |")
    return "\n".join(lines)
