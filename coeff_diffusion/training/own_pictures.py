"""What a base knows, measured on pictures that it draws: for bases without figures of what they were trained on.

The embedded base has such figures, and is about as far off with what it draws itself, as long as guidance makes up for
how smooth drawings are. So what a base draws can stand for what it knows. `KnownPictures` are measured once for a base,
and kept by its weights in the folder of the user's settings.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..families.errors import BaseModelError
from ..families.fingerprint import describe_base
from ..families.process import training_schedule
from ..families.registry import denoiser_of
from ..inference.request import DrawRequest
from ..inference.studio import Studio
from ..inference.templates import USUAL
from ..subject.atomic_write import atomic_write
from ..subject.user_file import user_path
from .known_pictures import KnownPictures, denoise_of, known_pictures, losses_at
from .latents import posterior
from .photos import View, view_tensor

FOLDER = "known_pictures"
THINGS = ("dog", "cat", "house", "car", "tree", "chair", "cup", "bird")
STEPS = 20
LEVELS = (0.03, 0.05, 0.1)  # as the embedded base's figures


def own_figures(pipe: Any) -> KnownPictures | None:
    """What `measure_own` has kept of a base; None where it has not measured it, or what it kept is damaged."""
    path = _path(pipe)
    if path is None or not path.is_file():
        return None
    try:
        return KnownPictures.read(path)
    except BaseModelError:  # it is measured anew, in its place
        return None


def figures(pipe: Any) -> KnownPictures | None:
    """What a base knows: by the figures in its folder, or else by what it drew. Raises as `known_pictures`."""
    return known_pictures(pipe) or own_figures(pipe)


def measure_own(
    studio: Studio, say: Callable[[str], None], should_stop: Callable[[], bool] | None = None
) -> KnownPictures | None:
    """Draw a picture of each of the `THINGS` and keep how far off the base is with them; None for one whose weights
    cannot be told from others', so that nothing could be kept.

    Args:
        say: gets a line for what is done.

    Raises:
        DrawCancelled: `should_stop` said so. StudioError: the base draws no sound picture. OSError: the figures cannot
            be kept.
    """
    pipe = studio.pipe
    if (path := _path(pipe)) is None:
        say("the base's weights are not at hand here, so what it knows is not measured")
        return None
    say(
        f"drawing {len(THINGS)} pictures with the base, to see later whether it knows such as yours; once for each "
        "base (--measure_base never leaves it)"
    )
    prompts = [f"a {thing}" for thing in THINGS]
    drawn = [
        studio.draw(DrawRequest(prompt, seed=seed, steps=STEPS), should_stop=should_stop)[0].image
        for seed, prompt in enumerate(prompts)
    ]
    weight, schedule = next(pipe.vae.parameters()), training_schedule(pipe.scheduler.config)
    with torch.no_grad():
        pixels = [view_tensor(image, image.size, View(0, 0))[None].to(weight) for image in drawn]
        latents = torch.cat([posterior(pipe.vae, one)[0] for one in pixels]).to(denoiser_of(pipe).device)
        losses = losses_at(LEVELS, schedule, denoise_of(pipe, latents, prompts), latents)
    known = KnownPictures("", LEVELS, tuple(float(f"{loss:.4g}") for loss in losses.mean(1)))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(known.to_json().encode())
    return known


def _path(pipe: Any) -> Path | None:
    """Where the figures of a base lie. Bases of one structure have other weights."""
    described = describe_base(denoiser_of(pipe))
    if not described["base_sample"]:
        return None
    key = hashlib.sha256(json.dumps([described["base_fingerprint"], described["base_sample"]]).encode())
    return user_path(USUAL) / FOLDER / f"{key.hexdigest()[:32]}.json"
