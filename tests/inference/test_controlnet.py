"""Drawing under a ControlNet: diffusers' own results, with subjects, from pictures, and again from what was drawn."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from control_nets import make_net
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLControlNetImg2ImgPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLPipeline,
)
from PIL import Image
from safetensors.torch import save_file
from subject_maker import make_subject

from coeff_diffusion.commands.generate import generate
from coeff_diffusion.commands.generate_config import GenerateConfig
from coeff_diffusion.families.controlnets import is_fetched
from coeff_diffusion.images.control_picture import ControlPicture
from coeff_diffusion.images.files import read_parameters
from coeff_diffusion.images.start_picture import StartPicture
from coeff_diffusion.inference.request import DrawRequest, StudioError
from coeff_diffusion.inference.studio import Studio
from coeff_diffusion.service import Drawings, SubjectLoader
from coeff_diffusion.sources.library import Library

SIDE = 32


def picture(width: int = SIDE, height: int = SIDE, step: int = 7) -> Image.Image:
    y, x = np.indices((height, width))
    return Image.fromarray(np.stack([x * step % 256, y * 5 % 256, (x + y) * 3 % 256], axis=2).astype(np.uint8))


@pytest.fixture
def net(tiny_pipe: StableDiffusionPipeline, tmp_path: Path) -> Path:
    return make_net(tiny_pipe.unet, tmp_path / "edges")


def request(net: Path, **changes: Any) -> DrawRequest:
    control = ControlPicture(picture(), net=str(net))
    return replace(DrawRequest("a photo of the pot on grass", seed=3, steps=4, control=control), **changes)


def same(first: Image.Image, second: Image.Image) -> bool:
    return first.size == second.size and first.tobytes() == second.tobytes()


# --- what diffusers does ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [{}, {"scale": 0.5, "start": 0.25, "end": 0.75}], ids=["usual", "given"])
@pytest.mark.parametrize("from_picture", [False, True], ids=["noise", "picture"])
def test_it_is_diffusers_own(tiny_pipe: Any, net: Path, from_picture: bool, given: dict[str, float]) -> None:
    names = {"scale": "controlnet_conditioning_scale", "start": "control_guidance_start", "end": "control_guidance_end"}
    options = {names[key]: value for key, value in given.items()}
    asked = request(net, **options, start=StartPicture(picture(step=2)) if from_picture else None)
    _check(tiny_pipe, net, asked, StableDiffusionControlNetPipeline, StableDiffusionControlNetImg2ImgPipeline, options)


@pytest.mark.parametrize("from_picture", [False, True], ids=["noise", "picture"])
def test_it_is_that_of_xl(tiny_xl_pipe: StableDiffusionXLPipeline, tmp_path: Path, from_picture: bool) -> None:
    net = make_net(tiny_xl_pipe.unet, tmp_path / "xl")
    asked = request(net, prompt_2="a red house", start=StartPicture(picture(step=2)) if from_picture else None)
    kinds = StableDiffusionXLControlNetPipeline, StableDiffusionXLControlNetImg2ImgPipeline
    _check(tiny_xl_pipe, net, asked, *kinds, {"prompt_2": "a red house"})


def _check(pipe: Any, net: Path, asked: DrawRequest, text: Any, image: Any, options: dict[str, Any]) -> None:
    assert asked.control is not None
    model = ControlNetModel.from_pretrained(net)
    options = {"controlnet_conditioning_scale": 1.0, **options}
    if asked.start is None:
        options |= {"image": asked.control.image, "height": SIDE, "width": SIDE}
    else:
        options |= {"image": asked.start.image, "control_image": asked.control.image, "strength": 0.75}
    expected = (text if asked.start is None else image).from_pipe(pipe, controlnet=model)(
        asked.prompt, num_inference_steps=4, guidance_scale=7.5, generator=torch.Generator().manual_seed(3), **options
    )
    studio = Studio(pipe)
    found = studio.draw(asked)[0]
    assert same(found.image, expected.images[0])
    assert not same(found.image, studio.draw(asked.without("control"))[0].image)
    assert same(studio.draw(found.request)[0].image, found.image)  # by the name that it goes by


def test_the_rest_stays_as_it_is_under_a_mask(tiny_pipe: Any, net: Path) -> None:
    mask = Image.new("L", (SIDE, SIDE))
    mask.paste(255, (16, 0, SIDE, SIDE))
    start, studio = StartPicture(picture(step=2), mask), Studio(tiny_pipe)
    found = studio.draw(request(net, start=start, mask_blur=0))[0].image
    assert same(found.crop((0, 0, 16, SIDE)), start.image.crop((0, 0, 16, SIDE)))
    assert not same(found, studio.draw(request(net, start=start, mask_blur=0).without("control"))[0].image)


# --- with subjects ----------------------------------------------------------------------------------------------------


def test_subjects_act_as_their_gates_say(tiny_pipe: Any, net: Path) -> None:
    studio = Studio(tiny_pipe)
    base = studio.draw(request(net, prompt="a dog on grass"))[0].image
    studio.load(make_subject(tiny_pipe.unet, tiny_pipe.text_encoder, "dog", "sks dog", "dog"))
    acting = request(net, prompt="a sks dog on grass", subjects={"dog": 1.0})
    assert not same(studio.draw(acting)[0].image, base)
    assert same(studio.draw(replace(acting, prompt="a dog on grass"))[0].image, base)
    drawn_by_base, drawn = studio.compare(acting)
    assert same(drawn_by_base[0].image, base)
    assert same(drawn[0].image, studio.draw(acting)[0].image)
    both = studio.draw_batch([acting, replace(acting, seed=9, prompt="a dog", subjects={})])
    assert [one.image.size for one in both] == [(SIDE, SIDE)] * 2


# --- which ControlNets ------------------------------------------------------------------------------------------------


def test_a_single_file_is_the_same(tiny_pipe: Any, net: Path, tmp_path: Path) -> None:
    embedding = ControlNetModel.from_unet(tiny_pipe.unet)  # of the usual widths, which a file does not say
    embedding.save_pretrained(tmp_path / "usual")
    file = tmp_path / "usual.safetensors"
    save_file(dict(embedding.state_dict()), file)
    studio = Studio(tiny_pipe)
    first, second = (studio.controlnet(ControlPicture(picture(), net=str(one))) for one in (tmp_path / "usual", file))
    assert first == second
    assert first.name == "usual"
    assert first.digits != studio.controlnet(ControlPicture(picture(), net=str(net))).digits


def test_a_name_alone_means_no_other_that_is_called_so(
    tiny_pipe: Any, net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    studio, elsewhere = Studio(tiny_pipe), tmp_path / "elsewhere"
    first = studio.draw(request(net))[0]
    make_net(tiny_pipe.unet, elsewhere / "edges", seed=6)
    monkeypatch.chdir(elsewhere)
    second = studio.draw(request(Path("edges")))[0]
    assert not same(first.image, second.image)
    with pytest.raises(StudioError, match=r"the ControlNet 'edges' is another one \(\w{12}\) than was asked for"):
        studio.draw(first.request)


def test_what_does_not_fit_is_said_in_a_sentence(tiny_pipe: Any, tiny_xl_pipe: Any, net: Path, tmp_path: Path) -> None:
    studio, xl = Studio(tiny_pipe), Studio(tiny_xl_pipe)
    make_net(tiny_xl_pipe.unet, tmp_path / "xl")
    wide = ControlNetModel(**{**ControlNetModel.load_config(net), "cross_attention_dim": 64})
    wide.save_pretrained(tmp_path / "wide")
    wide.save_pretrained(tmp_path / "pickled", safe_serialization=False)
    save_file({"a": torch.zeros(1)}, tmp_path / "lora.safetensors")
    for one, source, sentence in [
        (studio, "xl", "is made for Stable Diffusion XL, but this base is Stable Diffusion"),
        (xl, "edges", "is made for Stable Diffusion.*, but this base is Stable Diffusion XL"),
        (studio, "wide", "is made for another base than .*there text has a width of 64, here 32"),
        (studio, "pickled", "the ControlNet .* is damaged or incomplete"),
        (studio, "lora.safetensors", "is no ControlNet like the one of this base"),
        (studio, "nothing.safetensors", "no ControlNet .*; expected a diffusers folder"),
    ]:
        with pytest.raises(StudioError, match=sentence) as caught:
            one.draw(request(tmp_path / source))
        assert "\n" not in str(caught.value)
    with pytest.raises(StudioError, match="controlnet_conditioning_scale is given, but no control picture"):
        studio.draw(DrawRequest("a", controlnet_conditioning_scale=1.0))
    with pytest.raises(StudioError, match=r"control_guidance_start is 0\.5 and control_guidance_end is 0\.5"):
        studio.draw(request(net, control_guidance_start=0.5, control_guidance_end=0.5))


def test_others_name_no_folders_of_this_computer_and_fetch_nothing(
    tiny_pipe: Any, net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawings = Drawings(SubjectLoader(Studio(tiny_pipe), Library(tmp_path / "subjects")), tmp_path / "pictures")
    assert len(drawings.draw(request(net)).files) == 1
    drawings.folders = False
    for name in (net, "user/edges"):  # of the second, gigabytes would come down
        with pytest.raises(StudioError, match="has to be an id on the Hub whose weights are on this computer already"):
            drawings.draw(request(name))
    (tmp_path / "hub" / "models--user--edges" / "refs").mkdir(parents=True)
    (tmp_path / "hub" / "models--user--edges" / "refs" / "main").write_text("1" * 40)
    snapshot = tmp_path / "hub" / "models--user--edges" / "snapshots" / ("1" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "diffusion_pytorch_model.safetensors").touch()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert is_fetched("user/edges")


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.fixture
def draw(tiny_pipe: Any, tiny_base_dir: Path, net: Path, tmp_path: Path) -> Callable[..., tuple[Path, list[str]]]:
    picture(40, 24).save(tmp_path / "edges.png")

    def run(**changes: Any) -> tuple[Path, list[str]]:
        lines: list[str] = []
        given = {"base": str(tiny_base_dir), "output_dir": str(tmp_path / "out"), **changes}
        return generate(GenerateConfig(**given), lines.append)[-1], [line for line in lines if line.startswith("note")]

    return run


def test_a_drawing_is_drawn_again_from_its_file_and_the_net(
    draw: Callable[..., tuple[Path, list[str]]], tiny_pipe: Any, net: Path, tmp_path: Path
) -> None:
    subject = make_subject(tiny_pipe.unet, tiny_pipe.text_encoder, "dog", "sks dog", "dog")
    subject.save(tmp_path / "dog.safetensors")
    settings = {"num_inference_steps": 4, "seed": 2, "controlnet_conditioning_scale": 0.5, "batch_size": 2}
    edges = {"control_image": str(tmp_path / "edges.png"), "controlnet": str(net)}
    drawn, _ = draw(
        prompt=["a sks dog"],
        subject=[str(tmp_path / "dog.safetensors")],
        embed_subjects=True,
        settings=settings,
        **edges,
    )
    said = read_parameters(drawn)
    assert (said.controlnet, said.controlnet_conditioning_scale, said.width, said.height) == ("edges", 0.5, 16, 16)
    again, notes = draw(from_picture=str(drawn), controlnet=str(net))
    assert same(Image.open(again), Image.open(drawn))
    assert notes == []

    with pytest.raises(StudioError, match=r"was held to a picture by the ControlNet 'edges' \(\w{12}\); give it with"):
        draw(from_picture=str(drawn))
    other = make_net(tiny_pipe.unet, tmp_path / "others", seed=6)
    _, notes = draw(from_picture=str(drawn), controlnet=str(other))
    assert "was not held to this picture by this ControlNet; it will not be the same" in notes[0]

    bare, _ = draw(prompt=["a dog"], settings=settings, embed_init_image=False, **edges)
    with pytest.raises(StudioError, match="and its picture with --control_image"):
        draw(from_picture=str(bare))
    with pytest.raises(StudioError, match="was held to a picture that it does not carry; give it with --control_image"):
        draw(from_picture=str(bare), controlnet=str(net))
    again, notes = draw(from_picture=str(bare), **edges)
    assert same(Image.open(again), Image.open(bare))
    assert notes == []


def test_picture_and_net_go_together(draw: Callable[..., tuple[Path, list[str]]], net: Path, tmp_path: Path) -> None:
    with pytest.raises(StudioError, match="name that with --controlnet"):
        draw(prompt=["a dog"], control_image=str(tmp_path / "edges.png"))
    with pytest.raises(StudioError, match="holds the drawing to --control_image; give both"):
        draw(prompt=["a dog"], controlnet=str(net))
