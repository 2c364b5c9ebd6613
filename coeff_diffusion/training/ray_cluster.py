"""A cluster of Ray: who needs one connects to it here, and Ray is imported nowhere else before."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .config import ConfigError
from .signals import kept_handlers


@contextmanager
def cluster(address: str, extra: str = "ray") -> Iterator[Any]:
    """Ray, connected to a cluster for the block; where it is connected already, it stays so.

    Args:
        address: see `train_many_on_ray`.
        extra: of this package, which installs what is needed.

    Raises:
        ConfigError: Ray is not installed, or there is no cluster.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ConfigError([f'--ray needs {error.name}; pip install "coeff-diffusion[{extra}]"']) from error
    if ray.is_initialized():
        yield ray
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing leaves the machine
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == "local":
        quiet["include_dashboard"] = False
    try:
        with kept_handlers():  # Ray has one of its own for SIGTERM
            ray.init(address=address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        why = " ".join(str(error).split())
        raise ConfigError([f"--ray {address}: no cluster can be reached there ({why})"]) from error
    try:
        yield ray
    finally:
        ray.shutdown()
