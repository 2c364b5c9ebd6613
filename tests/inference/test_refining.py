"""The refiner as second stage: diffusers' documented two-stage call, with subjects, and again from what was drawn."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from control_nets import make_net
from PIL import Image
from subject_maker import make_subject
from tiny_refiners import save_refiner

from coeff_diffusion import Coefficients
from coeff_diffusion.commands.generate import generate
from coeff_diffusion.commands.generate_config import GenerateConfig
from coeff_diffusion.images.control_picture import ControlPicture
from coeff_diffusion.images.generation_info import parse_parameters
from coeff_diffusion.images.refiner_name import RefinerName
from coeff_diffusion.images.start_picture import StartPicture
from coeff_diffusion.inference.replay import Replay
from coeff_diffusion.inference.request import DrawCancelled, DrawProgress, DrawRequest, StudioError
from coeff_diffusion.inference.samplers import SchedulerError, make_scheduler
from coeff_diffusion.inference.studio import Studio
from coeff_diffusion.service import Drawings, SubjectLoader
from coeff_diffusion.sources.library import Library

PROMPT = "a photo of a dog on grass"
STEPS = 5


@pytest.fixture
def studio(tiny_xl_pipe: Any) -> Studio:
    return Studio(tiny_xl_pipe)


@pytest.fixture
def folder(tiny_xl_pipe: Any, tmp_path: Path) -> Path:
    return save_refiner(tiny_xl_pipe, tmp_path / "refiner")


def request(folder: Path, **changes: Any) -> DrawRequest:
    return replace(DrawRequest(PROMPT, seed=3, steps=STEPS, refiner=RefinerName(str(folder))), **changes)


def same(first: Image.Image, second: Image.Image) -> bool:
    return first.size == second.size and first.tobytes() == second.tobytes()


def load(studio: Studio, **changes: Any) -> None:
    pipe = studio.pipe
    subject = make_subject(pipe.unet, pipe.text_encoder, "dog", "sks dog", "dog")
    tokens = {**subject.tokens, "text_encoder_2": torch.ones(1, pipe.text_encoder_2.config.hidden_size)}
    studio.load(Coefficients(subject, tokens, replace(subject.info, **changes)), "dog")


def by_diffusers(
    studio: Studio, asked: DrawRequest, read: str = "", **options: Any
) -> tuple[torch.Tensor, Image.Image]:
    """The documented call, once up to the latents at its end and once up to the picture.

    By the very networks that the studio draws with: how MKL rounds depends on where their weights lie in memory.
    """
    assert asked.refiner is not None
    pipe, refiner, found = studio.pipe, studio.refiner(asked.refiner).pipe, list[Any]()
    own, own_of_refiner = pipe.scheduler, refiner.scheduler
    for output in ("latent", "pil"):
        generator = torch.Generator().manual_seed(3)
        at, shared = asked.refiner_switch_at or 0.8, {"num_inference_steps": STEPS, "generator": generator, **options}
        pipe.scheduler = make_scheduler(asked.scheduler, own)
        latents = pipe(asked.prompt, prompt_2=asked.prompt_2 or None, denoising_end=at, output_type="latent",
                       guidance_scale=7.5, **shared).images  # fmt: skip
        refiner.scheduler, pipe.scheduler = make_scheduler(asked.scheduler, own), own
        found.append(refiner(read or asked.prompt, image=latents, denoising_start=at, output_type=output,
                             guidance_scale=7.5, **shared).images)  # fmt: skip
    refiner.scheduler = own_of_refiner
    return found[0], found[1][0]


@pytest.mark.parametrize("scheduler", ["DDIM", "Euler a", "DPM++ 2M Karras"])
def test_it_is_the_call_that_diffusers_documents(studio: Studio, folder: Path, scheduler: str) -> None:
    asked, told = request(folder, scheduler=scheduler, refiner_switch_at=0.6), list[DrawProgress]()
    latents, expected = by_diffusers(studio, asked)
    found = studio.draw(asked, told.append)[0]
    assert torch.equal(told[-1].latents, latents)
    assert same(found.image, expected)
    assert not same(found.image, studio.draw(asked.without("refiner"))[0].image)


def test_with_a_negative_prompt_and_a_second_one_which_its_encoder_reads(studio: Studio, folder: Path) -> None:
    asked = request(folder, prompt_2="a red house", negative_prompt="blue", guidance_rescale=0.5)
    _, expected = by_diffusers(studio, asked, read="a red house", negative_prompt="blue", guidance_rescale=0.5)
    assert same(studio.draw(asked)[0].image, expected)


def test_both_stages_are_told_as_one_and_can_be_ended(studio: Studio, folder: Path) -> None:
    told: list[DrawProgress] = []
    asked = request(folder)
    studio.draw(asked, told.append)
    assert [(one.step, one.total) for one in told] == [(step, STEPS) for step in range(1, STEPS + 1)]
    assert studio.preview(told[-1])[0].size == (16, 16)
    told.clear()
    with pytest.raises(DrawCancelled):
        studio.draw(asked, told.append, should_stop=lambda: len(told) == STEPS)
    assert len(told) == STEPS


def test_a_subject_acts_in_the_base_alone(studio: Studio, folder: Path) -> None:
    """The refiner reads its class word, also with a text encoder that has been taught the trigger."""
    asked = request(folder, prompt="a photo of a sks dog on grass", refiner_switch_at=0.6)
    plain = studio.draw(replace(asked, prompt=PROMPT))[0].image
    load(studio)
    acting = replace(asked, subjects={"dog": 1.0})
    prompts: list[Any] = []
    refiner = studio.refiner(RefinerName(str(folder)))
    assert refiner.pipe.text_encoder_2 is studio.pipe.text_encoder_2
    encode = refiner.pipe.encode_prompt
    refiner.pipe.encode_prompt = lambda **given: (prompts.append(given["prompt"]), encode(**given))[1]
    drawn = studio.draw(acting)[0].image
    assert not same(drawn, plain)
    assert prompts == [[PROMPT]]
    assert same(studio.draw(replace(acting, prompt=PROMPT))[0].image, plain)  # the gate
    assert same(studio.compare(acting)[0][0].image, plain)
    # Until when it acts is said of all of denoising: two or three of five steps, three of which the base takes.
    early, late = (studio.draw(replace(acting, end=end))[0].image for end in (0.4, 0.6))
    assert same(late, drawn)
    assert not same(early, drawn)
    studio.unload("dog")
    assert same(studio.draw(replace(asked, prompt=PROMPT))[0].image, plain)


def test_a_subject_without_a_class_word_says_what_the_refiner_lacks(studio: Studio, folder: Path) -> None:
    load(studio, class_word="")
    with pytest.raises(StudioError, match=r"'dog' does not record its class word, .*; the refiner needs it; draw"):
        studio.draw(request(folder, prompt="a sks dog", subjects={"dog": 1.0}))


def test_it_is_loaded_once_and_can_be_forgotten(
    studio: Studio, folder: Path, tiny_xl_pipe: Any, tmp_path: Path
) -> None:
    first = studio.refiner(RefinerName(str(folder)))
    drawn = studio.draw(request(folder))[0].request
    assert drawn.refiner == RefinerName("refiner", first.digits)
    assert studio.refiner(drawn.refiner) is first
    other = studio.refiner(RefinerName(str(save_refiner(studio.pipe, tmp_path / "others" / "refiner", seed=5))))
    with pytest.raises(StudioError, match="no refiner 'refiner'; expected|is another one"):
        studio.draw(drawn)
    assert other.digits != first.digits
    studio.forget_networks()
    assert studio.refiner(RefinerName(str(folder))) is not first


def test_several_at_once(studio: Studio, folder: Path) -> None:
    requests = [request(folder, prompt=prompt, seed=seed) for seed, prompt in enumerate(("a cat", "a red house"))]
    for found, asked in zip(studio.draw_batch(requests), requests, strict=True):
        pairs = zip(found.image.tobytes(), studio.draw(asked)[0].image.tobytes(), strict=True)
        assert max(abs(a - b) for a, b in pairs) <= 1


GREY = Image.new("RGB", (16, 16))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": StartPicture(GREY)}, "finishes drawings from noise in one pass; leave it out, or the picture to"),
        ({"control": ControlPicture(GREY, net="")}, "leave it out, or the ControlNet"),
        ({"hires_scale": 2.0}, "finishes drawings from noise in one pass; leave it out, or the second pass"),
        ({"scheduler": "Heun"}, "scheduler 'Heun' cannot hand over to a refiner in the middle; use one of .*DDIM"),
        ({"scheduler": "PLMS"}, "scheduler 'PLMS' cannot hand over to a refiner in the middle"),
        ({"refiner_switch_at": 0.9999}, r"refiner_switch_at 0\.9999 of 5 steps leaves none to the refiner"),
        ({"refiner_switch_at": 0.0}, "refiner_switch_at 0 of 5 steps leaves none to the base"),
        ({"refiner_switch_at": 1.5}, r"refiner_switch_at is 1\.5, expected 0 to 1"),
        ({"refiner": None, "refiner_switch_at": 0.5}, "refiner_switch_at is given, but no refiner"),
    ],
)
def test_what_cannot_be_is_said(studio: Studio, folder: Path, changes: dict[str, Any], message: str) -> None:
    if changes.get("control"):
        changes = {"control": replace(changes["control"], net=str(make_net(studio.pipe.unet, folder / "edges")))}
    with pytest.raises((StudioError, SchedulerError), match=message) as caught:
        studio.draw(request(folder, **changes))
    assert "\n" not in str(caught.value)


def test_only_xl_has_one(tiny_pipe: Any, folder: Path) -> None:
    with pytest.raises(StudioError, match="which has no refiner; draw without one"):
        Studio(tiny_pipe).draw(request(folder))


def test_others_name_no_folders_of_this_computer(studio: Studio, folder: Path, tmp_path: Path) -> None:
    drawings = Drawings(SubjectLoader(studio, Library(tmp_path / "subjects")), tmp_path / "pictures")
    drawings.folders = False
    with pytest.raises(StudioError, match="the refiner is .*; where others can reach the page"):
        drawings.draw(request(folder))


def test_what_a1111_writes_is_read() -> None:
    text = "a cat\nSteps: 8, Seed: 7, Size: 128x128, Refiner: sd_xl_refiner_1.0 [7440042bbd], Refiner switch at: 0.7"
    found = parse_parameters(text)
    assert (found.refiner_name, found.refiner_switch_at) == ("sd_xl_refiner_1.0 [7440042bbd]", 0.7)
    replay = Replay(Path("a.png"), found, ())
    assert any("it was finished by the refiner 'sd_xl_refiner_1.0 [7440042bbd]'" in note for note in replay.notes)
    assert replay.request()[0].refiner_switch_at is None  # nothing to switch to


@pytest.fixture
def draw(tiny_xl_pipe: Any, tmp_path: Path) -> Callable[..., tuple[list[Path], list[str]]]:
    tiny_xl_pipe.save_pretrained(tmp_path / "base")

    def run(**changes: Any) -> tuple[list[Path], list[str]]:
        lines: list[str] = []
        given = {"base": str(tmp_path / "base"), "output_dir": str(tmp_path / "out"), **changes}
        return generate(GenerateConfig(**given), lines.append), [one for one in lines if one.startswith("note")]

    return run


def opened(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        picture.load()
        return picture


def test_a_drawing_is_drawn_again_from_its_file_and_the_refiner(
    draw: Callable[..., tuple[list[Path], list[str]]], folder: Path, tiny_xl_pipe: Any, tmp_path: Path
) -> None:
    settings = {"num_inference_steps": STEPS, "seed": 2, "batch_size": 2, "refiner_switch_at": 0.6}
    drawn, _ = draw(prompt=["a dog"], refiner=str(folder), settings=settings)
    said = opened(drawn[1]).info["parameters"]
    assert "Refiner: refiner, Refiner switch at: 0.6, " in said
    digits = parse_parameters(said).refiner_hash
    again, notes = draw(from_picture=str(drawn[1]), refiner=str(folder))
    assert same(opened(again[0]), opened(drawn[1]))
    assert notes == []
    with pytest.raises(StudioError, match=rf"was finished by the refiner 'refiner' \({digits}\); give it with"):
        draw(from_picture=str(drawn[1]))
    other = save_refiner(tiny_xl_pipe, tmp_path / "another", seed=5)
    with pytest.raises(StudioError, match=rf"'refiner' \({digits}\), this is the refiner 'another' \(\w{{12}}\); give"):
        draw(from_picture=str(drawn[1]), refiner=str(other))
    plain, _ = draw(prompt=["a dog"], settings={"num_inference_steps": STEPS, "seed": 2})
    _, notes = draw(from_picture=str(plain[0]), refiner=str(folder))
    assert "was not finished by a refiner; it will not be the same picture" in notes[0]
