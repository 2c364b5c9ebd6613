"""Trainings of the tests: short ones, one without end, and waiting for them."""

import time
from collections.abc import Callable
from typing import Any

from coeff_diffusion.service import TrainingJob

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
