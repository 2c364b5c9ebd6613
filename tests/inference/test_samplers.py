import inspect
import re
from collections.abc import Callable

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    SchedulerMixin,
    StableDiffusionPipeline,
)

from coeff_diffusion.inference.samplers import (
    SCHEDULERS,
    SchedulerError,
    compatible_schedulers,
    find_scheduler,
    has_zero_terminal_snr,
    make_scheduler,
    most_steps,
    scheduler_label,
    steps_near,
)

NOISE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
PLAIN = {**NOISE, "clip_sample": False}
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
    with pytest.raises(SchedulerError, match="needs a base with a beta schedule.*; use the base's own, FlowMatchEuler"):
        make_scheduler("DDIM", FlowMatchEulerDiscreteScheduler())
    assert compatible_schedulers(DDIMScheduler(**PLAIN)) == list(SCHEDULERS)


# --- what is offered works --------------------------------------------------------------------------------------------

V, TRAILING = {"prediction_type": "v_prediction"}, {"timestep_spacing": "trailing"}
LEADING = {"timestep_spacing": "leading", "steps_offset": 1}
COSINE = {"beta_schedule": "squaredcos_cap_v2"}
ZERO = {"rescale_betas_zero_snr": True}
BASES: dict[str, SchedulerMixin] = {
    "SD 1.5": PNDMScheduler(**NOISE, skip_prk_steps=True, steps_offset=1),
    "SD 2.1": DDIMScheduler(**PLAIN, **V, steps_offset=1, set_alpha_to_one=False),
    "SDXL": EulerDiscreteScheduler(**NOISE, **LEADING),
    "zero SNR": DDIMScheduler(**ZERO_SNR),
    "zero SNR, evenly spaced": EulerDiscreteScheduler(**NOISE, **V, **ZERO, timestep_spacing="linspace"),
    "zero SNR, noise, leading": DDIMScheduler(**PLAIN, **ZERO, **LEADING),
    "zero SNR, noise, trailing": EulerDiscreteScheduler(**NOISE, **ZERO, **TRAILING),
    "trailing": DDIMScheduler(**PLAIN, **TRAILING),
    "sample": DDIMScheduler(**PLAIN, prediction_type="sample"),
    "linear": DDIMScheduler(beta_schedule="linear", clip_sample=False),
    "cosine": DDIMScheduler(**COSINE, clip_sample=False),
    "cosine, v, trailing": DDIMScheduler(**COSINE, **V, **TRAILING, clip_sample=False),
    "cosine, zero SNR": DDIMScheduler(**COSINE, **V, **TRAILING, **ZERO, clip_sample=False),
}
REFUSED = {
    "zero SNR": "Euler Karras, DPM++ 2M Karras, DPM++ 2M SDE Karras, Heun, PLMS",
    "zero SNR, evenly spaced": "Euler Karras, DPM++ 2M Karras, DPM++ 2M SDE Karras, Heun, PLMS",
    "zero SNR, noise, leading": "Euler Karras, DPM++ 2M Karras, DPM++ 2M SDE Karras, Heun, PLMS",
    "zero SNR, noise, trailing": "DDIM, DDPM, Euler Karras, DPM++ 2M Karras, DPM++ 2M SDE Karras, Heun, PLMS",
    "sample": "Euler a, PLMS",
    "cosine": "Euler Karras, Euler a, DPM++ 2M Karras, DPM++ 2M SDE Karras, Heun",
    "cosine, v, trailing": "Euler Karras, Euler a, DPM++ 2M Karras, DPM++ 2M SDE Karras, Heun",
    "cosine, zero SNR": "Euler Karras, DPM++ 2M Karras, DPM++ 2M SDE Karras, Heun, PLMS",
}
SPREAD = 0.5


def ideal(base: SchedulerMixin) -> Callable[[torch.Tensor, float], torch.Tensor]:
    """What a perfect model predicts where all numbers of a picture are normal, of this spread."""
    alphas = DDIMScheduler.from_config(base.config).alphas_cumprod.double()

    def predict(x: torch.Tensor, timestep: float) -> torch.Tensor:
        low = min(int(timestep), len(alphas) - 1)
        signal = alphas[low] + (timestep - low) * (alphas[min(low + 1, len(alphas) - 1)] - alphas[low])
        variance = signal * SPREAD**2 + 1 - signal
        sample, noise = signal.sqrt() * SPREAD**2 / variance * x, (1 - signal).sqrt() / variance * x
        velocity = signal.sqrt() * noise - (1 - signal).sqrt() * sample
        return {"epsilon": noise, "sample": sample, "v_prediction": velocity}[base.config.prediction_type].float()

    return predict


def drawn(label: str, base: SchedulerMixin, steps: int) -> torch.Tensor:
    """Latents that a sampler makes of noise with a perfect model."""
    scheduler, predict, generator = make_scheduler(label, base), ideal(base), torch.Generator().manual_seed(steps)
    scheduler.set_timesteps(steps)
    x = torch.randn(1, 4, 8, 8, generator=generator) * scheduler.init_noise_sigma
    options = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    for timestep in scheduler.timesteps:
        x = scheduler.step(predict(scheduler.scale_model_input(x, timestep), float(timestep)), timestep, x, **options)[
            0
        ]
    return x


@pytest.mark.parametrize("name", BASES)
def test_what_is_offered_draws_at_any_number_of_steps(name: str) -> None:
    base = BASES[name]
    refused = REFUSED[name].split(", ") if name in REFUSED else []
    assert compatible_schedulers(base) == [label for label in SCHEDULERS if label not in refused]
    for label in compatible_schedulers(base):
        for steps in (1, 2, 3, 4, 5, 6, 8, 13, 21, 22, 37):  # all of 1 to 50 take minutes, and find no more
            found = drawn(label, base, steps)
            assert torch.isfinite(found).all(), (label, steps)
            if steps > 20:  # as many as people take: it is a picture
                assert abs(found.std() - SPREAD) < 0.2, (label, steps)


@pytest.mark.parametrize("name", ["SD 1.5", "SDXL", "zero SNR", "trailing"])
def test_the_most_steps_that_are_allowed_can_be_taken(name: str) -> None:
    """A schedule of 30 steps in place of 1,000: what goes wrong at its end does so there, too, and soon."""
    base = type(BASES[name]).from_config(BASES[name].config, num_train_timesteps=30)
    for label in compatible_schedulers(base):
        assert torch.isfinite(drawn(label, base, steps_near(base, most_steps(base)))).all(), label


def test_trailing_timesteps_that_run_past_the_end_are_avoided() -> None:
    for base in (BASES["trailing"], BASES["cosine, zero SNR"], BASES["SDXL"]):
        for steps in range(1, 131):
            near = steps_near(base, steps)
            scheduler = make_scheduler("Euler", base)
            scheduler.set_timesteps(near)
            assert scheduler.timesteps.min() >= 0
            assert len(scheduler.timesteps) == near
            scheduler.set_timesteps(steps)
            assert (near == steps) == (len(scheduler.timesteps) == steps)
    assert [n for n in range(1, 131) if steps_near(BASES["trailing"], n) != n] == [61, 103, 121, 122]
    assert steps_near(BASES["trailing"], 122) == 120


@pytest.mark.parametrize(("name", "label"), [(name, label) for name in REFUSED for label in REFUSED[name].split(", ")])
def test_what_is_refused_says_why(name: str, label: str) -> None:
    with pytest.raises(SchedulerError, match=rf"^scheduler '{re.escape(label)}' .*(base|schedule).*; use one of \w"):
        make_scheduler(label, BASES[name])


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
