"""What the training stages share: where runs live, seeded steps, checkpoints that resume exactly, and progress."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm


def step_generator(seed: int, step: int, device: torch.device) -> torch.Generator:
    """A generator that depends on nothing but (seed, step): resuming needs no generator state."""
    return torch.Generator(device).manual_seed(seed * 1_000_003 + step)


def save_checkpoint(folder: Path, step: int, **states: Any) -> None:
    """Write `checkpoint.pt` beside its place and rename it: a run killed here keeps the one before."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / "checkpoint.partial"
    torch.save({"step": step, **states}, partial)
    partial.replace(folder / "checkpoint.pt")


def load_checkpoint(folder: Path, device: torch.device) -> dict[str, Any] | None:
    path = folder / "checkpoint.pt"
    return torch.load(path, map_location=device, weights_only=True) if path.exists() else None


class Progress:
    """A progress bar with the running loss, and `losses.jsonl` with one line a step (the first hundred) or every
    hundred.

    Args:
        start, total: steps; or, with a `clock`, seconds.
        clock: seconds that the run has taken, for a run that follows them.
    """

    def __init__(
        self, folder: Path, start: int, total: float, title: str, clock: Callable[[], float] | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.clock = clock
        self.bar = tqdm(
            total=int(total), initial=int(clock()) if clock else start, desc=title, unit="s" if clock else "step",
            mininterval=2, smoothing=0.05,
        )  # fmt: skip
        self.log = (folder / "losses.jsonl").open("a")
        self.sums: dict[str, torch.Tensor] = {}
        self.started = time.monotonic()
        self.count = 0

    def update(self, step: int, **losses: torch.Tensor) -> None:
        for name, loss in losses.items():
            self.sums[name] = self.sums.get(name, 0) + loss.detach()
        self.count += 1
        self.bar.update(int(self.clock()) - self.bar.n if self.clock else 1)
        if step < 100 or step % 100 == 99:
            means = {name: float(total) / self.count for name, total in self.sums.items()}
            self.log.write(
                json.dumps({"step": step, "seconds": round(time.monotonic() - self.started, 1), **means}) + "\n"
            )
            self.log.flush()
            self.bar.set_postfix({name: f"{mean:.4f}" for name, mean in means.items()}, refresh=False)
            self.sums, self.count = {}, 0

    def close(self) -> None:
        self.bar.close()
        self.log.close()


def pick_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def join_processes() -> tuple[int, int, torch.device]:
    """Rank, number of processes and device of this one: alone, or one of several started by `torchrun`."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = pick_device()
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if world > 1:
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return rank, world, device
