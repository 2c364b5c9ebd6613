"""Many users' pictures in shared batches: each is what it is alone, and nobody's mistake is another's."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image

from coeff_diffusion import Coefficients
from coeff_diffusion.images.drawing_settings import DrawRequest
from coeff_diffusion.inference.outside import draw_request
from coeff_diffusion.inference.request import StudioError
from coeff_diffusion.inference.studio import Studio
from coeff_diffusion.serving.shared_batches import (
    DrawingFailedError,
    Drawn,
    SharedBatches,
    UnknownSubjectError,
)
from coeff_diffusion.sources.library import Library
from coeff_diffusion.subject.errors import CoefficientsError

USERS = {"rex": "rex dog", "tom": "tom cat", "mia": "mia cat"}


class Watched(Studio):
    """A studio that notes of how many pictures its batches were."""

    def __init__(self, pipe: Any) -> None:
        super().__init__(pipe)
        self.sizes: list[int] = []

    def draw_batch(self, requests: Any, *args: Any) -> Any:
        self.sizes.append(len(requests))
        if any("bomb" in one.prompt for one in requests):
            raise RuntimeError("boom")
        return super().draw_batch(requests, *args)


@pytest.fixture
def library(new_subject: Callable[..., Coefficients], tmp_path: Path) -> Library:
    folder = tmp_path / "subjects"
    folder.mkdir()
    for seed, (name, trigger) in enumerate(USERS.items()):
        new_subject(name, trigger, 1, seed, class_word=trigger.split()[-1]).save(folder / f"{name}.safetensors")
    new_subject("other-rex", "rex dog", 1, 9, class_word="dog").save(folder / "other-rex.safetensors")
    (folder / "broken.safetensors").write_bytes(b"not a subject")
    return Library(folder)


@pytest.fixture
def own_pipe(tiny_base_dir: Path) -> StableDiffusionPipeline:
    """The same base once more, of whom nobody shares it with."""
    pipe = StableDiffusionPipeline.from_pretrained(tiny_base_dir)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def batches(tiny_pipe: StableDiffusionPipeline, library: Library) -> SharedBatches:
    return SharedBatches(Watched(tiny_pipe), library, 4)


def ask(name: str = "", prompt: str = "a {} in snow", **settings: Any) -> DrawRequest:
    strengths = {name: 1.0} if name else {}
    prompt = prompt.format(USERS[name.removeprefix("other-")] if name else "dog")
    return DrawRequest(prompt, **{"subjects": strengths, "steps": 2, "seed": 5, **settings})


def test_a_file_that_takes_anothers_place_is_drawn_also_with_its_time_and_size(
    batches: SharedBatches, library: Library
) -> None:
    rex, other = library.path("rex"), library.path("other-rex")
    other.write_bytes(Coefficients.load(other).replace(info=Coefficients.load(rex).info).to_bytes())
    assert rex.stat().st_size == other.stat().st_size
    for path in (rex, other):
        os.utime(path, (0, 0))
    before = picture_of(batches.draw([ask("rex")])[0])
    expected = picture_of(batches.draw([ask("other-rex")])[0])
    other.replace(rex)
    found = picture_of(batches.draw([ask("rex")])[0])
    assert np.array_equal(found, expected)
    assert not np.array_equal(found, before)


def picture_of(drawn: Drawn | Exception) -> Any:
    assert isinstance(drawn, Drawn)
    return pixels(drawn.pictures[0].image)


def test_a_name_is_known_in_either_spelling(batches: SharedBatches, library: Library) -> None:
    library.path("rex").rename(library.folder / "re\u0301x.safetensors")
    for name in ("r\u00e9x", "re\u0301x"):
        assert isinstance(batches.draw([draw_request("a rex dog", {name: 1}, {"steps": 1})])[0], Drawn)


def pixels(image: Image.Image) -> Any:
    return np.asarray(image).astype(int)


def alone(pipe: Any, library: Library, request: DrawRequest) -> Any:
    """What a studio draws for whom nobody shares it with."""
    studio = Studio(pipe)
    for name in request.subjects:
        studio.load(library.path(name), name=name)
    found = [pixels(one.image) for one in studio.draw(request)]
    for name in request.subjects:
        studio.unload(name)
    return found


def check(answers: list[Any], requests: list[DrawRequest], pipe: Any, library: Library) -> None:
    """Each answer is what is drawn for the request alone."""
    for answer, request in zip(answers, requests, strict=True):
        assert isinstance(answer, Drawn), answer
        expected = alone(pipe, library, request)
        assert len(answer.pictures) == len(expected)
        for picture, pixel in zip(answer.pictures, expected, strict=True):
            assert np.abs(pixels(picture.image) - pixel).max() <= 2
            assert set(picture.subjects) == set(request.subjects)
            assert picture.parameters.startswith(request.prompt)


def test_subjects_of_different_users_share_a_batch(
    batches: SharedBatches, own_pipe: StableDiffusionPipeline, library: Library
) -> None:
    asked = [ask("rex"), ask("tom"), ask(), ask("mia", seed=9, negative_prompt="blurry", subjects={"mia": 0.5})]
    answers = batches.draw(asked)
    assert batches.studio.sizes == [4]  # type: ignore[attr-defined]
    check(answers, asked, own_pipe, library)
    distinct = [pixels(one.pictures[0].image) for one in answers if isinstance(one, Drawn)]
    assert np.abs(distinct[0] - distinct[1]).max() > 20
    assert np.abs(distinct[0] - distinct[2]).max() > 20
    assert batches.studio.subjects.keys() == {"rex", "tom", "mia"}


@pytest.mark.parametrize(
    ("asked", "sizes"),
    [
        ([ask("rex"), ask("tom", steps=3), ask("mia")], [2, 1]),
        ([ask("rex"), ask("tom", width=24), ask("mia", guidance_scale=3.0), ask(gate="always")], [1, 1, 1, 1]),
        ([ask("rex", batch_size=3), ask("tom", batch_size=3)], [4, 2]),
        ([ask("rex"), ask("other-rex"), ask("tom")], [2, 1]),  # called up by the same words
        ([ask("rex"), ask("tom", "a {} and a rex dog")], [1, 1]),  # who says it without having it
        ([ask("rex"), ask("tom", negative_prompt="rex dog")], [1, 1]),
        ([ask("rex"), ask("tom", "a {} and a rex dog", subjects={"tom": 1, "rex": 0.5})], [2]),
    ],
)
def test_what_cannot_share_is_drawn_apart(
    batches: SharedBatches, own_pipe: StableDiffusionPipeline, library: Library, asked: Any, sizes: list[int]
) -> None:
    answers = batches.draw(asked)
    assert batches.studio.sizes == sizes  # type: ignore[attr-defined]
    check(answers, asked, own_pipe, library)


def test_a_mistake_is_answered_alone(
    batches: SharedBatches, own_pipe: StableDiffusionPipeline, library: Library
) -> None:
    asked = [ask("rex"), ask(subjects={"nobody": 1}), ask(subjects={"../rex": 1}), ask(steps=101), ask(width=20),
             ask(subjects={"broken": 1}), ask(subjects={"rex": float("nan")}), ask("tom")]  # fmt: skip
    answers = batches.draw(asked)
    assert batches.studio.sizes == [2]  # type: ignore[attr-defined]
    check([answers[0], answers[-1]], [asked[0], asked[-1]], own_pipe, library)
    wrong = answers[1:-1]
    kinds = [UnknownSubjectError, UnknownSubjectError, StudioError, StudioError, CoefficientsError, StudioError]
    assert [type(one) for one in wrong[:4]] == kinds[:4]
    assert all(isinstance(one, kind) for one, kind in zip(wrong, kinds, strict=True))
    said = [str(one) for one in wrong]
    assert "there is no subject 'nobody'" in said[0]
    assert "steps is 101, expected at most 100" in said[2]
    assert "width is 20, expected a multiple of 8" in said[3]
    assert "the strength of subject 'rex' is nan" in said[5]
    assert not [line for line in said if str(library.folder) in line]


def test_a_file_that_goes_away_fails_for_who_asks_for_it_alone(
    batches: SharedBatches, own_pipe: StableDiffusionPipeline, library: Library
) -> None:
    (library.folder / "gone.safetensors").symlink_to(library.folder / "nowhere")  # listed, and not there
    asked = [ask("rex"), ask(subjects={"gone": 1}), ask("tom")]
    answers = batches.draw(asked)
    assert batches.studio.sizes == [2]  # type: ignore[attr-defined]
    check([answers[0], answers[2]], [asked[0], asked[2]], own_pipe, library)
    assert isinstance(answers[1], DrawingFailedError)


def test_a_batch_that_fails_is_drawn_user_by_user(
    batches: SharedBatches, own_pipe: StableDiffusionPipeline, library: Library, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [ask("rex"), ask("tom", "a {} and a bomb"), ask("mia")]
    answers = batches.draw(asked)
    assert batches.studio.sizes == [3, 1, 1, 1]  # type: ignore[attr-defined]
    assert isinstance(answers[1], DrawingFailedError)
    assert str(answers[1]) == "drawing failed: RuntimeError"
    assert "boom" in capsys.readouterr().err
    check([answers[0], answers[2]], [asked[0], asked[2]], own_pipe, library)


def test_a_file_that_is_written_again_is_read_again(
    batches: SharedBatches, own_pipe: StableDiffusionPipeline, library: Library
) -> None:
    before = batches.draw([ask("rex")])
    Coefficients.read(library.path("rex")).scaled(0.25).save(library.path("rex"))
    after = batches.draw([ask("rex")])
    check(after, [ask("rex")], own_pipe, library)
    first, second = (pixels(one[0].pictures[0].image) for one in (before, after))  # type: ignore[union-attr]
    assert np.abs(first - second).max() > 2


def test_xl_tells_no_negative_prompt_from_an_empty_one(tiny_xl_pipe: StableDiffusionXLPipeline, tmp_path: Path) -> None:
    studio = Watched(tiny_xl_pipe)
    batches = SharedBatches(studio, Library(tmp_path))
    asked = [ask(), ask(negative_prompt="blurry"), ask(seed=6), ask(seed=7, negative_prompt="dark")]
    answers = batches.draw(asked)
    assert all(isinstance(one, Drawn) for one in answers)
    assert studio.sizes == [2, 2]
