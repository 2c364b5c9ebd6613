"""Image to image and inpainting: diffusers' own results, with subjects, and again from what was drawn."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from subject_maker import make_subject

from coeff_diffusion import load_coefficients, unload_coefficients
from coeff_diffusion.commands.generate import generate
from coeff_diffusion.commands.generate_config import GenerateConfig
from coeff_diffusion.images.files import read_parameters
from coeff_diffusion.images.generation_info import PictureError
from coeff_diffusion.images.png import TEXT_KINDS, read_chunks, with_chunks
from coeff_diffusion.images.start_picture import StartPicture
from coeff_diffusion.inference.request import DrawRequest, StudioError
from coeff_diffusion.inference.samplers import make_scheduler, steps_near
from coeff_diffusion.inference.studio import Studio

SIDE = 32
PROMPT = "a photo of the pot on grass"


def picture(width: int = SIDE, height: int = SIDE) -> Image.Image:
    y, x = np.indices((height, width))
    return Image.fromarray(np.stack([x * 7 % 256, y * 5 % 256, (x + y) * 3 % 256], axis=2).astype(np.uint8))


def half(width: int = SIDE, height: int = SIDE) -> Image.Image:
    """A mask of the right half."""
    mask = Image.new("L", (width, height))
    ImageDraw.Draw(mask).rectangle((width // 2, 0, width, height), fill=255)
    return mask


WHOLE, RIGHT = StartPicture(picture()), StartPicture(picture(), half())
REQUEST = DrawRequest(PROMPT, seed=3, steps=4, start=WHOLE)


def pixels(image: Image.Image) -> NDArray[Any]:
    return np.asarray(image, dtype=np.int16)


def same(first: Image.Image, second: Image.Image) -> bool:
    return first.size == second.size and bool((pixels(first) == pixels(second)).all())


@pytest.fixture
def studio(tiny_pipe: StableDiffusionPipeline) -> Studio:
    return Studio(tiny_pipe)


def by_diffusers(sibling: Any, request: DrawRequest, **options: Any) -> Image.Image:
    assert request.start is not None
    assert request.seed is not None
    sibling.set_progress_bar_config(disable=True)
    image: Image.Image = sibling(
        request.prompt,
        image=request.start.image,
        strength=0.75 if request.denoising_strength is None else request.denoising_strength,
        num_inference_steps=request.steps,
        generator=torch.Generator().manual_seed(request.seed),
        guidance_scale=7.5,
        **options,
    ).images[0]
    return image


# --- what diffusers does ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [None, 0.5, 1.0])
def test_it_is_diffusers_image_to_image(studio: Studio, strength: float | None) -> None:
    request = replace(REQUEST, denoising_strength=strength)
    expected = by_diffusers(StableDiffusionImg2ImgPipeline.from_pipe(studio.pipe), request)
    assert same(studio.draw(request)[0].image, expected)


def test_it_is_that_of_xl_with_both_prompts(tiny_xl_pipe: StableDiffusionXLPipeline) -> None:
    request = replace(REQUEST, prompt_2="a red house")
    expected = by_diffusers(StableDiffusionXLImg2ImgPipeline.from_pipe(tiny_xl_pipe), request, prompt_2="a red house")
    assert same(Studio(tiny_xl_pipe).draw(request)[0].image, expected)


@pytest.mark.parametrize("scheduler", ["DDIM", "Euler", "DPM++ 2M"])
def test_what_changes_is_diffusers_inpainting(studio: Studio, scheduler: str) -> None:
    """Of four channels, which that takes; its mask covers whole latents here."""
    request = replace(REQUEST, start=RIGHT, mask_blur=0, scheduler=scheduler)
    found = studio.draw(request)[0].image
    studio.pipe.scheduler = make_scheduler(scheduler, studio.pipe.scheduler)
    sibling = StableDiffusionInpaintPipeline.from_pipe(studio.pipe)
    expected = by_diffusers(sibling, request, mask_image=half(), height=SIDE, width=SIDE)
    right = pixels(half()) == 255
    assert np.abs(pixels(found) - pixels(expected))[right].max() <= 1
    assert (pixels(found) == pixels(picture()))[~right].all()


# --- what stays -------------------------------------------------------------------------------------------------------


def test_what_is_not_painted_stays_pixel_by_pixel(studio: Studio) -> None:
    mask = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(mask).line((5, 9, 11, 9), fill=255)  # thinner than latents are
    start = StartPicture(picture(), mask)
    found = pixels(studio.draw(replace(REQUEST, start=start, mask_blur=0, denoising_strength=1.0))[0].image)
    changed = (found != pixels(picture())).any(2)
    assert changed.any()
    assert not (changed & (np.asarray(mask) == 0)).any()


def test_its_edge_is_soft(studio: Studio) -> None:
    hard, soft = (studio.draw(replace(REQUEST, start=RIGHT, mask_blur=blur))[0].image for blur in (0, 2))
    step = np.abs(pixels(hard) - pixels(soft)).max((0, 2))  # by column
    assert step[SIDE // 2 - 1] > 0
    assert step[0] == step[-1] == 0
    usual = studio.draw(replace(REQUEST, start=RIGHT))[0]
    assert usual.request.mask_blur == 4


def test_less_change_is_nearer_to_the_picture(studio: Studio) -> None:
    far = [
        np.abs(
            pixels(studio.draw(replace(REQUEST, steps=20, denoising_strength=s))[0].image) - pixels(picture())
        ).mean()
        for s in (0.1, 0.5, 1.0)
    ]
    assert far[0] < far[1] < far[2]


@pytest.mark.parametrize("start", [WHOLE, RIGHT], ids=["whole", "masked"])
def test_every_sampler_can(studio: Studio, start: StartPicture) -> None:
    for scheduler in studio.schedulers:
        steps = steps_near(studio.pipe.scheduler, 8)
        found = studio.draw(replace(REQUEST, start=start, steps=steps, scheduler=scheduler))[0]
        assert not same(found.image, picture()), scheduler


def test_a_batch_draws_each_as_alone(studio: Studio) -> None:
    batch = studio.draw(replace(REQUEST, start=RIGHT, batch_size=3))
    assert not same(batch[0].image, batch[1].image)
    alone = studio.draw(batch[2].request)[0]
    assert np.abs(pixels(alone.image) - pixels(batch[2].image)).max() <= 1


def test_several_prompts_from_one_picture_at_once(studio: Studio) -> None:
    requests = [replace(REQUEST, start=StartPicture(picture(), half()), prompt=one) for one in (PROMPT, "a red cat")]
    for found, request in zip(studio.draw_batch(requests), requests, strict=True):
        assert np.abs(pixels(found.image) - pixels(studio.draw(request)[0].image)).max() <= 1
    with pytest.raises(StudioError, match="expected the same for all pictures of a batch"):
        studio.draw_batch([requests[0], REQUEST])


# --- subjects ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [WHOLE, RIGHT], ids=["whole", "masked"])
def test_a_subject_acts_where_its_trigger_stands(studio: Studio, start: StartPicture) -> None:
    pipe = studio.pipe
    request = replace(REQUEST, start=start, prompt="a sks dog on grass")
    base = studio.draw(replace(request, prompt="a dog on grass"))[0].image
    studio.load(make_subject(pipe.unet, pipe.text_encoder, "dog", "sks dog", "dog"))
    acting = replace(request, subjects={"dog": 1.0})
    assert not same(studio.draw(acting)[0].image, base)
    assert same(studio.draw(replace(acting, prompt="a dog on grass"))[0].image, base)
    drawn_by_base, drawn = studio.compare(acting)
    assert same(drawn_by_base[0].image, base)
    assert same(drawn[0].image, studio.draw(acting)[0].image)
    studio.unload("dog")
    assert same(studio.draw(replace(request, prompt="a dog on grass"))[0].image, base)


def test_a_subject_acts_as_in_a_pipeline_of_ones_own(studio: Studio) -> None:
    pipe = studio.pipe
    subject = make_subject(pipe.unet, pipe.text_encoder, "dog", "sks dog", "dog")
    request = replace(REQUEST, prompt="a sks dog on grass")
    sibling = StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    load_coefficients(sibling, subject)
    expected = by_diffusers(sibling, request)
    unload_coefficients(sibling)
    studio.load(subject)
    assert same(studio.draw(replace(request, subjects={"dog": 1.0}))[0].image, expected)


def test_the_pipeline_is_as_before(studio: Studio) -> None:
    plain = studio.draw(REQUEST.without("start"))[0].image
    before = dict(vars(studio.pipe))
    studio.draw(replace(REQUEST, start=RIGHT))
    assert vars(studio.pipe).keys() == before.keys()
    assert all(vars(studio.pipe)[name] is part for name, part in before.items() if name in studio.pipe.components)
    assert same(studio.draw(REQUEST.without("start"))[0].image, plain)


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((24, 32), (24, 32)),  # the base can draw it as it is
        ((16, 16), (16, 16)),
        ((4000, 3000), (16, 16)),  # the nearest shape of those that the base knows
        ((300, 4000), (8, 32)),
        ((17, 16), (16, 16)),
        ((8, 8), (8, 8)),
    ],
)
def test_the_shape_is_that_of_the_picture(studio: Studio, size: tuple[int, int], expected: tuple[int, int]) -> None:
    found = studio.draw(replace(REQUEST, start=StartPicture(picture(*size), half(*size)), steps=2))[0]
    assert found.image.size == expected
    assert found.request.start is not None
    assert found.request.start.image.size == expected
    asked = studio.draw(replace(REQUEST, start=StartPicture(picture(*size)), width=16, height=24))[0]
    assert asked.image.size == (16, 24)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": None, "denoising_strength": 0.5}, "denoising_strength is given, but no picture to start from"),
        ({"start": None, "mask_blur": 1}, "mask_blur is given, but no picture to start from"),
        ({"mask_blur": 1}, "mask_blur is given, but no mask"),
        ({"denoising_strength": 0.2}, "denoising_strength 0.2 of 4 steps is less than one step"),
        ({"denoising_strength": 1.5}, "denoising_strength is 1.5, expected 0 to 1"),
        ({"guidance_rescale": 0.5}, "guidance_rescale is 0.5, but drawings from a picture have none here"),
    ],
)
def test_what_cannot_be_is_said(studio: Studio, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(StudioError, match=message):
        studio.draw(replace(REQUEST, **changes))


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tiny_pipe: StableDiffusionPipeline, tmp_path: Path) -> Path:
    subject = make_subject(tiny_pipe.unet, tiny_pipe.text_encoder, "dog", "sks dog", "dog")
    subject.save(tmp_path / "dog.safetensors")
    picture(40, 24).save(tmp_path / "photo.png")
    half(40, 24).save(tmp_path / "mask.png")
    return tmp_path


def config(files: Path, base: Path, **changes: Any) -> GenerateConfig:
    given: dict[str, Any] = {
        "prompt": ["a sks dog on grass"],
        "subject": [str(files / "dog.safetensors")],
        "embed_subjects": True,
        "base": str(base),
        "init_image": str(files / "photo.png"),
        "mask": str(files / "mask.png"),
        "settings": {"num_inference_steps": 4, "seed": 2, "denoising_strength": 0.5},
        "output_dir": str(files / "out"),
    }
    return GenerateConfig(**given | changes)


def again(path: Path, base: Path, files: Path, **changes: Any) -> tuple[Path, list[str]]:
    lines: list[str] = []
    asked = GenerateConfig(from_picture=str(path), base=str(base), output_dir=str(files / "again"), **changes)
    return generate(asked, lines.append)[-1], lines


def test_a_picture_is_drawn_again_from_its_file_alone(files: Path, tiny_base_dir: Path) -> None:
    lines: list[str] = []
    (drawn,) = generate(config(files, tiny_base_dir), lines.append)
    assert "which carries 'dog' (" in lines[-1]
    assert ", the picture that it was drawn from: " in lines[-1]
    said = read_parameters(drawn)
    assert (said.denoising_strength, said.mask_blur, said.width, said.height) == (0.5, 4, 16, 16)
    found, lines = again(drawn, tiny_base_dir, files)
    assert same(Image.open(found), Image.open(drawn))
    assert not [line for line in lines if line.startswith("note")]


def test_one_of_a_batch_too(files: Path, tiny_base_dir: Path) -> None:
    settings = {"num_inference_steps": 4, "seed": 2, "batch_size": 2}
    drawn = generate(config(files, tiny_base_dir, settings=settings), lambda line: None)
    found, _ = again(drawn[1], tiny_base_dir, files)
    assert same(Image.open(found), Image.open(drawn[1]))


def test_a_picture_that_lacks_what_it_was_drawn_from_asks_for_it(files: Path, tiny_base_dir: Path) -> None:
    (drawn,) = generate(config(files, tiny_base_dir, embed_init_image=False), lambda line: None)
    with pytest.raises(StudioError, match="was drawn from a picture that it does not carry; give it with --init_image"):
        again(drawn, tiny_base_dir, files)
    photo, mask = str(files / "photo.png"), str(files / "mask.png")
    found, lines = again(drawn, tiny_base_dir, files, init_image=photo, mask=mask)
    assert same(Image.open(found), Image.open(drawn))
    assert not [line for line in lines if line.startswith("note")]
    found, lines = again(drawn, tiny_base_dir, files, init_image=photo)
    assert any("was not drawn from this picture; it will not be the same" in line for line in lines)


def test_another_mask_over_the_picture_that_is_carried(files: Path, tiny_base_dir: Path) -> None:
    (drawn,) = generate(config(files, tiny_base_dir, mask=None), lambda line: None)
    half(16, 16).save(files / "other.png")
    found, lines = again(drawn, tiny_base_dir, files, mask=str(files / "other.png"))
    start, before = StartPicture.read(found), StartPicture.read(drawn)
    assert start is not None
    assert before is not None
    assert (start.image, start.mask) == (before.image, half(16, 16))
    assert any("it will not be the same" in line for line in lines)


def test_masks_need_a_picture_and_fit_it(files: Path, tiny_base_dir: Path) -> None:
    with pytest.raises(StudioError, match="--mask says what of --init_image is drawn anew; give both"):
        generate(config(files, tiny_base_dir, init_image=None))
    half(8, 8).save(files / "mask.png")
    with pytest.raises(PictureError, match="the mask has 8 x 8 pixels, expected 40 x 24"):
        generate(config(files, tiny_base_dir))


def test_a_picture_that_carries_another_than_it_says_is_damaged(files: Path, tiny_base_dir: Path) -> None:
    (drawn,) = generate(config(files, tiny_base_dir), lambda line: None)
    content, other = drawn.read_bytes(), StartPicture(picture(16, 16))
    texts = read_chunks(content, TEXT_KINDS, 2**20, 10)
    plain = files / "plain.png"
    Image.open(drawn).save(plain)
    (files / "swapped.png").write_bytes(with_chunks(plain.read_bytes(), [*texts, *other.chunks()]))
    with pytest.raises(PictureError, match="carries another picture to start from than it says it was drawn from"):
        again(files / "swapped.png", tiny_base_dir, files)
