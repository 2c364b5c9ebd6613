"""What a drawing writes down of how it was drawn: all that decides about its pixels.

What someone sets on a pipeline by hand (a gate or guidance rows of a loaded subject, a LoRA, tiling) is not known here
and not written down.
"""

from dataclasses import fields, replace
from typing import Any, NamedTuple

from ..families.fingerprint import base_hash
from ..families.load import base_name
from ..families.quantization import quantization_of
from ..families.registry import denoiser_of, encoders_of
from ..images.generation_info import Parameters
from .pipeline_subjects import loaded_coefficients
from .request import DrawRequest
from .trigger import contains_trigger
from .upscaling import Upscaler


def recorded(pipe: Any, request: DrawRequest, sampler: str, upscaler: Upscaler) -> Parameters:
    """What decides about the pixels of a request whose every choice is made; `placed` adds the place in its batch.

    The subjects are those the request names, and those whose learned word occurs in it, in the order they are blended.
    """
    base, texts = Base.of(pipe), (request.prompt, request.prompt_2, request.negative_prompt)
    subjects = {
        name: subject
        for name, subject in loaded_coefficients(pipe).items()
        if name in request.subjects
        or (subject.tokens and any(contains_trigger(text, subject.info.trigger) for text in texts))
    }
    asked = {one.name: getattr(request, one.name) for one in fields(DrawRequest)} | {
        "guidance_rescale": request.guidance_rescale or None,  # 0 is what a picture that says nothing of it means
        "scheduler": sampler,
        "subjects": {name: float(request.subjects.get(name, 0)) for name in subjects},
        "start": None,
        "start_digits": request.start and request.start.digits,
        "control": None,
        "control_digits": request.control and request.control.digits,
        "controlnet": request.control and request.control.net,
        "controlnet_hash": request.control and request.control.net_digits,
        "refiner": None,
        "refiner_name": request.refiner and request.refiner.name,
        "refiner_hash": request.refiner and request.refiner.digits,
    }
    enlarged = {"upscaler": request.upscale > 1, "hires_upscaler": request.has("hires_scale")}
    if any(enlarged.values()):
        asked |= {name: upscaler.name for name, is_larger in enlarged.items() if is_larger}
        asked["upscaler_hash"] = upscaler.digits or None
    hashes = {name: subject.sha256[:12] for name, subject in subjects.items()}
    return Parameters(**asked, **base._asdict(), hashes=hashes)


class Base(NamedTuple):
    """What `Parameters` say of a base."""

    model: str
    base_hash: str | None = None
    precision: str | None = None

    @classmethod
    def of(cls, pipe: Any) -> "Base":
        """The base of a pipeline."""
        denoiser = denoiser_of(pipe)
        precision, quantization = str(denoiser.dtype).removeprefix("torch."), quantization_of(denoiser)
        precision += f"/{quantization}" if quantization != "no" else ""
        digits = base_hash(denoiser, *encoders_of(pipe).values(), pipe.vae.decoder)
        return cls(base_name(pipe), digits, None if precision == "float32" else precision)


def placed(parameters: Parameters, place: int, pictures: int) -> Parameters:
    """The parameters of one picture with its place in its batch, whose seeds count up; none if it was drawn alone."""
    return parameters if pictures == 1 else replace(parameters, batch_size=pictures, batch_position=place)
