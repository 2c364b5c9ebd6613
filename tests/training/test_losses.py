"""Targets, weights and the measured effect, against diffusers' own formulas."""

import math

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EDMDPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
)
from diffusers.training_utils import compute_snr

from coeff_diffusion.families.errors import BaseModelError
from coeff_diffusion.families.process import prediction_target, signal_to_noise, training_schedule
from coeff_diffusion.training.losses import min_snr_weights, squared_errors, training_loss
from coeff_diffusion.training.probe import Effect, Probe

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
KINDS = ["epsilon", "v_prediction", "sample"]


def schedule(kind: str = "epsilon", zero_snr: bool = False) -> DDPMScheduler:
    return training_schedule(
        DDIMScheduler(**BETAS, prediction_type=kind, rescale_betas_zero_snr=zero_snr, clip_sample=False).config
    )


@pytest.mark.parametrize("sampler", [DDIMScheduler, DDPMScheduler, PNDMScheduler, EulerDiscreteScheduler])
def test_the_schedule_is_the_base_own(sampler: type) -> None:
    base = sampler(**BETAS, prediction_type="v_prediction")
    ours = training_schedule(base.config)
    assert torch.equal(ours.alphas_cumprod, base.alphas_cumprod)
    assert ours.config.prediction_type == "v_prediction"


def test_zero_terminal_snr_is_kept() -> None:
    assert schedule().alphas_cumprod[-1] > 0
    assert schedule(zero_snr=True).alphas_cumprod[-1] == 0


def test_other_processes_are_refused() -> None:
    for other in (FlowMatchEulerDiscreteScheduler(), EDMDPMSolverMultistepScheduler()):  # the second is Playground's
        with pytest.raises(BaseModelError, match=r"has no betas \(EDM, .*; expected Stable Diffusion 1\.x, 2\.x or XL"):
            training_schedule(other.config)
    with pytest.raises(BaseModelError, match="predicts 'flow'"):
        training_schedule({**BETAS, "_class_name": "DDIMScheduler", "prediction_type": "flow"})


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_prediction_gives_back_the_latents(kind: str, zero_snr: bool) -> None:
    """The target is what diffusers' own sampler turns back into the clean latents, at every timestep it can."""
    noise_schedule = schedule(kind, zero_snr)
    sampler = DDIMScheduler(
        **BETAS, prediction_type=kind, rescale_betas_zero_snr=zero_snr, clip_sample=False, set_alpha_to_one=False
    )
    sampler.set_timesteps(1000)
    latents, noise = torch.randn(1, 4, 8, 8).double(), torch.randn(1, 4, 8, 8).double()
    for step in (1, 300, 998, 999):
        if kind == "epsilon" and zero_snr and step == 999:
            continue  # nothing of the latents is left, and the noise does not tell
        timesteps = torch.tensor([step])
        noised = noise_schedule.add_noise(latents, noise, timesteps)
        target = prediction_target(noise_schedule, latents, noise, timesteps)
        found = sampler.step(target, step, noised).pred_original_sample
        torch.testing.assert_close(found, latents, atol=2e-3, rtol=0)


@pytest.mark.parametrize("zero_snr", [False, True])
def test_signal_to_noise_is_diffusers(zero_snr: bool) -> None:
    timesteps = torch.arange(1000)
    torch.testing.assert_close(
        signal_to_noise(schedule(zero_snr=zero_snr), timesteps), compute_snr(schedule(zero_snr=zero_snr), timesteps),
        rtol=1e-4, atol=1e-7,
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_min_snr_weights_as_in_diffusers_scripts(kind: str) -> None:
    snr = compute_snr(schedule(kind), torch.arange(1000))
    least = torch.stack([snr, 5.0 * torch.ones_like(snr)], dim=1).min(dim=1)[0]
    expected = {"epsilon": least / snr, "v_prediction": least / (snr + 1), "sample": least}[kind]
    torch.testing.assert_close(min_snr_weights(snr, 5.0, kind), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_min_snr_weighs_the_latents_error_alike(kind: str) -> None:
    """Whatever is predicted, the same error of the implied latents costs the same: min(snr, gamma)."""
    noise_schedule, timesteps = schedule(kind), torch.tensor([10, 200, 600, 950])
    latents, noise, error = torch.randn(4, 4, 8, 8), torch.randn(4, 4, 8, 8), torch.randn(4, 4, 8, 8)
    alpha = noise_schedule.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    # An error of the latents, with the noised latents held fixed, as an error of each kind of prediction.
    moved = {
        "sample": error,
        "epsilon": -error * (alpha / (1 - alpha)).sqrt(),
        "v_prediction": -error / (1 - alpha).sqrt(),
    }[kind]
    target = prediction_target(noise_schedule, latents, noise, timesteps)
    snr = signal_to_noise(noise_schedule, timesteps)
    weighted = squared_errors(target + moved, target) * min_snr_weights(snr, 5.0, kind)
    torch.testing.assert_close(
        weighted, squared_errors(error, torch.zeros(())) * snr.clamp(max=5), rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize(("kind", "expected"), [("epsilon", 1.0), ("v_prediction", 0.0), ("sample", 0.0)])
def test_min_snr_is_finite_at_zero_snr(kind: str, expected: float) -> None:
    snr = signal_to_noise(schedule(kind, zero_snr=True), torch.tensor([999]))
    assert snr.item() == 0
    assert min_snr_weights(snr, 5.0, kind).item() == expected


def test_no_gamma_no_weights() -> None:
    assert torch.equal(min_snr_weights(torch.rand(4), None, "epsilon"), torch.ones(4))
    with pytest.raises(ValueError, match="unknown prediction type"):
        min_snr_weights(torch.rand(4), 5.0, "flow")


def test_prior_loss() -> None:
    errors, weights = torch.tensor([1.0, 2.0, 3.0, 5.0]), torch.tensor([1.0, 0.5, 1.0, 2.0])
    assert training_loss(errors, weights).item() == pytest.approx((1 + 1 + 3 + 10) / 4)
    assert training_loss(errors, weights, 2, 0.5).item() == pytest.approx((1 + 1) / 2 + 0.5 * (3 + 10) / 2)


def test_errors_are_measured_in_float32() -> None:
    errors = squared_errors(torch.full((1, 4, 8, 8), 300.0, dtype=torch.float16), torch.zeros(1, 4, 8, 8))
    assert errors.dtype == torch.float32
    assert errors.item() == 90_000  # beyond float16


def test_what_a_mask_hides_leaves_no_gradient() -> None:
    prediction, target = torch.randn(2, 4, 8, 8, requires_grad=True), torch.randn(2, 4, 8, 8)
    weights = torch.zeros(2, 1, 8, 8)
    weights[0, :, 2:5, 3:6] = 64 / 9
    weights[1] = 1
    errors = squared_errors(prediction, target, weights)
    (gradient,) = torch.autograd.grad(errors.sum(), prediction)
    assert torch.equal(gradient[0].abs().sum(0) > 0, weights[0, 0] > 0)
    plain = squared_errors(prediction, target)
    torch.testing.assert_close(errors[1], plain[1])
    torch.testing.assert_close(errors[0], (prediction - target)[0, :, 2:5, 3:6].square().mean())


def test_the_effect_is_that_on_what_the_mask_shows() -> None:
    weights = torch.zeros(3, 1, 8, 8)
    weights[..., :4, :] = 2
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    found = Probe.draw(schedule(), latents, 7, weights)
    better = found.noised.clone()
    better[..., :4, :] = found.target[..., :4, :]
    assert found.effect(found.noised, better).improvement == 1
    worse = found.noised.clone()
    worse[..., 4:, :] = found.target[..., 4:, :]
    assert found.effect(found.noised, worse).improvement == 0


def probe(kind: str = "epsilon") -> Probe:
    return Probe.draw(schedule(kind), torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0)), seed=7)


def test_a_probe_is_the_same_for_the_same_seed() -> None:
    first, second = probe(), probe()
    assert torch.equal(first.noised, second.noised)
    assert list(first.pictures) == [number % 3 for number in range(40)]
    assert first.timesteps.tolist() == [int(12.5 + 25 * number) for number in range(40)]


def test_effect_of_nothing_and_of_perfection() -> None:
    found = probe()

    def base(noised: torch.Tensor, timesteps: torch.Tensor, pictures: object) -> torch.Tensor:
        return noised * 0.5

    before = found.predict(base, batch_size=4)
    assert before.shape == found.noised.shape
    nothing = found.effect(before, before)
    assert (nothing.change, nothing.improvement) == (0, 0)
    assert "learned nothing" in str(nothing.advice())
    perfect = found.effect(before, found.target)
    assert perfect.improvement == 1
    assert perfect.change > 0.1
    assert perfect.advice() is None


def test_effect_for_the_worse() -> None:
    worse = Effect(change=0.3, loss_before=0.2, loss_after=0.3)
    assert math.isclose(worse.improvement, -0.5)
    assert "lower the learning rates" in str(worse.advice())
    slight = Effect(change=0.02, loss_before=0.2, loss_after=0.1999)
    assert "--max_train_steps" in str(slight.advice())
