"""Which kinds of bases there are, and which of them a pipeline, a folder or a denoiser is."""

from collections.abc import Mapping
from typing import Any

from ..method.sites import Site, find_sites, unwrapped
from ..subject.errors import UserError
from .family import Family
from .stable_diffusion import StableDiffusion
from .stable_diffusion_xl import StableDiffusionXL

FAMILIES: tuple[Family, ...] = (StableDiffusion(), StableDiffusionXL())
EXPECTED = " or ".join(f"{family.title} ({family.pipeline})" for family in FAMILIES)


class FamilyError(UserError, ValueError):
    """A base of a kind that is not known here. The message names it, and what is known."""


def by_pipeline(class_name: str) -> Family | None:
    """The family that a text-to-image pipeline of diffusers draws with."""
    return next((family for family in FAMILIES if family.pipeline == class_name), None)


def by_denoiser(class_name: str, config: Mapping[str, Any]) -> Family | None:
    """The family of a denoiser, by its class and its config."""
    kinds = (family for family in FAMILIES if class_name in family.denoiser_classes)
    return next((family for family in kinds if family.recognizes(config)), None)


def family_of(pipe: Any) -> Family:
    """The family of a pipeline, whatever it draws from (text, pictures, masks): its denoiser tells.

    Raises:
        FamilyError: none that is known.
    """
    for component in dict.fromkeys(family.denoiser for family in FAMILIES):
        denoiser = unwrapped(getattr(pipe, component, None))
        found = None if denoiser is None else by_denoiser(type(denoiser).__name__, denoiser.config)
        if found is not None and found.denoiser == component:
            return found
    raise FamilyError(f"{type(pipe).__name__} is of no known family; expected {EXPECTED}")


def denoiser_of(pipe: Any) -> Any:
    """The component of a pipeline that holds the attention layers, without the wrapper of `torch.compile`.

    Raises:
        FamilyError: the pipeline is of no known family.
    """
    return unwrapped(getattr(pipe, family_of(pipe).denoiser))


def encoders_of(pipe: Any) -> dict[str, Any]:
    """The text encoders that a pipeline has at hand, by the component's name."""
    found = {name: getattr(pipe, name, None) for name in family_of(pipe).text_encoders}
    return {name: encoder for name, encoder in found.items() if encoder is not None}


def tokenizers_of(pipe: Any) -> dict[str, Any]:
    """What reads prompts for each text encoder that a pipeline has at hand, by the encoder's name."""
    return {name: getattr(pipe, tokenizer_name(name)) for name in encoders_of(pipe)}


def tokenizer_name(text_encoder: str) -> str:
    """The component that reads prompts for a text encoder: "tokenizer_2" for "text_encoder_2"."""
    return text_encoder.replace("text_encoder", "tokenizer")


def sites_of(denoiser: Any) -> dict[str, Site]:
    """The attention layers of a denoiser that coefficients may belong to; of an unknown one, all it has."""
    denoiser = unwrapped(denoiser)
    family = by_denoiser(type(denoiser).__name__, denoiser.config)
    return find_sites(denoiser) if family is None else family.sites(denoiser)


def architecture(denoiser: Any) -> str:
    """ModelSpec's name of a denoiser, "custom" where it is none that is known."""
    denoiser = unwrapped(denoiser)
    family = by_denoiser(type(denoiser).__name__, denoiser.config)
    return "custom" if family is None else family.architecture(denoiser.config) or "custom"
