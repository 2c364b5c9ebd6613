"""Trainings of the tests: short ones, one without end, one that is killed, and waiting for them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

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
