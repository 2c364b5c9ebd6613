"""Which networks of a base are on the GPU: with `--offload` only those that are at work, the others wait in memory."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..families.shared_weights import move_together


class Residency:
    """Moves networks to where they compute, and away again. Nothing of them changes but the place.

    Args:
        pipes: pipelines with the same components, over the same weights.
        device: where they compute; all of them are there.
        away: where those wait that are not at work; None where nothing is to be moved.
    """

    def __init__(self, pipes: Sequence[Any], device: torch.device, away: torch.device | None) -> None:
        self.pipes, self.device, self.away = pipes, device, away
        self.names = frozenset(name for name, part in pipes[0].components.items() if isinstance(part, nn.Module))
        self.at_work = self.names

    def keep(self, names: Collection[str]) -> None:
        """From now on these components are at work, and no others."""
        wanted = frozenset(names)
        if self.away is not None:
            move_together(self._networks(self.at_work - wanted), self.away)  # makes room before it is needed
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            move_together(self._networks(wanted - self.at_work), self.device)
        self.at_work = wanted

    @contextmanager
    def only(self, names: Collection[str]) -> Iterator[None]:
        """Within, these are at work; afterwards those that were."""
        before = self.at_work
        self.keep(names)
        try:
            yield
        finally:
            self.keep(before)

    def _networks(self, names: Collection[str]) -> list[nn.Module]:
        return [getattr(pipe, name) for pipe in self.pipes for name in sorted(names)]


def residency_of(
    pipes: Sequence[Any], device: torch.device, offload: bool, is_own: bool, say: Callable[[str], None]
) -> Residency:
    """That of a training.

    Args:
        pipes, device: see `Residency`.
        offload: whether networks that are not at work are to wait in main memory.
        is_own: the base was loaded for this training alone.
        say: is told why nothing is moved although it was asked for.
    """
    reason = ""
    if device.type == "cpu":
        reason = "training is on the CPU, where everything stays in one place"
    elif not is_own:
        reason = "the base is in use by others than this training, so it stays where it is"
    if offload and reason:
        say(f"--offload changes nothing here: {reason}")
    return Residency(pipes, device, torch.device("cpu") if offload and not reason else None)
