"""What whoever leaves steps and guidance out gets: by the sampler that a base comes with, and by the base."""

from typing import Any

import pytest
from diffusers import (
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    TCDScheduler,
)

from coeff_diffusion.base import embedded_path
from coeff_diffusion.families.usual import OF_DISTILLED, OF_EMBEDDED, USUAL, usual_of
from coeff_diffusion.inference.request import DrawRequest
from coeff_diffusion.inference.studio import Studio

TRAILING = {"timestep_spacing": "trailing"}


@pytest.mark.parametrize(
    ("scheduler", "distilled"),
    [
        (LCMScheduler(), True),
        (TCDScheduler(), True),
        (EulerDiscreteScheduler(**TRAILING), True),  # SD Turbo
        (EulerAncestralDiscreteScheduler(**TRAILING), True),  # SDXL Turbo
        (EulerDiscreteScheduler(), False),  # SDXL
        (EulerDiscreteScheduler(**TRAILING, rescale_betas_zero_snr=True), False),
        (EulerDiscreteScheduler(**TRAILING, prediction_type="v_prediction"), False),  # NoobAI-XL v-pred
        (DDIMScheduler(**TRAILING), False),
        (PNDMScheduler(), False),  # SD 1.5
    ],
)
def test_bases_made_for_few_steps_are_known_by_their_sampler(
    tiny_pipe: StableDiffusionPipeline, scheduler: Any, distilled: bool
) -> None:
    tiny_pipe.scheduler = scheduler
    assert usual_of(tiny_pipe) == (OF_DISTILLED if distilled else USUAL)


def test_the_embedded_base_needs_fewer_steps_and_less_guidance(tiny_pipe: StableDiffusionPipeline) -> None:
    tiny_pipe.register_to_config(_name_or_path=str(embedded_path()))
    assert usual_of(tiny_pipe) == OF_EMBEDDED
    assert OF_EMBEDDED.steps < USUAL.steps
    assert 1 < OF_EMBEDDED.guidance_scale < USUAL.guidance_scale


def test_what_is_left_out_is_the_bases_and_stands_in_the_picture(tiny_pipe: StableDiffusionPipeline) -> None:
    tiny_pipe.scheduler = LCMScheduler()
    studio = Studio(tiny_pipe)
    (usual,) = studio.draw(DrawRequest("a dog", seed=1))
    assert (usual.request.steps, usual.request.guidance_scale) == (4, 1.0)
    assert "Steps: 4, " in usual.parameters
    assert "CFG scale: 1" in usual.parameters
    (same,) = studio.draw(DrawRequest("a dog", seed=1, steps=4, guidance_scale=1.0))
    assert same.image.tobytes() == usual.image.tobytes()
    (other,) = studio.draw(DrawRequest("a dog", seed=1, guidance_scale=5.0))
    assert other.request.steps == 4
    assert other.image.tobytes() != usual.image.tobytes()
