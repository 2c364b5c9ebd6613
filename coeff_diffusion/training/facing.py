"""Which pictures show the subject facing the other way than most of them do.

Where a few pictures face left and a few face right, nothing tells training where the head is, and subjects are drawn
with one on both ends. What a denoiser makes of a picture and of its mirror image does tell: its features of the same
part of a thing are alike from picture to picture (DIFT, arXiv 2306.03881; stage and noise level are that paper's).

Shapes: P pictures; C, h, w channels and size of the latents or features.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..families.load import EMBEDDED, base_name
from ..families.process import training_schedule
from ..families.registry import denoiser_of
from .config import TrainConfig
from .known_pictures import denoise_of
from .latents import Pictures
from .picture_folder import TrainingPicture, named

STAGE = "up_blocks.1"
LEVEL = 0.261  # of the noise schedule
SEED = 21
AT_ONCE = 8  # pictures that pass the denoiser
PLACES = 16  # that features have along a side, at most
REACH = 3  # of these places: how far apart two pictures may show the subject
SPREAD = 0.3  # of a side: the middle of a picture counts most
SIDED = 0.045  # agreement (a cosine) of all pictures below which a subject has no sides: a lady beetle from above
SURE = 0.01  # that of a picture with the others below which it stays as it is


def facing_one_way(
    config: TrainConfig,
    pipe: Any,
    pictures: list[TrainingPicture],
    held_out: list[TrainingPicture],
    encode: Callable[..., Pictures],
    say: Callable[[str], None],
) -> tuple[list[TrainingPicture], list[TrainingPicture]]:
    """The pictures to train on and those to measure on, mirrored where the subject faces the other way, if asked for.

    Args:
        config: resolved settings.
        encode: the middles of `pictures`, all of one size.
        say: is told which ones are mirrored.
    """
    asked = config.facing == "one_way"
    if not asked and (config.facing == "as_is" or config.random_flip or base_name(pipe) != EMBEDDED):
        return pictures, held_out
    every = [*pictures, *held_out]
    both = [*every, *(replace(picture, mirrored=True) for picture in every)]
    latents = encode(pictures=both, what="which way the subject faces", say=lambda line: None)
    plain, mirrored = latents.groups[0].first_views().chunk(2)
    away = turned_away(pipe, plain, mirrored, f"a {config.class_word}")
    if any(away):
        turned = named([picture.path for picture, is_away in zip(every, away, strict=True) if is_away])
        say(f"mirrored {turned}, so that the subject faces one way in all pictures (--facing as_is leaves them)")
    every = [replace(picture, mirrored=is_away) for picture, is_away in zip(every, away, strict=True)]
    return every[: len(pictures)], every[len(pictures) :]


def turned_away(pipe: Any, latents: Tensor, mirrored: Tensor, prompt: str) -> list[bool]:
    """Which pictures are to be mirrored so that all face as most do.

    Args:
        pipe: the base, with no subject acting.
        latents: the pictures as the base's autoencoder has them, `[P, C, h, w]`, all of one size.
        mirrored: the same of their mirror images.
        prompt: what they show, in words that the base knows.
    """
    return disagreeing(*(stage_features(pipe, one, prompt) for one in (latents, mirrored)))


@torch.no_grad()
def stage_features(pipe: Any, latents: Tensor, prompt: str) -> Tensor:
    """What a stage of the denoiser makes of noised latents `[P, C, h, w]`: `[P, C', h', w']` float32, on the CPU."""
    denoiser, schedule = denoiser_of(pipe), training_schedule(pipe.scheduler.config)
    noise = torch.randn(latents.shape[1:], generator=torch.Generator().manual_seed(SEED))
    noise = (noise + noise.flip(-1)) / 2**0.5  # a picture and its mirror image lie under the same one
    timestep = round(LEVEL * (schedule.config.num_train_timesteps - 1))
    found: list[Tensor] = []

    def keep(stage: nn.Module, inputs: Any, output: Tensor) -> None:
        side = min(PLACES, *output.shape[-2:])
        found.append(nn.functional.adaptive_avg_pool2d(output.float(), side).cpu())

    handle = denoiser.get_submodule(STAGE).register_forward_hook(keep)
    try:
        for some in latents.to(denoiser.device).split(AT_ONCE):
            timesteps = torch.full((len(some),), timestep, device=some.device)
            noised = schedule.add_noise(some, noise.to(some).expand_as(some), timesteps)
            denoise_of(pipe, some, [prompt] * len(some))(noised, timesteps)
    finally:
        handle.remove()
    return torch.cat(found)


def disagreeing(plain: Tensor, mirrored: Tensor) -> list[bool]:
    """Which pictures face the other way, by features `[P, C, h, w]` of each and of its mirror image.

    A majority stays as it is; of two halves the one with the first picture.
    """
    agreement = facing_agreement(plain, mirrored)  # [P, P]
    if len(agreement) < 2:
        return [False] * len(agreement)
    signs = max((_settled(agreement, start) for start in agreement), key=lambda signs: signs @ agreement @ signs)
    each = signs * (agreement @ signs) / (len(signs) - 1)  # [P], of each picture with the others
    if each.mean() < SIDED:
        return [False] * len(each)
    away, stay = (side & (each >= SURE) for side in (signs < 0, signs > 0))
    if away.sum() > stay.sum() or (away.sum() == stay.sum() and away[0]):
        away = stay
    return away.tolist()


def facing_agreement(plain: Tensor, mirrored: Tensor) -> Tensor:
    """How much more alike two pictures are than one and the other's mirror image, `[P, P]`, symmetric, 0 with itself.

    Alike is the cosine of features at the same place, on average over places that are unlike the border, at the best of
    all shifts by up to `REACH` places.
    """
    mean = torch.cat([plain, mirrored]).mean((0, 2, 3), keepdim=True)
    ahead, behind = (_weighed(features - mean) for features in (plain, mirrored))
    same = _likeness(ahead, ahead) + _likeness(behind, behind)
    crossed = _likeness(ahead, behind)
    agreement = (same - crossed - crossed.T) / 2
    return agreement.fill_diagonal_(0)


def _weighed(features: Tensor) -> Tensor:
    """Features of unit length at each place, times the root of its weight: a sum of products is a mean of cosines."""
    features = nn.functional.normalize(features, dim=1)
    border = torch.cat([features[..., 0, :], features[..., -1, :], features[..., 0], features[..., -1]], dim=-1)
    ground = nn.functional.normalize(border.mean(-1), dim=1)[..., None, None]  # [P, C, 1, 1]
    unlike = (1 - (features * ground).sum(1, keepdim=True)).clamp(min=0)  # [P, 1, h, w]
    rows, columns = (torch.linspace(-0.5, 0.5, size) for size in features.shape[-2:])
    middle = torch.exp(-(rows[:, None].square() + columns.square()) / (2 * SPREAD**2))
    weights = unlike * middle
    return features * (weights / weights.sum((2, 3), keepdim=True).clamp(min=1e-12)).sqrt()


def _likeness(first: Tensor, second: Tensor) -> Tensor:
    """The highest correlation of each of the first with each of the second over all shifts, `[P, P]`."""
    return nn.functional.conv2d(first, second, padding=REACH).amax((2, 3))


def _settled(agreement: Tensor, start: Tensor) -> Tensor:
    """Signs `[P]` from which no single change makes pictures agree more, beginning with what agrees with `start`."""
    signs = torch.where(start < 0, -1.0, 1.0)
    while True:
        gains = signs * (agreement @ signs)
        worst = int(gains.argmin())
        if gains[worst] >= 0:
            return signs
        signs[worst] *= -1
