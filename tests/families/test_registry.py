"""Every family, by the same questions."""

from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel, StableDiffusionPipeline, StableDiffusionXLPipeline

from coeff_diffusion.families.family import Family
from coeff_diffusion.families.layout import layout_of
from coeff_diffusion.families.registry import (
    FAMILIES,
    FamilyError,
    architecture,
    by_denoiser,
    by_pipeline,
    denoiser_of,
    encoders_of,
    family_of,
    sites_of,
)
from coeff_diffusion.families.shared_weights import shared_pipeline


@pytest.fixture(params=[family.pipeline for family in FAMILIES])
def pipe(request: pytest.FixtureRequest) -> Any:
    """A tiny pipeline of each family."""
    known = {"StableDiffusionPipeline": "tiny_pipe", "StableDiffusionXLPipeline": "tiny_xl_pipe"}
    return request.getfixturevalue(known[request.param])


@pytest.fixture
def family(pipe: Any) -> Family:
    return family_of(pipe)


def test_a_pipeline_is_of_one_family(pipe: Any, family: Family) -> None:
    assert by_pipeline(type(pipe).__name__) is family
    assert [one for one in FAMILIES if one.recognizes(denoiser_of(pipe).config)] == [family]
    assert architecture(denoiser_of(pipe)) == "custom"
    assert encoders_of(pipe).keys() == set(family.text_encoders)


def test_published_denoisers_have_names() -> None:
    names = {title: family.architecture(layout) for family in FAMILIES for title, layout in _configs(family).items()}
    assert names == {
        "Stable Diffusion 1.x": "stable-diffusion-v1",
        "Stable Diffusion 2.x": "stable-diffusion-v2",
        "Stable Diffusion XL": "stable-diffusion-xl-v1-base",
        "Stable Diffusion XL refiner": "stable-diffusion-xl-v1-refiner",
        "SSD-1B": "ssd-1b",
        "Segmind Vega": "segmind-vega",
    }


def _configs(family: Family) -> dict[str, Any]:
    import diffusers

    kind = getattr(diffusers, family.denoiser_classes[0])
    with torch.device("meta"):
        return {title: kind.from_config(dict(config)).config for title, config in family.known.items()}


def test_prediction_is_the_pipelines_own(pipe: Any, family: Family) -> None:
    """What training asks the denoiser is what the pipeline asks it: same call, same answer."""
    size, prompts, asked = family.size(pipe), ["a dog", "a red cat"], []
    denoiser = denoiser_of(pipe)
    handle = denoiser.register_forward_hook(
        lambda module, args, kwargs, output: asked.append((args, kwargs, output[0])), with_kwargs=True
    )
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    pipe(prompts, num_inference_steps=1, guidance_scale=1.0, generator=generators, output_type="latent")
    handle.remove()
    (noised, timestep), _, expected = asked[0]
    with torch.no_grad():
        condition = family.condition(pipe, prompts, size)
        found = family.predict(denoiser, noised, timestep.expand(2), condition)
    assert {len(tensor) for tensor in condition.values()} == {2}
    torch.testing.assert_close(found, expected)


def test_sizes_are_those_the_pipeline_takes(pipe: Any, family: Family) -> None:
    assert family.size(pipe) == (16, 16)
    assert family.training_multiple(pipe) % family.multiple(pipe) == 0
    width, height = family.size(pipe)
    assert pipe("a dog", num_inference_steps=1, output_type="np").images.shape[1:3] == (height, width)


def test_a_shared_pipeline_draws_the_same(pipe: Any) -> None:
    def draw(one: Any) -> Any:
        one.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        return one("a dog", num_inference_steps=2, generator=generator, output_type="latent").images

    other = shared_pipeline(pipe)
    assert torch.equal(draw(other), draw(pipe))
    assert dict(other.config).keys() >= dict(pipe.config).keys()  # what a pipeline was made with beside its parts
    assert all(a is not b for a, b in zip(encoders_of(other).values(), encoders_of(pipe).values(), strict=True))
    assert all(a.data_ptr() == b.data_ptr() for a, b in zip(
        denoiser_of(other).parameters(), denoiser_of(pipe).parameters(), strict=True))  # fmt: skip


def test_a_layout_apart_has_the_same_layers_and_no_weights(pipe: Any) -> None:
    layout = layout_of(pipe)
    apart = layout.apart()
    assert (apart.heads, apart.fingerprint, apart.widths) == (layout.heads, layout.fingerprint, layout.widths)
    assert apart.heads == {path: site.heads for path, site in sorted(sites_of(denoiser_of(pipe)).items())}
    assert all(weight.is_meta for weight in apart.denoiser.parameters())


def test_what_is_none_of_them_is_named(
    tiny_pipe: StableDiffusionPipeline, tiny_xl_pipe: StableDiffusionXLPipeline
) -> None:
    with torch.device("meta"):
        flux = FluxTransformer2DModel(num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2)
    assert by_denoiser("FluxTransformer2DModel", flux.config) is None
    assert architecture(flux) == "custom"
    tiny_pipe.unet.register_to_config(encoder_hid_dim=64)  # as of Kandinsky 2.2 and Kolors
    tiny_xl_pipe.unet.register_to_config(encoder_hid_dim=64)
    for pipe in (tiny_pipe, tiny_xl_pipe):
        with pytest.raises(FamilyError, match=r"is of no known family; expected Stable Diffusion 1\.x .* XL"):
            family_of(pipe)
