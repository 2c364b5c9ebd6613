"""The second pass: diffusers' own image to image over what was drawn and enlarged, and again from its file."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from control_nets import make_net
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline, StableDiffusionXLImg2ImgPipeline
from PIL import Image
from subject_maker import make_subject

from coeff_diffusion.commands.generate import generate
from coeff_diffusion.commands.generate_config import GenerateConfig
from coeff_diffusion.images.control_picture import ControlPicture
from coeff_diffusion.images.generation_info import parse_parameters
from coeff_diffusion.images.start_picture import StartPicture
from coeff_diffusion.inference.limits import check_limits, within_limits
from coeff_diffusion.inference.replay import Replay
from coeff_diffusion.inference.request import DrawCancelled, DrawProgress, DrawRequest, StudioError
from coeff_diffusion.inference.second_pass import steps_to_ask
from coeff_diffusion.inference.studio import Studio
from coeff_diffusion.inference.upscaling import Upscaler
from coeff_diffusion.serving.shared_batches import SharedBatches
from coeff_diffusion.sources.library import Library

REQUEST = DrawRequest("a sks dog on grass", seed=3, steps=4, hires_scale=2.0, hires_denoising_strength=0.5)


@pytest.fixture
def studio(tiny_pipe: StableDiffusionPipeline) -> Studio:
    return Studio(tiny_pipe)


def same(first: Image.Image, second: Image.Image) -> bool:
    return first.size == second.size and first.tobytes() == second.tobytes()


def first_pass(request: DrawRequest) -> DrawRequest:
    return request.without("hires_scale")


@pytest.mark.parametrize("steps", [0, 3])
def test_it_is_diffusers_image_to_image_over_the_enlarged_picture(studio: Studio, steps: int) -> None:
    request = replace(REQUEST, hires_steps=steps)
    small = studio.draw(first_pass(request))[0].image
    sibling = StableDiffusionImg2ImgPipeline.from_pipe(studio.pipe)
    _check(studio, sibling, request, small, {})


def test_it_is_that_of_xl_with_both_prompts(tiny_xl_pipe: Any) -> None:
    studio, request = Studio(tiny_xl_pipe), replace(REQUEST, prompt_2="a red house", guidance_rescale=0.5)
    small = studio.draw(first_pass(request))[0].image
    sibling = StableDiffusionXLImg2ImgPipeline.from_pipe(tiny_xl_pipe)
    _check(studio, sibling, request, small, {"prompt_2": "a red house", "guidance_rescale": 0.5})


def _check(studio: Studio, sibling: Any, request: DrawRequest, small: Image.Image, options: dict[str, Any]) -> None:
    sibling.set_progress_bar_config(disable=True)
    expected = sibling(
        request.prompt,
        image=small.resize((32, 32), Image.Resampling.LANCZOS),
        strength=0.5,
        num_inference_steps=2 * (request.hires_steps or 4),
        generator=torch.Generator().manual_seed(3),
        guidance_scale=7.5,
        **options,
    ).images[0]
    assert same(studio.draw(request)[0].image, expected)


def test_it_takes_as_many_steps_as_it_says(studio: Studio) -> None:
    own = studio.pipe.scheduler
    for strength in (0.05, 0.29, 0.3, 0.57, 0.99, 1.0):
        for taken in (1, 7, 20):
            asked = replace(REQUEST, hires_steps=taken, hires_denoising_strength=strength)
            found = steps_to_ask(asked, own)
            assert found is not None
            assert int(found * strength) == taken
    assert steps_to_ask(replace(REQUEST, hires_steps=100, hires_denoising_strength=0.05), own) is None


@pytest.mark.parametrize("scheduler", ["DDIM", "Heun", "PLMS"])
def test_both_passes_are_told_as_one(studio: Studio, scheduler: str) -> None:
    """Heun and PLMS call the denoiser more often than there are steps."""
    told: list[DrawProgress] = []
    request = replace(REQUEST, scheduler=scheduler, hires_steps=3)
    studio.draw(request, on_step=told.append)
    total = told[0].total
    assert [one.step for one in told] == list(range(1, total + 1))
    assert {one.total for one in told} == {total}
    assert told[-1].seconds_left == 0
    assert told[0].seconds_left > 0
    assert (told[0].latents.shape[-1], told[-1].latents.shape[-1]) == (8, 16)
    assert studio.preview(told[-1])[0].size == (32, 32)


def test_it_can_be_ended_in_the_second_pass(studio: Studio) -> None:
    told: list[DrawProgress] = []
    with pytest.raises(DrawCancelled):
        studio.draw(REQUEST, told.append, should_stop=lambda: len(told) == 6)
    assert len(told) == 6


def test_subjects_act_in_both_passes_by_their_triggers(studio: Studio) -> None:
    pipe, base = studio.pipe, studio.draw(replace(REQUEST, prompt="a dog on grass"))[0].image
    studio.load(make_subject(pipe.unet, pipe.text_encoder, "dog", "sks dog", "dog"))
    acting = replace(REQUEST, subjects={"dog": 1.0})
    both = studio.draw(acting)[0].image
    assert same(studio.draw(replace(acting, prompt="a dog on grass"))[0].image, base)
    assert same(studio.compare(acting)[0][0].image, base)
    # In the second one too: from one and the same first picture it draws something else without the subject.
    small = StartPicture(studio.draw(first_pass(acting))[0].image.resize((32, 32), Image.Resampling.LANCZOS))
    again = replace(first_pass(acting), start=small, denoising_strength=0.5, steps=8)
    assert same(studio.draw(again)[0].image, both)
    assert not same(studio.draw(replace(again, subjects={"dog": 0.0}))[0].image, both)
    # Where in a pass they act is said of each of the two.
    early = studio.draw(replace(acting, end=0.5))[0].image
    small = StartPicture(studio.draw(first_pass(replace(acting, end=0.5)))[0].image.resize((32, 32), 1))
    assert same(studio.draw(replace(again, start=small, end=0.5))[0].image, early)
    assert not same(early, both)


def test_each_picture_of_a_batch_is_drawn_again_from_itself(studio: Studio) -> None:
    requests = [replace(REQUEST, prompt=prompt, seed=seed) for seed, prompt in enumerate(("a cat", "a red house"))]
    for found, request in zip(studio.draw_batch(requests), requests, strict=True):
        alone = studio.draw(request)[0].image
        pairs = zip(found.image.tobytes(), alone.tobytes(), strict=True)
        assert max(abs(a - b) for a, b in pairs) <= 1
    with pytest.raises(StudioError, match=r"hires_scale is 2\.0 and 1\.0, expected the same"):
        studio.draw_batch([requests[0], first_pass(requests[1])])


def test_a_controlnet_holds_both_passes(studio: Studio, tmp_path: Path) -> None:
    picture = Image.effect_noise((16, 16), 90).convert("RGB")
    control = ControlPicture(picture, net=str(make_net(studio.pipe.unet, tmp_path / "edges")))
    held = studio.draw(replace(REQUEST, control=control))[0].image
    small = studio.draw(replace(first_pass(REQUEST), control=control))[0].image
    larger = StartPicture(small.resize((32, 32), Image.Resampling.LANCZOS))
    again = replace(first_pass(REQUEST), start=larger, denoising_strength=0.5, steps=8)
    assert same(studio.draw(replace(again, control=control.fitted((32, 32))))[0].image, held)
    assert not same(studio.draw(again)[0].image, held)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": StartPicture(Image.new("RGB", (16, 16)))}, "a drawing from a picture has one pass; leave one of"),
        ({"hires_scale": 1.0}, r"hires_denoising_strength is given, but no second pass \(hires_scale\)"),
        ({"hires_scale": 5.0}, r"hires_scale is 5\.0, expected 1 to 4"),
        ({"hires_scale": 1.2}, r"hires_scale is 1\.2, which makes 16 x 16 pixels no larger"),
        ({"hires_denoising_strength": 0.0}, r"at which this base cannot draw a second pass of 4 steps \(hires_steps\)"),
        ({"hires_steps": -1}, "hires_steps is -1, expected at least 0"),
    ],
)
def test_what_cannot_be_is_said(studio: Studio, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(StudioError, match=message) as caught:
        studio.draw(replace(REQUEST, **changes))
    assert "\n" not in str(caught.value)


def test_others_ask_for_no_more_pixels_than_in_one_pass(studio: Studio, tmp_path: Path) -> None:
    large = replace(REQUEST, width=64, height=32)  # 64 is the most that the page's controls have for this base
    with pytest.raises(StudioError, match="hires_scale is 2, expected at most 1 at this size"):
        check_limits(studio, large)
    with pytest.raises(StudioError, match="hires_steps is 101, expected at most 100"):
        check_limits(studio, replace(REQUEST, hires_steps=101))
    (refused,) = SharedBatches(studio, Library(tmp_path)).draw([replace(REQUEST, hires_scale=4.5)])
    assert "hires_scale is 4.5, expected at most 4" in str(refused)
    found, _, (note,) = within_limits(studio, replace(REQUEST, width=32, height=32, hires_scale=3.0), None, ())
    assert (found.hires_scale, note) == (2.0, "its second pass was 3 times larger; here it is 2, unless you give "
                                         "--hires_scale 3")  # fmt: skip
    assert within_limits(studio, large, None, ())[0] == first_pass(large)
    assert within_limits(studio, large, None, ("hires_scale",))[0] == large


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.fixture
def draw(tiny_base_dir: Path, tmp_path: Path) -> Callable[..., tuple[list[Path], list[str]]]:
    def run(**changes: Any) -> tuple[list[Path], list[str]]:
        lines: list[str] = []
        given = {"base": str(tiny_base_dir), "output_dir": str(tmp_path / "out"), **changes}
        return generate(GenerateConfig(**given), lines.append), [one for one in lines if one.startswith("note")]

    return run


def test_a_drawing_is_drawn_again_from_its_file(
    draw: Callable[..., tuple[list[Path], list[str]]], tiny_pipe: Any, tmp_path: Path
) -> None:
    subject = make_subject(tiny_pipe.unet, tiny_pipe.text_encoder, "dog", "sks dog", "dog")
    subject.save(tmp_path / "dog.safetensors")
    settings = {
        "num_inference_steps": 2,
        "seed": 2,
        "hires_scale": 1.5,
        "hires_steps": 3,
        "upscale": 2,
        "batch_size": 2,
    }
    drawn, _ = draw(prompt=["a sks dog"], subject=[str(tmp_path / "dog.safetensors")], embed_subjects=True,
                    settings=settings)  # fmt: skip
    with Image.open(drawn[1]) as picture:
        assert picture.size == (48, 48)
        assert "Size: 16x16" in picture.info["parameters"]
        said = "Hires upscale: 1.5, Denoising strength: 0.3, Hires steps: 3, Hires upscaler: Lanczos, Postprocess"
        assert said in picture.info["parameters"]
    again, notes = draw(from_picture=str(drawn[1]))
    assert same(Image.open(again[0]), Image.open(drawn[1]))
    assert notes == []
    once, _ = draw(from_picture=str(drawn[1]), settings={"hires_scale": 1.0, "upscale": 1})
    with Image.open(once[0]) as picture:
        assert picture.size == (16, 16)


def test_what_a1111_writes_is_read() -> None:
    text = "a cat\nSteps: 8, Seed: 7, Size: 128x128, {}Denoising strength: 0.4, Hires upscale: {}, Hires upscaler: {}"
    found = parse_parameters(text.format("Hires steps: 10, ", 2, "Lanczos"))
    assert (found.hires_scale, found.hires_steps, found.hires_denoising_strength) == (2.0, 10, 0.4)
    assert (found.denoising_strength, found.extra, found.notes) == (None, {}, ())
    assert Replay(Path("a.png"), found, ()).request()[0].hires_denoising_strength == 0.4
    # A second pass of the same size, or of no size, is none here, and named.
    for scale, named in (("1", "Denoising strength 0.4"), ("many", "its Hires upscale is 'many', expected a number")):
        found = parse_parameters(text.format("", scale, "Latent"))
        assert not found.has("hires_scale")
        assert found.hires_denoising_strength is None
        assert any(named in note for note in Replay(Path("a.png"), found, ()).notes)


def test_another_upscaler_is_named() -> None:
    text = "a\nSteps: 4, Seed: 1, Hires upscale: 2, Hires upscaler: Latent, Denoising strength: 0.4"
    replay = Replay(Path("a.png"), parse_parameters(text), ())
    assert "a.png was enlarged by 'Latent'" in replay.other_upscaler(Upscaler())[0]
