import pytest
import torch
from diffusers import (
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
)

from coeff_diffusion.inference.samplers import (
    SCHEDULERS,
    SchedulerError,
    compatible_schedulers,
    find_scheduler,
    has_zero_terminal_snr,
    make_scheduler,
    scheduler_label,
)

PLAIN = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}
ZERO_SNR = {
    **PLAIN,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}
KEEP_ZERO_SNR = ["DDIM", "DDPM", "Euler", "Euler a", "DPM++ 2M", "DPM++ 2M SDE", "UniPC"]


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_every_sampler_draws(name: str, steps: int, tiny_pipe: StableDiffusionPipeline) -> None:
    tiny_pipe.scheduler = make_scheduler(name, tiny_pipe.scheduler)
    latents = tiny_pipe(
        ["a dog"] * 2,
        num_inference_steps=steps,
        generator=[torch.Generator().manual_seed(i) for i in range(2)],
        output_type="latent",
    ).images
    assert torch.isfinite(latents).all()
    assert latents.abs().max() < 100


@pytest.mark.parametrize("name", KEEP_ZERO_SNR)
def test_zero_terminal_snr_and_prediction_survive(name: str, tiny_pipe: StableDiffusionPipeline) -> None:
    base = DDIMScheduler(**ZERO_SNR)
    made = make_scheduler(name, base)
    for key in ("prediction_type", "rescale_betas_zero_snr", "timestep_spacing", "beta_start", "beta_end"):
        assert made.config[key] == base.config[key], key
    made.set_timesteps(4)
    assert made.timesteps[0] == 999
    tiny_pipe.scheduler = made
    assert torch.isfinite(
        tiny_pipe("a dog", num_inference_steps=4, output_type="latent", guidance_rescale=0.7).images
    ).all()


def test_samplers_that_cannot_honour_the_base_are_refused() -> None:
    base = DDIMScheduler(**ZERO_SNR)
    assert compatible_schedulers(base) == KEEP_ZERO_SNR
    with pytest.raises(SchedulerError, match="'Heun' knows no zero terminal SNR.*use one of DDIM"):
        make_scheduler("Heun", base)
    with pytest.raises(SchedulerError, match="spends most of its steps on pure noise"):
        make_scheduler("DPM++ 2M Karras", base)
    with pytest.raises(SchedulerError, match="needs a base with a beta schedule"):
        make_scheduler("DDIM", FlowMatchEulerDiscreteScheduler())
    assert compatible_schedulers(DDIMScheduler(**PLAIN)) == list(SCHEDULERS)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("euler a", "Euler a"),
        ("EulerAncestralDiscreteScheduler", "Euler a"),
        ("dpm++2m karras", "DPM++ 2M Karras"),
        ("DPMSolverMultistep", "DPM++ 2M"),
        ("PNDM", "PLMS"),
        ("unipc", "UniPC"),
    ],
)
def test_names(name: str, label: str) -> None:
    assert find_scheduler(name) == label


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(SchedulerError, match="no scheduler 'Oiler'; use one of DDIM, DDPM, Euler"):
        find_scheduler("Oiler")


def test_labels_name_what_was_made() -> None:
    base = DDIMScheduler(**PLAIN)
    assert [scheduler_label(make_scheduler(name, base)) for name in SCHEDULERS] == list(SCHEDULERS)


def test_a_change_of_sampler_leaves_nothing_behind() -> None:
    karras = make_scheduler("DPM++ 2M Karras", DDIMScheduler(**PLAIN))
    again = make_scheduler("Euler", karras)
    assert not again.config.use_karras_sigmas
    assert scheduler_label(make_scheduler("DPM++ 2M", make_scheduler("DPM++ 2M SDE", karras))) == "DPM++ 2M"


def test_the_base_s_own_is_a_fresh_copy() -> None:
    base = PNDMScheduler(**{key: value for key, value in PLAIN.items() if key != "clip_sample"}, skip_prk_steps=True)
    made = make_scheduler(None, base)
    assert made is not base
    assert dict(made.config) == dict(base.config)
    assert not has_zero_terminal_snr(made)
    unlisted = LCMScheduler(**PLAIN)  # a base may come with a sampler that nobody else is offered
    assert type(make_scheduler(scheduler_label(unlisted), unlisted)) is LCMScheduler
