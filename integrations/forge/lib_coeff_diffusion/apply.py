"""A subject put into Forge's UNet for one pass of sampling.

Legend: B pictures that are drawn at once, T text positions.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from coeff_diffusion.method.hosts.layers import beside, check_fits, find_places, weight_sample
from coeff_diffusion.method.hosts.patches import Options, Shared, set_patches
from coeff_diffusion.subject.coefficients import Coefficients
from coeff_diffusion.subject.errors import CoefficientsError
from coeff_diffusion.subject.layer_strengths import LayerStrengths
from coeff_diffusion.subject.weight_sample import other_weights

from .words import called


@dataclass(frozen=True, eq=False)
class Acting(Shared):
    """A subject in the pictures of one batch, all of them in each part of the UNet's batch.

    Attributes:
        acts: in which of the B pictures.
        spots: where the trigger's vectors stand in each one's prompt, `[T]`; None where there are none.
    """

    coefficients: Coefficients
    strength: float
    acts: tuple[bool, ...]
    spots: tuple[Tensor | None, ...]
    layers: LayerStrengths = field(default_factory=LayerStrengths)

    def now(self, options: Options) -> float:
        return self.strength

    def strengths(self, options: Options) -> list[float]:
        return [self.strength * acts for acts in self.acts] * len(options["cond_or_uncond"])

    def places(self, options: Options) -> list[Tensor | None]:
        nowhere = (None,) * len(self.spots)
        return [one for uncond in options["cond_or_uncond"] for one in (nowhere if uncond else self.spots)]


def plain_attention(query: Tensor, key: Tensor, value: Tensor, options: Options) -> Tensor:
    """What Forge computes in a layer that nobody patches."""
    from backend.attention import attention_function

    attended: Tensor = attention_function(query, key, value, options["n_heads"], None)
    return attended


def apply_subjects(
    sd_model: Any, subjects: Mapping[str, tuple[Coefficients, float]], prompts: Sequence[str], conditioning: Any
) -> tuple[Any, list[str]]:
    """A clone of the patcher of Forge's UNet in which subjects act.

    Args:
        subjects: with their strengths, by name.
        prompts: of the B pictures.
        conditioning: what Forge made of them, its `MulticondLearnedConditioning`.

    Returns:
        The clone, and sentences for the user.

    Raises:
        CoefficientsError: a subject does not fit, something else is in its way, or it depends on a prompt that changes
            while it is drawn.
    """
    patched, notes = sd_model.forge_objects.unet.clone(), list[str]()
    unet = patched.model.diffusion_model
    places = find_places(unet)
    for name, (subject, strength) in subjects.items():
        if not math.isfinite(strength):
            raise CoefficientsError(f"the strength of {name!r} is {strength}, expected a number")
        check_fits(subject, places)
        notes += filter(None, (other_weights(subject.info, weight_sample(unet, places)), beside(subject.info)))
        set_patches(patched, places, _acting(sd_model, subject, strength, prompts, conditioning), plain_attention)
    return patched, notes


def _acting(sd_model: Any, subject: Coefficients, strength: float, prompts: Sequence[str], conditioning: Any) -> Acting:
    gated = bool(subject.info.trigger.strip()) and subject.info.gate == "trigger"
    if (gated or subject.stage_tokens) and (
        len(conditioning.batch) != len(prompts)
        or any(len(texts) != 1 or len(texts[0].schedules) != 1 for texts in conditioning.batch)
    ):
        raise CoefficientsError(
            f"the subject of {subject.info.trigger!r} acts by what the prompt says, so that has to stay the same: "
            "write it without AND and without [from:to:when]"
        )
    found = [called(sd_model, subject, prompt) for prompt in prompts]
    acts = tuple(is_called or not gated for is_called, _ in found)
    longest = max((len(spots) for _, spots in found if spots is not None), default=0)
    spots = tuple(
        # Shorter prompts of a batch are lengthened by Forge, at their end.
        torch.nn.functional.pad(spots, (0, longest - len(spots)), value=-1) if spots is not None and is_called else None
        for is_called, spots in found
    )
    return Acting(subject, strength, acts, spots)
