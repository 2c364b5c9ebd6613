"""Drawing with Stable Diffusion XL: two prompts, shapes, few steps without guidance, and subjects of other bases."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import XL_WIDTHS
from diffusers import (
    EulerAncestralDiscreteScheduler,
    LCMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

from coeff_diffusion import Coefficients, CoefficientsInfo, describe_base, layer_heads
from coeff_diffusion.commands.generate import generate
from coeff_diffusion.commands.generate_config import GenerateConfig
from coeff_diffusion.images.files import read_parameters, save_picture
from coeff_diffusion.inference.replay import Replay
from coeff_diffusion.inference.request import DrawRequest, Picture, StudioError
from coeff_diffusion.inference.studio import Studio
from coeff_diffusion.subject.errors import CoefficientsError

PLAIN, DOG = "a cat in the snow", "a sks dog in the snow"


def subject_of(pipe: Any, tokens: bool = True, **info: Any) -> Coefficients:
    """Random matrices and vectors, and stage tokens where there are vectors."""
    generator = torch.Generator().manual_seed(1)
    coeffs = {path: 0.5 * torch.randn(n, n, generator=generator) for path, n in layer_heads(pipe.unet).items()}
    vectors = {name: torch.randn(1, width, generator=generator) for name, width in XL_WIDTHS.items()} if tokens else {}
    stages = {"up_blocks.0": torch.randn(1, sum(XL_WIDTHS.values()), generator=generator)} if tokens else {}
    known = {"name": "dog", "trigger": "sks dog", "class_word": "dog", **describe_base(pipe.unet), **info}
    return Coefficients(coeffs, vectors, CoefficientsInfo(**known), "unet", stages)


@pytest.fixture
def studio(tiny_xl_pipe: StableDiffusionXLPipeline) -> Studio:
    return Studio(tiny_xl_pipe)


def drawn(studio: Studio, prompt: str, **changes: Any) -> Picture:
    return studio.draw(DrawRequest(prompt, **{"seed": 3, "steps": 2, **changes}))[0]


def same(first: Picture, second: Picture) -> bool:
    return np.array_equal(np.asarray(first.image), np.asarray(second.image))


# --- two prompts ------------------------------------------------------------------------------------------------------


def test_the_second_encoder_reads_a_prompt_of_its_own(studio: Studio) -> None:
    pipe, options = studio.pipe, {"num_inference_steps": 2, "guidance_scale": 7.5}
    found = drawn(studio, PLAIN, prompt_2="a red house")
    expected = pipe(PLAIN, prompt_2="a red house", generator=torch.Generator().manual_seed(3), **options).images[0]
    assert np.array_equal(np.asarray(found.image), np.asarray(expected))
    assert not same(found, drawn(studio, PLAIN))
    assert same(drawn(studio, PLAIN, prompt_2=PLAIN), drawn(studio, PLAIN))


def test_no_negative_prompt_is_none_at_all(studio: Studio) -> None:
    """As diffusers has it: zeros, and not what the encoders make of an empty text."""
    assert studio.pipe.config.force_zeros_for_empty_prompt
    options = {"num_inference_steps": 2, "guidance_scale": 7.5}
    expected = studio.pipe(PLAIN, generator=torch.Generator().manual_seed(3), **options).images[0]
    assert np.array_equal(np.asarray(drawn(studio, PLAIN).image), np.asarray(expected))
    requests = [DrawRequest(PLAIN, seed=3, steps=2, negative_prompt=text) for text in ("", "a dog")]
    with pytest.raises(StudioError, match="some pictures of the batch have a negative prompt and some have none"):
        studio.draw_batch(requests)


def test_a_trigger_in_the_second_prompt_calls_the_subject_up(studio: Studio, tmp_path: Path) -> None:
    without = drawn(studio, PLAIN, prompt_2="a dog")
    name = studio.load(subject_of(studio.pipe, tokens=False))
    request = DrawRequest(PLAIN, prompt_2="a sks dog", subjects={name: 1.0}, seed=3, steps=2)
    assert studio.notes(request) == []
    (picture,) = studio.draw(request)
    base, (again,) = studio.compare(request)
    assert same(base[0], without)  # the trigger became its class word there, too
    assert same(again, picture)
    assert not same(picture, without)
    save_picture(picture.image, tmp_path / "x.png", picture.parameters)
    assert read_parameters(tmp_path / "x.png").prompt_2 == "a sks dog"
    asked, _ = Replay.read(tmp_path / "x.png").request()
    assert asked.prompt_2 == "a sks dog"


def test_bases_of_one_encoder_have_one_prompt(tiny_pipe: StableDiffusionPipeline) -> None:
    with pytest.raises(StudioError, match=r"prompt_2 is 'a house', but Stable Diffusion 1\.x or 2\.x has one text enc"):
        drawn(Studio(tiny_pipe), PLAIN, prompt_2="a house")


# --- shapes -----------------------------------------------------------------------------------------------------------


def test_a_shape_by_its_name(tiny_xl_pipe: StableDiffusionXLPipeline, tmp_path: Path) -> None:
    tiny_xl_pipe.save_pretrained(tmp_path / "xl")
    options = {"base": str(tmp_path / "xl"), "output_dir": str(tmp_path / "out")}

    def draw(**changes: Any) -> Path:
        config = GenerateConfig(prompt=["a dog"], **options, **changes)
        config.settings |= {"num_inference_steps": 1}
        return generate(config, lambda line: None)[0]

    found = read_parameters(draw(aspect_ratio="3:1"))
    assert (found.width, found.height) == (24, 8)
    with pytest.raises(StudioError, match="--aspect_ratio and --width exclude each other"):
        draw(aspect_ratio="1:1", settings={"width": 16})
    with pytest.raises(StudioError, match=r"--aspect_ratio: the shape is 'wide', expected two numbers such as 16:9"):
        draw(aspect_ratio="wide")


# --- few steps --------------------------------------------------------------------------------------------------------


def lcm(pipe: StableDiffusionXLPipeline) -> None:
    """As LCM-SDXL: the strength of guidance is an input of the UNet, and there is no half without a prompt."""
    known = {key: value for key, value in pipe.unet.config.items() if not key.startswith("_")}
    pipe.register_modules(
        unet=UNet2DConditionModel.from_config({**known, "time_cond_proj_dim": 16}).eval(),
        scheduler=LCMScheduler.from_config(pipe.scheduler.config),
    )


def turbo(pipe: StableDiffusionXLPipeline) -> None:
    kind, config = EulerAncestralDiscreteScheduler, pipe.scheduler.config
    pipe.register_modules(scheduler=kind.from_config(config, timestep_spacing="trailing"))


@pytest.mark.parametrize("make", [lcm, turbo])
@pytest.mark.parametrize("guidance", [None, 1.0, 3.0])
def test_distilled_bases(tiny_xl_pipe: StableDiffusionXLPipeline, make: Any, guidance: float | None) -> None:
    """Few steps and no guidance where nothing else is asked; gate and rows of a batch are right all the same."""
    make(tiny_xl_pipe)
    studio = Studio(tiny_xl_pipe)
    rows: list[int] = []
    changes = {"guidance_scale": guidance, "steps": None}
    before = drawn(studio, PLAIN, **changes)
    assert (before.request.steps, before.request.guidance_scale) == (4, guidance or 1.0)
    name = studio.load(subject_of(tiny_xl_pipe))
    tiny_xl_pipe.unet.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(args[0])), with_kwargs=True
    )
    assert same(drawn(studio, PLAIN, subjects={name: 1.0}, **changes), before)
    assert rows == [2 if guidance == 3.0 and make is turbo else 1] * 4
    acting = drawn(studio, DOG, subjects={name: 1.0}, **changes)
    assert not same(acting, drawn(studio, DOG, **changes))
    requests = [
        DrawRequest(prompt, subjects={name: 1.0}, seed=3, guidance_scale=guidance) for prompt in (PLAIN, DOG, PLAIN)
    ]
    batch = studio.draw_batch(requests)
    for picture, alone in zip(batch, (before, acting, before), strict=True):
        difference = np.abs(np.asarray(picture.image, int) - np.asarray(alone.image, int))
        assert difference.max() <= 1


def test_guidance_may_be_rescaled(studio: Studio) -> None:
    plain = drawn(studio, PLAIN)
    assert same(drawn(studio, PLAIN, guidance_rescale=0.0), plain)
    assert not same(drawn(studio, PLAIN, guidance_rescale=0.7), plain)


# --- subjects of other bases ------------------------------------------------------------------------------------------


def test_subjects_of_other_families_are_refused(
    tiny_pipe: StableDiffusionPipeline, tiny_xl_pipe: StableDiffusionXLPipeline
) -> None:
    xl, sd = subject_of(tiny_xl_pipe), subject_of(tiny_pipe, tokens=False, base_model="sd")
    for studio, subject, words in (
        (Studio(tiny_pipe), xl, "is for a base"),
        (Studio(tiny_xl_pipe), sd, r"is for sd \(custom, 14 layers\), this base is custom with 16 layers"),
    ):
        with pytest.raises(CoefficientsError, match=words) as error:
            studio.load(subject)
        assert "\n" not in str(error.value)
        assert studio.subjects == {}


def test_a_token_for_an_encoder_that_is_not_there(tiny_pipe: StableDiffusionPipeline) -> None:
    info = CoefficientsInfo(trigger="sks dog")
    subject = Coefficients({}, {"text_encoder": torch.randn(1, 32), "text_encoder_2": torch.randn(1, 48)}, info)
    with pytest.raises(CoefficientsError, match="has a token for text_encoder_2, which this base does not have"):
        Studio(tiny_pipe).load(subject)
