"""How long a training will take on this machine, before it begins."""

import statistics
import threading
import time
from collections import deque

import torch

from ..families.registry import denoiser_of
from ..training.config import TrainConfig
from ..training.reports import Clock
from .loading import SubjectLoader

TRAINING_PASSES = 3  # a step of training takes about as long as so many denoisings of its batch


class TimeEstimate:
    """Seconds that a picture takes in a step: of the latest trainings, or measured once on the base."""

    def __init__(self, loader: SubjectLoader) -> None:
        self.loader = loader
        self._steps: deque[float] = deque(maxlen=50)
        self._measured: float | None = None
        self._lock = threading.Lock()

    def stepped(self, seconds: float, config: TrainConfig) -> None:
        """A step of a training took this long."""
        self._steps.append(seconds / config.pictures_per_step)

    def seconds(self, config: TrainConfig) -> float:
        """An estimate for all steps and previews. The first call measures, and waits for a drawing that is at work."""
        clock = Clock()
        clock.stepped(self._per_picture() * config.pictures_per_step)
        return clock.seconds_left(0, config)

    def _per_picture(self) -> float:
        if len(self._steps) > 1:
            return statistics.median(list(self._steps))
        with self._lock:
            if self._measured is None:
                self._measured = TRAINING_PASSES * self._denoise()
            return self._measured

    @torch.no_grad()
    def _denoise(self) -> float:
        """Seconds for one denoising of one picture by the base; the better of two, as the first one warms up."""
        with self.loader.using(()) as studio:
            pipe, family, taken = studio.pipe, studio.family, []
            denoiser, scale = denoiser_of(pipe), pipe.vae_scale_factor
            width, height = studio.size
            shape = 1, denoiser.config["in_channels"], height // scale, width // scale
            latents = torch.zeros(shape, device=denoiser.device, dtype=denoiser.dtype)
            condition = family.condition(pipe, [""], studio.size)
            for _ in range(2):
                started = time.monotonic()
                timesteps = torch.tensor([500], device=denoiser.device)
                family.predict(denoiser, latents, timesteps, condition).sum().item()  # waits for a GPU to be done
                taken.append(time.monotonic() - started)
            return min(taken)


def about(seconds: float) -> str:
    """75 -> "about 1 min": as exact as the estimate is."""
    if seconds < 45:
        return f"about {max(5, round(seconds / 5) * 5)} s"
    if seconds < 90 * 60:
        return f"about {max(1, round(seconds / 60))} min"
    return f"about {seconds / 3600:.1f} h"
