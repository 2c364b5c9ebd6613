"""Copies, pickles and saved folders of what has subjects loaded: independent and whole, or refused in a line."""

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from test_beside_others import xl_subject
from test_pipeline_subjects import BEACH, CAT, DOG, Subject, assert_unchanged, draw, same, snapshot

from coeff_diffusion import (
    Coefficients,
    CoefficientsError,
    load_coefficients,
    loaded_coefficients,
    set_coefficients,
    unload_coefficients,
)

PROMPTS = [DOG, BEACH]


def with_stage_tokens(subject: Coefficients) -> Coefficients:
    return subject.replace(stage_tokens={stage: torch.randn(2, 32) for stage in ("down_blocks.0", "up_blocks.1")})


def test_a_copied_pipeline_draws_the_same_and_stands_on_its_own(
    tiny_pipe: StableDiffusionPipeline, new_subject: Subject
) -> None:
    base, before = draw(tiny_pipe, PROMPTS), snapshot(tiny_pipe)
    load_coefficients(tiny_pipe, with_stage_tokens(new_subject(vectors=2)))
    drawn = draw(tiny_pipe, PROMPTS)
    twin, untouched = copy.deepcopy(tiny_pipe), copy.deepcopy(tiny_pipe)
    assert torch.equal(draw(twin, PROMPTS), drawn)

    set_coefficients(twin, {"dog": 0.5})
    load_coefficients(twin, new_subject("cat", "zwx cat", vectors=1, seed=2))
    twin.load_textual_inversion(torch.randn(2, 32), token="<toy>")
    assert not same(draw(twin, [CAT, DOG]), draw(tiny_pipe, [CAT, DOG]))
    assert torch.equal(draw(tiny_pipe, PROMPTS), drawn)
    assert list(loaded_coefficients(tiny_pipe)) == ["dog"]

    unload_coefficients(tiny_pipe)
    assert_unchanged(tiny_pipe, before)
    assert torch.equal(draw(tiny_pipe, PROMPTS), base)
    assert torch.equal(draw(untouched, PROMPTS), drawn)
    for one in (twin, untouched):
        unload_coefficients(one)
        assert torch.equal(draw(one, PROMPTS), base)
        assert vars(one).keys() == before["attributes"]
        assert vars(one.unet).keys() == before["unet attributes"]
        assert not one.text_encoder._forward_pre_hooks


def test_a_copied_pipeline_of_xl(tiny_xl_pipe: StableDiffusionXLPipeline) -> None:
    load_coefficients(tiny_xl_pipe, xl_subject(tiny_xl_pipe, tokens=True))
    drawn = draw(tiny_xl_pipe, PROMPTS)
    twin = copy.deepcopy(tiny_xl_pipe)
    unload_coefficients(tiny_xl_pipe)
    assert torch.equal(draw(twin, PROMPTS), drawn)
    unload_coefficients(twin)
    assert torch.equal(draw(twin, PROMPTS), draw(tiny_xl_pipe, PROMPTS))


def test_what_cannot_be_copied_is_refused_in_a_line(tiny_pipe: StableDiffusionPipeline, new_subject: Subject) -> None:
    load_coefficients(tiny_pipe, with_stage_tokens(new_subject(vectors=2)))
    drawn = draw(tiny_pipe, PROMPTS)
    alone = "cannot be copied without the StableDiffusionPipeline that draws with it; copy the pipeline, or unload"
    pickled = r"cannot be pickled; unload_coefficients\(pipe\) first"
    refused: list[tuple[Callable[[], Any], str]] = [
        (lambda: copy.deepcopy(tiny_pipe.unet), alone),
        (lambda: copy.deepcopy(tiny_pipe.text_encoder), alone),
        (lambda: copy.deepcopy(tiny_pipe.components), alone),
        (lambda: pickle.dumps(tiny_pipe), pickled),
        (lambda: pickle.dumps(tiny_pipe.unet), pickled),
        (lambda: pickle.dumps(tiny_pipe.text_encoder), pickled),
        (lambda: torch.save(tiny_pipe.unet, io.BytesIO()), pickled),
    ]
    for attempt, message in refused:
        with pytest.raises(CoefficientsError, match=message) as caught:
            attempt()
        assert "\n" not in str(caught.value)
    assert torch.equal(draw(tiny_pipe, PROMPTS), drawn)

    sibling = StableDiffusionImg2ImgPipeline(**tiny_pipe.components, requires_safety_checker=False)
    load_coefficients(sibling, new_subject("cat", "zwx cat"))
    with pytest.raises(CoefficientsError, match="without the StableDiffusionImg2ImgPipeline that draws with it"):
        copy.deepcopy(tiny_pipe)
    unload_coefficients(sibling)
    assert torch.equal(draw(copy.deepcopy(tiny_pipe), PROMPTS), drawn)
    unload_coefficients(tiny_pipe)
    for attempt, _ in refused:
        attempt()


def test_what_is_saved_meanwhile_is_the_base(
    tiny_pipe: StableDiffusionPipeline, new_subject: Subject, tmp_path: Path
) -> None:
    before = snapshot(tiny_pipe)["weights"]
    tiny_pipe.save_pretrained(tmp_path / "before")
    load_coefficients(tiny_pipe, with_stage_tokens(new_subject(vectors=2)))
    drawn = draw(tiny_pipe, PROMPTS)
    weights = {**tiny_pipe.unet.state_dict(), **tiny_pipe.text_encoder.state_dict()}
    assert weights.keys() == before.keys()
    assert all(torch.equal(weights[key], value) for key, value in before.items())

    tiny_pipe.save_pretrained(tmp_path / "loaded")
    files = {path.relative_to(tmp_path / "before") for path in (tmp_path / "before").rglob("*") if path.is_file()}
    assert files == {
        path.relative_to(tmp_path / "loaded") for path in (tmp_path / "loaded").rglob("*") if path.is_file()
    }
    for file in files:
        assert (tmp_path / "loaded" / file).read_bytes() == (tmp_path / "before" / file).read_bytes(), file
    assert torch.equal(draw(tiny_pipe, PROMPTS), drawn)

    tiny_pipe.unet.save_pretrained(tmp_path / "unet")
    again = UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    assert dict(again.config).items() >= {k: v for k, v in tiny_pipe.unet.config.items() if k[0] != "_"}.items()
    assert all(torch.equal(again.state_dict()[key], value) for key, value in tiny_pipe.unet.state_dict().items())
