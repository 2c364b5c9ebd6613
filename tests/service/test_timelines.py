"""Timelines of the library: read, drawn step by step, and one step kept."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from diffusers import StableDiffusionPipeline
from training_runs import ENDLESS, over, wait

from coeff_diffusion import Coefficients, CoefficientsError
from coeff_diffusion.inference.request import DrawCancelled, DrawProgress, StudioError
from coeff_diffusion.inference.studio import Studio
from coeff_diffusion.service import SubjectLoader, Timelines, TrainingForm, TrainingJob, TrainingQueue
from coeff_diffusion.sources.library import Library
from coeff_diffusion.training.config import TrainConfig
from coeff_diffusion.training.run_folder import RunFolder
from coeff_diffusion.training.timeline import keep_step, load_timeline, save_timeline

LOSSES = [0.5, 0.4, 0.3, 0.2, 0.1, 0.1]
VALIDATION = {0: 0.5, 2: 0.4, 4: 0.2, 5: 0.4}


@pytest.fixture
def loader(
    tiny_pipe: StableDiffusionPipeline, tmp_path: Path, new_subject: Callable[..., Coefficients]
) -> SubjectLoader:
    """A library with the run "rex": steps 2, 4 and 5, of which the last one is the subject."""
    folder = tmp_path / "subjects" / "rex"
    folder.mkdir(parents=True)
    steps = {
        step: new_subject("rex", vectors=1, seed=step, resolution=16, train_steps=step, class_word="dog")
        for step in (2, 4, 5)
    }
    save_timeline(folder / "timeline.safetensors", steps, LOSSES, VALIDATION)
    steps[5].save(folder / "coefficients.safetensors")
    config = TrainConfig(class_word="dog", instance_data_dir="x", validation_prompt="a sks dog on grass", seed=7)
    (folder / "config.yaml").write_text(config.resolve().to_yaml())
    return SubjectLoader(Studio(tiny_pipe), Library(folder.parent))


@pytest.fixture
def training_queue(loader: SubjectLoader) -> Iterator[TrainingQueue]:
    training_queue = TrainingQueue(loader)
    yield training_queue
    training_queue.close()


@pytest.fixture
def timelines(loader: SubjectLoader, training_queue: TrainingQueue) -> Timelines:
    return Timelines(loader, training_queue)


def test_runs_are_found_and_read(timelines: Timelines, tmp_path: Path) -> None:
    library = tmp_path / "subjects"
    shutil.copytree(library / "rex", library / "of friends" / "ann")
    shutil.copytree(library / "rex", library / ".trash" / "old")
    assert timelines.find() == ["of friends/ann", "rex"]
    found = timelines.read("rex")
    assert (found.steps, found.prompt, found.seed) == ([2, 4, 5], "a sks dog on grass", 7)
    assert timelines.losses("rex") == LOSSES
    assert timelines.validation("rex") == VALIDATION
    assert found.best == 4
    assert replace(found, validation={0: 0.5, 3: 0.1}).best is None  # of steps that are kept
    assert [found.nearest(step) for step in (0, 3.4, 4.4, 99)] == [2, 4, 4, 5]
    assert timelines.read("rex") is found  # read once
    assert timelines.kept("rex") == 5


def test_a_run_without_settings_still_tells_what_to_draw(timelines: Timelines, tmp_path: Path) -> None:
    (tmp_path / "subjects" / "rex" / "config.yaml").unlink()
    found = timelines.read("rex")
    assert (found.prompt, found.seed) == ("sks dog", 0)


def test_steps_are_drawn_once(timelines: Timelines, loader: SubjectLoader) -> None:
    steps: list[DrawProgress] = []
    pictures = [timelines.draw("rex", step, "a sks dog", 3, steps.append) for step in (2, 4)]
    assert len(steps) == 40
    assert [moment.step for moment in pictures] == [2, 4]
    assert pictures[0].picture.image.tobytes() != pictures[1].picture.image.tobytes()
    assert pictures[0].picture.image.size == (16, 16)
    assert timelines.draw("rex", 2, "a sks dog", 3, steps.append) is pictures[0]
    assert timelines.drawn("rex", 4, "a sks dog", 3) is pictures[1]
    assert timelines.drawn("rex", 5, "a sks dog", 3) is None
    assert len(steps) == 40
    notes = timelines.draw("rex", 2, "a cat", 3).notes
    assert notes == ["the prompt does not contain 'sks dog', so 'rex' does not act"]
    # The step is drawn as its file would be.
    with loader.using(["rex"]) as studio:
        again = studio.draw(timelines.draw("rex", 5, "a sks dog", 3).picture.request)[0]
    assert again.image.tobytes() == timelines.draw("rex", 5, "a sks dog", 3).picture.image.tobytes()


def test_pictures_are_forgotten_in_time(timelines: Timelines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coeff_diffusion.service.timelines.MAX_PIXELS", 2 * 16 * 16)
    for step in (2, 4, 5):
        timelines.draw("rex", step, "a sks dog", 3)
    assert [timelines.drawn("rex", step, "a sks dog", 3) is None for step in (2, 4, 5)] == [True, False, False]


def test_keeping_a_step(timelines: Timelines, loader: SubjectLoader) -> None:
    file = loader.library.path("rex")
    assert timelines.keep("rex", 3.9) == 4
    assert Coefficients.load(file) == timelines.read("rex").subjects[4]
    assert timelines.kept("rex") == 4
    assert timelines.keep("rex", 5) == 5  # nothing is lost
    file.unlink()
    assert timelines.kept("rex") is None
    assert timelines.keep("rex", 2) == 2
    assert sorted(path.name for path in file.parent.iterdir()) == [
        "coefficients.safetensors",
        "config.yaml",
        "timeline.safetensors",
    ]


def test_the_card_of_a_kept_step_tells_which_it_is(timelines: Timelines, tmp_path: Path) -> None:
    card = tmp_path / "subjects" / "rex" / "README.md"
    before, after = b"# rex\r\n\nedited in latin-1: \xe4\n\n## Training\n\n", b"5 steps of 4 pictures.\n"
    card.write_bytes(before + after)
    for step in (2, 4):
        timelines.keep("rex", step)
        told = f"The subject is step {step} of this training; the figures are of the one it saved.\n\n"
        assert card.read_bytes() == before + told.encode() + after
    card.write_text("my own words")
    timelines.keep("rex", 5)
    assert card.read_text() == "my own words"


def test_a_subject_that_is_on_no_step_is_not_overwritten(
    timelines: Timelines, loader: SubjectLoader, new_subject: Callable[..., Coefficients]
) -> None:
    file = loader.library.path("rex")
    new_subject(seed=77).save(file)
    assert timelines.kept("rex") is None
    with pytest.raises(CoefficientsError, match="is on no step of .* and would be lost"):
        timelines.keep("rex", 2)
    assert Coefficients.load(file) == new_subject(seed=77)
    with pytest.raises(CoefficientsError, match="has no step 3; it has 2, 4, 5"):
        keep_step(RunFolder(file.parent), 3)


def test_what_cannot_be_drawn_is_said(timelines: Timelines, tmp_path: Path) -> None:
    for name in ("cat", "../rex", "/etc"):
        with pytest.raises(CoefficientsError, match="no timeline of .*; there is 'rex'"):
            timelines.read(name)
    with pytest.raises(StudioError, match="seed is -1"):
        timelines.draw("rex", 2, "a sks dog", -1)
    with pytest.raises(DrawCancelled):
        timelines.draw("rex", 2, "a sks dog", 1, should_stop=lambda: True)
    (tmp_path / "subjects" / "rex" / "timeline.safetensors").write_bytes(b"damaged")
    with pytest.raises(CoefficientsError, match="is not a readable timeline"):
        timelines.read("rex")


def test_a_step_kept_while_training_outlives_its_end(
    timelines: Timelines, training_queue: TrainingQueue, loader: SubjectLoader, subject_images: Path
) -> None:
    request = TrainingForm(sorted(subject_images.iterdir()), "new", "dog", settings=ENDLESS)
    job: TrainingJob = training_queue.submit(replace(request, preset="careful"))
    wait(lambda: "new" in timelines.find() and len(timelines.read("new").steps) > 1)
    assert timelines.kept("new") is None
    assert len(timelines.losses("new")) >= 20
    assert timelines.keep("new", 10) == 10
    assert timelines.draw("new", 10, "a sks dog", 1).step == 10
    assert training_queue.writing("new") is job
    training_queue.stop(job.number)
    over(job)
    assert timelines.kept("new") == 10
    assert job.messages[-1] == "step 10 stays the subject, as it was chosen on the timeline"
    assert job.step in load_timeline(job.folder / "timeline.safetensors")
