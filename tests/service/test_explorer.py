from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline
from PIL import Image

from coeff_diffusion import Coefficients
from coeff_diffusion.images.files import read_parameters
from coeff_diffusion.images.generation_info import PictureError
from coeff_diffusion.inference.request import DrawProgress, DrawRequest, StudioError
from coeff_diffusion.inference.studio import Studio
from coeff_diffusion.service import explorer as module
from coeff_diffusion.service.explorer import EMPTY, Explorer
from coeff_diffusion.service.grid_cells import GridRequest, read_strengths, spread
from coeff_diffusion.service.loading import SubjectLoader
from coeff_diffusion.service.timelines import Timelines
from coeff_diffusion.service.training_queue import TrainingQueue
from coeff_diffusion.sources.library import Library
from coeff_diffusion.subject.errors import CoefficientsError
from coeff_diffusion.training.timeline import save_timeline

SETTINGS = DrawRequest("", seed=3, steps=2)
DOGS = GridRequest("subjects", ["dog", "other-dog", "cat"], [0, 1], ["a sks dog on snow"], settings=SETTINGS)
STEPS = GridRequest("steps", ["run"], [0.5, 1], ["a photo of sks pot"], steps=[2, 6], settings=SETTINGS)
PROMPTS = GridRequest("prompts", ["dog", "cat"], [0.8], ["a sks dog on snow", "a SKS  cat"], settings=SETTINGS)


@pytest.fixture
def explorer(tiny_pipe: StableDiffusionPipeline, new_subject: Callable[..., Coefficients], tmp_path: Path) -> Explorer:
    """Over two dogs of one learned trigger, a cat without a learned word, and a training run with three steps."""
    folder = tmp_path / "subjects"
    for name, options in {
        "dog": {"vectors": 1, "class_word": "dog"},
        "other-dog": {"vectors": 2, "class_word": "dog", "seed": 2},
        "cat": {"trigger": "sks cat", "class_word": "cat", "seed": 3},
        "run/coefficients": {"trigger": "sks pot", "vectors": 1, "seed": 9},
    }.items():
        path = folder / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        new_subject(name, **options).save(path)
    steps = {step: new_subject("run", trigger="sks pot", vectors=1, seed=step) for step in (2, 4, 6)}
    save_timeline(folder / "run" / "timeline.safetensors", steps)
    loader = SubjectLoader(Studio(tiny_pipe), Library(folder))
    return Explorer(loader, Timelines(loader, TrainingQueue(loader)), tmp_path / "pictures")


def test_subjects_of_one_trigger_share_batches(explorer: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 3)
    plan = explorer.plan(DOGS)
    assert plan.cells == [[0, 1, 2], [0, 3, 4], [5, 6, 7]]  # both dogs have one base, which is drawn once
    reports: list[DrawProgress] = []
    explorer.draw(plan, reports.append)
    assert [(report.step, report.total) for report in reports] == [(n, 16) for n in (3, 6, 9, 12, 14, 16)]
    assert reports[-1].seconds_left == 0
    assert not plan.cancelled
    assert not plan.notes

    # Every file says what the user asked for, and nothing of how it was done.
    found = [read_parameters(file) for file in plan.files]
    dog, cat = "a sks dog on snow", "a sks cat on snow"
    assert [one.prompt for one in found] == ["a dog on snow", dog, dog, dog, dog, "a cat on snow", cat, cat]
    assert [dict(one.subjects) for one in found[:4]] == [{}, {"dog": 0.0}, {"dog": 1.0}, {"other-dog": 0.0}]
    assert {one.seed for one in found} == {3}
    subjects = {name: Coefficients.load(explorer.loader.library.path(name)) for name in DOGS.subjects}
    assert found[7].hashes == {"cat": subjects["cat"].sha256[:12]}
    assert plan.pictures[4].subjects == {"other-dog": subjects["other-dog"]}
    assert "exploredsubject" not in "".join(picture.parameters for picture in plan.pictures)

    assert [file.name for file in plan.files] == [f"{number:05d}-3-cell.png" for number in range(1, 9)]
    assert plan.file is not None
    assert plan.file.name == "00009-3-grid.png"
    whole = read_parameters(plan.file)
    assert (whole.prompt, whole.seed, whole.subjects, whole.batch_size) == (dog, 3, {}, 1)
    assert whole.extra == {
        "X Type": "Strength", "X Values": "base, 0, 1", "Y Type": "Subject", "Y Values": "dog, other-dog, cat"
    }  # fmt: skip
    with Image.open(plan.file) as sheet:
        assert sheet.tobytes() == plan.whole().tobytes()
    assert [words for _, words in plan.captioned()[:3]] == [
        "base: a dog on snow", "dog at 0", "dog at 1"
    ]  # fmt: skip


@pytest.mark.parametrize("request_", [DOGS, STEPS, PROMPTS], ids=lambda one: one.kind)
def test_a_cell_is_the_picture_drawn_alone(explorer: Explorer, request_: GridRequest) -> None:
    plan = explorer.draw(explorer.plan(request_))
    for actor in plan.actors:
        for cell, picture in zip(plan.distinct, plan.pictures, strict=True):
            if cell.actor != actor:
                continue
            with explorer.loader.using((), {actor.name: actor.subject}) as studio:
                (alone,) = studio.draw(picture.request)
            assert alone.request == picture.request
            apart = np.abs(np.asarray(alone.image, int) - np.asarray(picture.image, int))
            assert apart.max() <= 1  # a batch adds in another order than a single picture
    images = {picture.image.tobytes() for picture in plan.pictures}
    alike = 2 if request_ is DOGS else 0  # at strength 0 both dogs are the base's dog
    assert len(images) == len(plan.pictures) - alike, "every other cell shows something else"


@pytest.mark.parametrize(("side", "most"), [(128, 8), (512, 4), (768, 1), (1024, 1), (2048, 1)])
def test_large_cells_are_drawn_a_few_at_once(explorer: Explorer, side: int, most: int) -> None:
    request = replace(DOGS, settings=replace(SETTINGS, width=side, height=side))
    assert explorer.plan(request).at_once == most


def test_how_many_are_drawn_at_once_changes_nothing(explorer: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    together = explorer.draw(explorer.plan(DOGS)).pictures
    monkeypatch.setattr(module, "MAX_PIXELS", 3 * 16 * 16)
    counts: list[int] = []
    apart = explorer.draw(explorer.plan(DOGS), lambda progress: counts.append(len(progress.latents))).pictures
    assert max(counts) == 3
    for one, other in zip(together, apart, strict=True):
        assert one.parameters == other.parameters
        assert np.abs(np.asarray(one.image, int) - np.asarray(other.image, int)).max() <= 1


def test_training_steps(explorer: Explorer) -> None:
    plan = explorer.draw(explorer.plan(STEPS))
    assert plan.cells == [[0, 1, 2], [0, 3, 4]]
    assert plan.notes == ["'run' does not say what kind of thing it is: the base reads 'sks pot' as text"]
    found = read_parameters(plan.files[4])
    assert (found.prompt, found.subjects, found.extra) == ("a photo of sks pot", {"run": 1.0}, {"Training step": "6"})
    assert found.hashes == {"run": plan.actors[1].subject.sha256[:12]}
    assert plan.file is not None
    extra = read_parameters(plan.file).extra
    assert (extra["Y Type"], extra["Y Values"], extra["Subject"]) == ("Training step", "2, 6", "run")


def test_prompts(explorer: Explorer) -> None:
    plan = explorer.draw(explorer.plan(replace(PROMPTS, prompts=[*PROMPTS.prompts, "a pot"], with_base=False)))
    assert [picture.request.prompt for picture in plan.pictures] == [
        "a sks dog on snow", "a sks cat on snow", "a sks dog", "a SKS  cat", "a pot", "a pot"
    ]  # fmt: skip
    assert plan.notes == [
        "'dog' does not act in 1 of 3 prompts: its words are 'sks dog', which are not there",
        "'cat' does not act in 1 of 3 prompts: its words are 'sks cat', which are not there",
    ]
    assert plan.file is not None
    whole = read_parameters(plan.file)
    assert whole.prompt == "a sks dog on snow\na SKS  cat\na pot"
    assert (whole.extra["X Values"], whole.extra["Strength"]) == ("dog, cat", "0.8")


def test_what_is_not_read_is_said_in_the_users_words(explorer: Explorer) -> None:
    long = replace(SETTINGS, steps=1, negative_prompt="(blue:1.2)")
    plan = explorer.plan(replace(DOGS, strengths=[1], prompts=["red " * 74 + "sks dog"], settings=long))
    syntax = "read as plain text here, though not in other programs: '(blue:1.2)'"
    assert plan.notes == [syntax]
    explorer.draw(plan)
    cut = "of 78 tokens are cut off, the text encoder does not read"
    assert plan.notes == [
        syntax,
        "the trigger 'sks dog' of 'other-dog' stands behind the tokens that the text encoder reads of the prompt, so "
        "the subject does not act; move it to the front or shorten the prompt",
        f"prompt: 1 {cut} 'sks dog'",
        "the trigger 'sks cat' of 'cat' stands behind the tokens that the text encoder reads of the prompt, so the "
        "subject does not act; move it to the front or shorten the prompt",
        "prompt: 3 of 80 tokens are cut off, the text encoder does not read 'sks cat'",
    ]


def test_what_the_base_s_own_cell_does_not_read_is_said_too(explorer: Explorer) -> None:
    plan = explorer.plan(replace(DOGS, strengths=[0], prompts=["red " * 90], settings=replace(SETTINGS, steps=1)))
    explorer.draw(plan)
    assert plan.notes[-1].startswith("prompt: 15 of 92 tokens are cut off, the text encoder does not read 'red red")


def test_what_is_finished_when_cancelled_stays(explorer: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 2)
    plan, asked = explorer.plan(PROMPTS), []
    empty = plan.glimpse()

    def should_stop() -> bool:
        asked.append(len(plan.pictures))
        return asked.count(2) == 2  # within the second batch

    explorer.draw(plan, should_stop=should_stop)
    assert plan.cancelled
    assert len(plan.pictures) == len(plan.files) == 2
    assert plan.file is not None
    with Image.open(plan.file) as sheet:
        assert sheet.size == empty.size
        assert _share_of_empty(empty) > _share_of_empty(sheet) > 0

    plan = explorer.plan(PROMPTS)
    explorer.draw(plan, should_stop=lambda: True)
    assert (plan.cancelled, plan.pictures, plan.file) == (True, [], None)


def test_what_is_finished_before_an_error_stays(explorer: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 2)
    plan = explorer.plan(replace(DOGS, subjects=["dog"], strengths=[1, 1e38], with_base=True))
    with pytest.raises(StudioError, match="broke up into infinities"):
        explorer.draw(plan)
    assert len(plan.files) == 2
    assert plan.file is not None
    assert plan.file.is_file()


def test_the_grid_fills_while_it_forms(explorer: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 4)
    plan, shares = explorer.plan(PROMPTS), []

    def on_step(progress: DrawProgress) -> None:
        forming = explorer.loader.studio.preview(progress)
        shares.append(_share_of_empty(plan.glimpse(progress.step, progress.total, forming)))

    explorer.draw(plan, on_step)
    assert len(plan.pictures) == 6
    assert shares[0] == shares[1] > shares[2] == shares[3] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"subjects": []}, "there is no subject; give at least one"),
        ({"strengths": []}, "there is no strength"),
        ({"prompts": []}, "there is no prompt"),
        ({"kind": "steps"}, "takes one subject, got 3; there is no training step"),
        ({"prompts": ["a dog", "a cat"]}, "a grid of subjects and strengths takes one prompt, got 2"),
        ({"strengths": [0.1 * i for i in range(8)]}, "at most 8 columns; give fewer strengths than 8 beside the base"),
        ({"subjects": list("abcdefghi")}, "at most 8 rows; give fewer subjects than 9"),
        ({"strengths": [float("nan")]}, "a strength is nan, expected a finite number"),
        ({"subjects": ["dog", "bird"]}, "no subject 'bird' in .*; there is 'cat', 'dog', 'other-dog', 'run'"),
        ({"subjects": ["../dog"]}, "no subject '../dog' in"),
        ({"kind": "steps", "subjects": ["dog"], "steps": [2]}, "no timeline of 'dog' in .*; there is 'run'"),
        ({"kind": "steps", "subjects": ["run"], "steps": [2, 3]}, "does not hold step 3; it holds 2, 4, 6"),
        ({"settings": DrawRequest("", width=4096, height=4096)}, "too large"),
    ],
)
def test_what_cannot_be_a_grid(explorer: Explorer, change: dict[str, Any], message: str) -> None:
    with pytest.raises((StudioError, CoefficientsError, PictureError), match=message):
        explorer.plan(replace(DOGS, **change))


def test_one_seed_for_all_where_none_is_given(explorer: Explorer) -> None:
    plan = explorer.plan(replace(DOGS, settings=DrawRequest("", batch_size=3)))
    (seed,) = {cell.request.seed for cell in plan.distinct}
    assert seed is not None
    assert {cell.request.batch_size for cell in plan.distinct} == {1}


def test_strengths_as_they_are_typed() -> None:
    assert read_strengths(" 0, .5,1 ,-1e-1,") == [0, 0.5, 1, -0.1]
    assert read_strengths("") == []
    with pytest.raises(StudioError, match=r"the strengths are '1; 2', expected numbers and commas, such as 0, 0\.5, 1"):
        read_strengths("1; 2")


def test_a_few_steps_of_many() -> None:
    assert spread([]) == []
    assert spread([10, 20, 30]) == [10, 20, 30]
    assert spread(range(10, 310, 10)) == [10, 110, 200, 300]


def _share_of_empty(sheet: Image.Image) -> float:
    gray = tuple(bytes.fromhex(EMPTY[1:]))
    return float((np.asarray(sheet) == gray).all(-1).mean())
