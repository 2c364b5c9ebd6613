from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from coeff_diffusion.base import embedded_path
from coeff_diffusion.inference.preview import Preview, synthetic_pictures
from coeff_diffusion.inference.request import DrawProgress, DrawRequest
from coeff_diffusion.inference.studio import Studio

REQUEST = DrawRequest("a photo of the dog", seed=3, steps=3, width=24, height=16)


def landscape(side: int) -> Tensor:
    """Sky over a beach with a red ball on the right and a green bush on the left: `[1, 3, side, side]`, -1 to 1."""
    picture = torch.tensor([0.3, 0.6, 1.0])[:, None, None].repeat(1, side, side)
    third = side // 3
    picture[:, -third:] = torch.tensor([0.9, 0.8, 0.5])[:, None, None]
    picture[:, third : 2 * third, -third:] = torch.tensor([0.9, 0.1, 0.1])[:, None, None]
    picture[:, third : 2 * third, :third] = torch.tensor([0.1, 0.5, 0.1])[:, None, None]
    return picture[None] * 2 - 1


def likeness(image: Image.Image, picture: Tensor) -> float:
    """Correlation of two pictures over all pixels and colours."""
    expected = picture[0].movedim(0, -1).numpy().ravel()
    return float(np.corrcoef(np.asarray(image).ravel() / 255, expected)[0, 1])


def test_latents_of_a_full_autoencoder_show_their_picture(tiny_pipe: StableDiffusionPipeline) -> None:
    """Its weights are random, so what it encodes tells little of the colours; the map finds what there is."""
    picture = landscape(48)
    with torch.no_grad():
        latents = tiny_pipe.vae.encode(picture).latent_dist.mode() * tiny_pipe.vae.config.scaling_factor
    (image,) = Preview(tiny_pipe)(latents)
    assert image.size == (48, 48)
    assert likeness(image, picture) > 0.3


@pytest.fixture(scope="module")
def embedded_vae() -> AutoencoderTiny:
    return AutoencoderTiny.from_pretrained(embedded_path() / "vae")


class Distributed:
    """The embedded base's autoencoder in the form of a full one, which encodes to a distribution."""

    def __init__(self, vae: AutoencoderTiny) -> None:
        self.vae, self.config, self.dtype = vae, vae.config, vae.dtype

    def encode(self, pictures: Tensor) -> SimpleNamespace:
        latents = self.vae.encode(pictures).latents
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: latents))


@pytest.mark.parametrize("in_full", [True, False])
def test_latents_of_the_embedded_base_show_in_their_colours(
    tiny_pipe: StableDiffusionPipeline, embedded_vae: AutoencoderTiny, in_full: bool
) -> None:
    preview = Preview(tiny_pipe)
    preview(torch.zeros(1, 4, 8, 8))
    tiny_pipe.vae = embedded_vae if in_full else Distributed(embedded_vae)  # an exchanged one has its own decoder
    tiny_pipe.vae_scale_factor = 8
    picture = landscape(96)
    with torch.no_grad():
        latents = embedded_vae.encode(picture).latents * embedded_vae.config.scaling_factor
    (image,) = preview(latents)
    assert image.size == (96, 96)
    found = likeness(image, picture)
    assert found > (0.95 if in_full else 0.9)
    turned = [picture.flip(-1), picture.flip(-2), picture.mT, picture.roll(1, 1), picture[:, [2, 1, 0]]]
    assert all(likeness(image, other) < found - 0.1 for other in turned)
    error = np.abs(np.asarray(image) / 127.5 - 1 - picture[0].movedim(0, -1).numpy()).mean()
    assert error < 0.2  # of colours from -1 to 1


def test_what_the_map_is_fitted_to_has_every_colour() -> None:
    pictures = synthetic_pictures(32)
    assert torch.equal(pictures, synthetic_pictures(32))
    assert pictures.abs().max() <= 1
    assert torch.linalg.matrix_rank(pictures.movedim(1, -1).flatten(0, 2)) == 3
    assert pictures.std() > 0.3


def test_previews_of_a_drawing_change_nothing(tiny_pipe: StableDiffusionPipeline) -> None:
    studio = Studio(tiny_pipe)
    request = replace(REQUEST, batch_size=2, scheduler="Euler a")
    expected = studio.draw(request)
    state = torch.get_rng_state()
    seen: list[list[Image.Image]] = []
    found = studio.draw(request, lambda progress: seen.append(studio.preview(progress)))
    assert [[image.size for image in images] for images in seen] == [[(24, 16)] * 2] * 3
    assert [p.image.tobytes() for p in found] == [p.image.tobytes() for p in expected]
    assert torch.equal(torch.get_rng_state(), state)
    assert seen[-1][0].tobytes() != seen[-1][1].tobytes()
    # Where a sampler tells nothing of the end, its latents are shown as they are.
    latents = torch.randn(1, 4, 8, 8)
    progress = DrawProgress(1, 2, 0.1, latents)
    assert studio.preview(progress)[0].tobytes() == Preview(tiny_pipe)(latents)[0].tobytes()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e30])
def test_numbers_that_broke_up_are_no_error(tiny_pipe: StableDiffusionPipeline, value: float) -> None:
    (image,) = Preview(tiny_pipe)(torch.full((1, 4, 8, 8), value))
    assert image.size == (16, 16)


def test_half_precision(tiny_pipe: StableDiffusionPipeline) -> None:
    latents = torch.randn(1, 4, 8, 8)
    exact = Preview(tiny_pipe)(latents)[0]
    tiny_pipe.to(torch.bfloat16)
    found = Preview(tiny_pipe)(latents.bfloat16())[0]
    assert np.corrcoef(np.asarray(found).ravel(), np.asarray(exact).ravel())[0, 1] > 0.9


def test_without_a_preview_the_drawing_goes_on_and_says_so_once(
    tiny_pipe: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(pictures: Tensor) -> None:
        raise RuntimeError("out of memory")

    studio = Studio(tiny_pipe)
    expected = studio.draw(REQUEST)[0].image.tobytes()
    monkeypatch.setattr(tiny_pipe.vae, "encode", encode)
    seen: list[list[Image.Image]] = []
    with pytest.warns(UserWarning, match=r"no previews .* AutoencoderKL refused \(out of memory\)") as caught:
        drawn = studio.draw(REQUEST, lambda progress: seen.append(studio.preview(progress)))
    assert len(caught) == 1
    assert seen == [[], [], []]
    assert drawn[0].image.tobytes() == expected
