"""A subject put into ComfyUI's MODEL and CLIP."""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from coeff_diffusion.method.hosts.layers import Place, beside, check_fits, find_places, weight_sample
from coeff_diffusion.method.hosts.patches import LayerPatch, Options, Shared, patch_at, set_patches
from coeff_diffusion.subject.coefficients import Coefficients
from coeff_diffusion.subject.errors import CoefficientsError, listed
from coeff_diffusion.subject.layer_strengths import LayerStrengths
from coeff_diffusion.subject.weight_sample import other_weights

from .acting import Acting, Step
from .prompts import KEY, Word, with_word

WRAPPER = "calc_cond_batch"  # ComfyUI's `WrappersMP.CALC_COND_BATCH`


@dataclass(frozen=True, eq=False)
class PromptWatch(Shared):
    """Tells patches the prompts of a step: wraps ComfyUI's `calc_cond_batch`.

    Attributes:
        expected: where the patches of all subjects are, by path, to see that no other node has taken their places.
    """

    expected: Mapping[str, Place]

    def __call__(
        self, executor: Callable[..., Any], model: Any, conds: Any, x_in: Tensor, timestep: Tensor, model_options: Any
    ) -> Any:
        options = model_options["transformer_options"]
        taken = [path for path, place in self.expected.items() if not isinstance(patch_at(options, place), LayerPatch)]
        if taken:
            raise CoefficientsError(
                f"another node has replaced the attention of layers that a subject acts in: {listed(taken)}; let one "
                "of the two leave these layers alone, by a strength of 0 in self or cross layers"
            )
        sigma = float(timestep[0])
        prompts = {
            one["uuid"]: prompt if (prompt := one.get(KEY)) and prompt.text is one.get("cross_attn") else None
            for one in conds[0] or ()
            if _acts_now(one, sigma)
        }
        told = {**model_options, "transformer_options": {**options, KEY: Step(sigma, prompts)}}
        return executor(model, conds, x_in, timestep, told)


def apply_subject(
    model: Any,
    clip: Any,
    subject: Coefficients,
    strength: float = 1.0,
    gate: Literal["trigger", "always"] | None = None,
    layers: LayerStrengths | None = None,
    begin: float = 0.0,
    end: float = 1.0,
) -> tuple[Any, Any]:
    """Clones of ComfyUI's MODEL and CLIP in which a subject acts, beside those that act in them already.

    Args:
        gate: None is the subject's own.
        begin: the part of sampling at which it begins to act, as ComfyUI counts percents.

    Raises:
        CoefficientsError: the subject does not fit, or another node's patch is in its way; the message says which.
    """
    layers = layers or LayerStrengths()
    has_trigger = bool(subject.info.trigger.strip())
    problems = layers.problems() + ([] if math.isfinite(strength) else [f"the strength is {strength}"])
    if not 0 <= begin < end <= 1:
        problems.append(f"begin is {begin:g} and end {end:g}, expected 0 to 1, and the end behind the beginning")
    if gate == "trigger" and not has_trigger:
        problems.append('the subject has no trigger to be gated by; set the gate to "always"')
    if problems:
        raise CoefficientsError("; ".join(problems))
    unet = model.get_model_object("diffusion_model")
    places = find_places(unet)
    check_fits(subject, places)
    for note in filter(None, (other_weights(subject.info, weight_sample(unet, places)), beside(subject.info))):
        logging.warning(note)
    sampling = model.get_model_object("model_sampling")
    sigmas = (float(sampling.percent_to_sigma(begin)), float(sampling.percent_to_sigma(end)))
    gated = has_trigger and (gate or subject.info.gate) == "trigger"
    acting = Acting(subject, strength, gated, layers, sigmas)
    patched = model.clone()
    chosen = set_patches(patched, places, acting, plain_attention)
    watches = model.get_wrappers(WRAPPER, KEY)
    expected = {**(watches[0].expected if watches else {}), **chosen}
    patched.remove_wrappers_with_key(WRAPPER, KEY)
    patched.add_wrapper_with_key(WRAPPER, KEY, PromptWatch(expected))
    return patched, with_word(clip, Word.of(subject, clip)) if has_trigger else clip.clone()


def plain_attention(query: Tensor, key: Tensor, value: Tensor, options: Options) -> Tensor:
    """What ComfyUI computes in a layer that nobody patches."""
    from comfy.ldm.modules.attention import optimized_attention

    precision = options.get("attn_precision")
    attended: Tensor = optimized_attention(
        query, key, value, options["n_heads"], attn_precision=precision, transformer_options=options
    )
    return attended


def _acts_now(cond: Mapping[str, Any], sigma: float) -> bool:
    """Whether a conditioning with a range of timesteps acts at this one, as ComfyUI decides it."""
    return bool(cond.get("timestep_end", -math.inf) <= sigma <= cond.get("timestep_start", math.inf))
