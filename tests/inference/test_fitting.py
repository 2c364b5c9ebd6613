"""What a picture asks for comes back as something that can be drawn, with a note on every change."""

from dataclasses import replace
from typing import Any

import pytest
from diffusers import StableDiffusionPipeline
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coeff_diffusion.images.drawing_settings import SETTINGS
from coeff_diffusion.inference.fitting import fitted
from coeff_diffusion.inference.limits import limits_of
from coeff_diffusion.inference.request import MAX_SEED, DrawRequest, problems
from coeff_diffusion.inference.studio import Studio
from coeff_diffusion.subject.layer_strengths import STRENGTH_REACH, LayerStrengths

ODD_FLOATS = [-1.0, 0.0, 0.5, 1.0, 7.5, 1e9, float("nan"), float("inf"), -float("inf")]
ODD = {
    "seed": [None, -1, 0, MAX_SEED, MAX_SEED + 1, 1033245876545643, 2**64 - 1],
    "width": [None, -8, 0, 1, 8, 20, 1001, 10**6],
    "height": [None, 0, 16, 63],
    "batch_size": [-1, 0, 1, 4, 10**9],
    "steps": [-1, 0, 1, 20, 1001, 10**19],
    "guidance_scale": ODD_FLOATS,
    "guidance_rescale": [None, *ODD_FLOATS],
    "scheduler": [None, "", "Restart", "euler_k", "dpmpp_2m_sde_gpu", "LMS Karras", "x" * 2_000],
    "begin": ODD_FLOATS,
    "end": ODD_FLOATS,
    "layers": [LayerStrengths(), LayerStrengths(mid=float("nan")), LayerStrengths(up=1e300)],
}


@pytest.fixture
def studio(tiny_pipe: StableDiffusionPipeline) -> Studio:
    return Studio(tiny_pipe)


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    changes=st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in ODD.items()}),
    on_page=st.booleans(),
)
def test_whatever_is_asked_for_can_be_drawn(studio: Studio, changes: dict[str, Any], on_page: bool) -> None:
    request = replace(DrawRequest("a dog"), **changes)
    bounds = (lambda one: limits_of(studio, one)) if on_page else (lambda one: None)
    found, notes = fitted(studio, request, bounds, STRENGTH_REACH) if on_page else fitted(studio, request)
    width, height = studio.size
    settled = replace(found, width=found.width or width, height=found.height or height)
    assert problems(settled, studio.multiple, 1000) == []
    assert found.scheduler is None or found.scheduler in studio.schedulers
    said = " ".join(notes)
    for name, one in SETTINGS.items():
        before, after = getattr(request, name), getattr(found, name)
        if before != after and name not in ("scheduler", "layers", "begin", "end"):
            assert f"its {one.called} was" in said
    others = {"euler_k": "Euler Karras", "dpmpp_2m_sde_gpu": "DPM++ 2M SDE"}  # the same sampler by another name
    assert found.scheduler == others.get(request.scheduler, request.scheduler) or "its sampler" in said
    assert (found.layers == request.layers) or "strength in" in said
    assert all(len(note) < 400 for note in notes)
    again, more = fitted(studio, found, bounds) if on_page else fitted(studio, found)
    assert (again, more) == (found, [])


def test_what_the_user_has_chosen_stays(studio: Studio) -> None:
    request = replace(DrawRequest("a dog"), steps=10**4, width=20, seed=-1, scheduler="Restart", begin=1.0, end=0.0)
    chosen = ("steps", "width", "seed", "scheduler", "begin", "end")
    assert fitted(studio, request, chosen=chosen) == (request, [])


def test_every_change_is_told_in_words(studio: Studio) -> None:
    request = DrawRequest("a dog", seed=1033245876545643, width=20, steps=0, guidance_scale=float("nan"))
    request = replace(request, scheduler="LMS", begin=0.5, end=0.5)
    found, notes = fitted(studio, request)
    assert notes == [
        "its number of steps was 0; here it is 1",
        "its guidance was nan; here it is 7.5",
        "its width was 20; here it is 16, a multiple of 8",
        f"its seed was 1033245876545643, expected 0 to {MAX_SEED}; here it is {found.seed}",
        "its sampler 'LMS' cannot draw with this base (its solver is not here); 'DDIM' is chosen",
        "its subjects acted from 0.5 to 0.5 of denoising; here they act all the time",
    ]
    assert fitted(studio, replace(request, seed=-1))[1][3].endswith("a random one is taken")
    assert fitted(studio, DrawRequest("a dog", scheduler="dpmpp_2m_karras")) == (
        DrawRequest("a dog", scheduler="DPM++ 2M Karras"),
        [],
    )
