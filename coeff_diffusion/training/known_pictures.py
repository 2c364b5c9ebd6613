"""Whether a base knows such pictures: how far off its predictions of them are, beside those of what it was trained on.

At low noise nearly all of a picture is there to see, and what is left to predict is its detail. A base that never saw
photographs cannot continue theirs: nothing is learned from them then, whatever the loss of a training says.

Shapes: P pictures; C, h, w channels and size of the latents; S noise levels.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from ..base import embedded_path
from ..families.errors import BaseModelError
from ..families.load import EMBEDDED, base_name
from ..families.process import prediction_target, training_schedule
from ..families.registry import denoiser_of, family_of
from ..subject.info import UNKNOWN
from ..subject.user_file import read_text
from .losses import squared_errors

FILE = "known_pictures.json"
MAX_FILE = 2**16  # bytes
MOST = 8  # pictures that are asked about
SEED = 20


@dataclass(frozen=True)
class KnownPictures:
    """What a base was trained on, as `known_pictures.json` in its folder says.

    Attributes:
        kind: of pictures, for people ("drawn things"); empty where they are what the base itself draws.
        levels: shares of the noise schedule.
        losses: mean squared error of the base's predictions for such pictures, at each level.
    """

    kind: str
    levels: tuple[float, ...]
    losses: tuple[float, ...]

    def to_json(self) -> str:
        """As it stands in the file."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def read(cls, path: Path) -> "KnownPictures":
        """Read such a file.

        Raises:
            BaseModelError: it cannot be read, or holds something else.
        """
        try:
            found = json.loads(read_text(path, MAX_FILE))
            levels, losses = (tuple(map(float, found[key])) for key in ("levels", "losses"))
            if not 0 < len(levels) == len(losses) or not all(0 <= level <= 1 for level in levels) or min(losses) <= 0:
                raise ValueError("as many levels from 0 to 1 as losses are expected")
            return cls(str(found["kind"]), levels, losses)
        except (KeyError, TypeError, ValueError, OSError, RecursionError) as error:
            raise BaseModelError(f"{path} says nothing of what the base knows: {error}") from error


def known_pictures(pipe: Any) -> KnownPictures | None:
    """The figures in a base's folder; None where it has none, as any but the embedded one today.

    Raises:
        BaseModelError: its file cannot be read, or holds something else.
    """
    name = str(pipe.name_or_path or "")
    folder = embedded_path() if base_name(pipe) == EMBEDDED else Path(name)
    if not name or not (folder / FILE).is_file():
        return None
    return KnownPictures.read(folder / FILE)


Denoise = Callable[[Tensor, Tensor], Tensor]
"""Noised latents `[P, C, h, w]` and timesteps `[P]` to what is predicted of them, `[P, C, h, w]`."""


def denoise_of(pipe: Any, latents: Tensor, prompts: Sequence[str]) -> Denoise:
    """What a base with no subject acting predicts of latents `[P, C, h, w]`, each with its prompt."""
    family, denoiser = family_of(pipe), denoiser_of(pipe)
    side, texts = pipe.vae_scale_factor, list(dict.fromkeys(prompts))
    encoded = family.condition(pipe, texts, (latents.shape[-1] * side, latents.shape[-2] * side))
    condition = {name: rows[[texts.index(prompt) for prompt in prompts]] for name, rows in encoded.items()}
    return lambda noised, timesteps: family.predict(denoiser, noised.to(denoiser.dtype), timesteps, condition)


def losses_at(levels: Sequence[float], schedule: DDPMScheduler, denoise: Denoise, latents: Tensor) -> Tensor:
    """Mean squared error of predictions for noised latents `[P, C, h, w]`, `[S, P]` float32.

    The noise is always the same, that of every picture alike.
    """
    noise = torch.randn(latents.shape[1:], generator=torch.Generator().manual_seed(SEED)).to(latents)
    noise = noise.expand_as(latents)
    last, found = schedule.config.num_train_timesteps - 1, []
    for level in levels:
        timesteps = torch.full((len(latents),), round(level * last), device=latents.device)
        predicted = denoise(schedule.add_noise(latents, noise, timesteps), timesteps)
        found.append(squared_errors(predicted, prediction_target(schedule, latents, noise, timesteps)).cpu())
    return torch.stack(found)


def strangeness(known: KnownPictures, losses: Tensor) -> float:
    """How many times as far off predictions are as with pictures that the base knows; `losses` `[S, P]`."""
    return float((losses.mean(1) / torch.tensor(known.losses)).mean())


def unknown_pictures(pipe: Any, known: KnownPictures, latents: Tensor, class_word: str) -> str | None:
    """What to do instead, where pictures are of a kind that a base does not know; None where it knows such pictures.

    Args:
        pipe: the base, with no subject acting.
        known: its figures.
        latents: `[P, C, h, w]`; the first `MOST` are looked at.
        class_word: what the pictures show; may be empty.
    """
    if not len(latents):
        return None
    schedule, chosen = training_schedule(pipe.scheduler.config), latents[:MOST].to(denoiser_of(pipe).device)
    with torch.no_grad():
        denoise = denoise_of(pipe, chosen, [f"a {class_word}" if class_word else ""] * len(chosen))
        times = strangeness(known, losses_at(known.levels, schedule, denoise, chosen))
    if times < UNKNOWN:
        return None
    name = base_name(pipe)
    base = "the embedded base" if name == EMBEDDED else f"the base {name!r}"
    if not known.kind:
        return (
            f"these are pictures of another kind than {base} draws: it is {times:.1f} times as far off with them as "
            "with its own, and will hardly draw this subject. Choose a base that knows such pictures "
            "(--pretrained_model_name_or_path)"
        )
    return (
        f"these look like photos; {base} knows {known.kind} only, and is {times:.1f} times as far off with them: it "
        "will hardly draw this subject. Choose Stable Diffusion 1.5, SDXL or another base that knows photos "
        "(--pretrained_model_name_or_path stable-diffusion-v1-5/stable-diffusion-v1-5)"
    )
