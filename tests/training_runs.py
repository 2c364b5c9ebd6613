"""Trainings of the tests: short ones, one without end, one that is killed, and waiting for them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from coeff_diffusion.service import TrainingJob
from coeff_diffusion.training.config import TrainConfig

SHORT: dict[str, Any] = {"max_train_steps": 3, "train_batch_size": 1, "validation_steps": 0}
ENDLESS = {**SHORT, "max_train_steps": 100_000}


def wait(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def over(job: TrainingJob) -> TrainingJob:
    wait(lambda: job.over)
    return job


def photographs(folder: Path) -> list[Path]:
    """Five pictures with the spectrum of photographs, 1 / f, and the same in all channels but for a tint."""
    generator = np.random.default_rng(0)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(160), np.fft.fftfreq(160))).clip(1 / 160)
    paths = [folder / f"{number}.png" for number in range(5)]
    for path in paths:
        grey = np.fft.ifft2(np.fft.fft2(generator.normal(size=(160, 160))) / frequency).real
        grey = (grey / grey.std() * 50 + 128)[..., None] * (1.0, 0.9, 0.8)
        Image.fromarray(grey.clip(0, 255).astype(np.uint8)).save(path)
    return paths


CHILD = """
import os, signal, sys
from coeff_diffusion.training.config import TrainConfig
from coeff_diffusion.training.trainer import train

def die(report):
    if report.step == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

train(TrainConfig.from_yaml(sys.argv[1]), on_step=die)
"""


def train_and_kill(config: TrainConfig, step: int, file: Path) -> None:
    """A training in a process of its own, which is killed after a step.

    Args:
        file: for the settings.
    """
    file.write_text(config.resolve().to_yaml())
    command = [sys.executable, "-W", "error", "-c", CHILD, str(file), str(step)]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # sums over other numbers of threads round otherwise
    child = subprocess.run(command, capture_output=True, check=False, env={**os.environ, **threads})
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()
