"""Trainings in line, and the pictures that are dropped for them."""

import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw, ImageFilter
from training_runs import ENDLESS, SHORT, over, wait

from coeff_diffusion import Coefficients
from coeff_diffusion.inference.pipeline_subjects import loaded_coefficients
from coeff_diffusion.inference.request import DrawRequest
from coeff_diffusion.inference.studio import Studio
from coeff_diffusion.service import SubjectLoader, TrainingForm, TrainingQueue
from coeff_diffusion.service.loss_curve import BEST, EACH, MARK, MEAN, VALIDATION, WINDOW, curve_words, loss_curve
from coeff_diffusion.service.picture_check import MAX_PICTURES, check_pictures, copy_pictures
from coeff_diffusion.service.presets import PRESETS
from coeff_diffusion.service.time_estimate import about
from coeff_diffusion.service.training_form import SETTINGS, folder_name
from coeff_diffusion.service.training_queue import MAX_WAITING
from coeff_diffusion.sources.library import Library
from coeff_diffusion.training.config import ConfigError, TrainConfig
from coeff_diffusion.training.picture_folder import find_pictures
from coeff_diffusion.training.trainer import train

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def loader(tiny_pipe: StableDiffusionPipeline, tmp_path: Path) -> SubjectLoader:
    return SubjectLoader(Studio(tiny_pipe), Library(tmp_path / "subjects"))


@pytest.fixture
def training_queue(loader: SubjectLoader) -> Iterator[TrainingQueue]:
    training_queue = TrainingQueue(loader)
    yield training_queue
    training_queue.close()


@pytest.fixture
def request_(subject_images: Path) -> TrainingForm:
    return TrainingForm(sorted(subject_images.iterdir()), "My  Dog!", "dog", settings=SHORT)


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# --- a training -------------------------------------------------------------------------------------------------------


def test_from_dropped_pictures_to_a_subject_in_the_library(
    training_queue: TrainingQueue, loader: SubjectLoader, request_: TrainingForm
) -> None:
    settings = {**SHORT, "validation_steps": 2, "num_validation_images": 1, "seed": 3}
    job = over(training_queue.submit(replace(request_, settings=settings)))
    assert (job.state, job.error, job.step, list(job.previews)) == ("done", "", 3, [0, 2, 3])
    learned = "my-dog has learned all 3 steps and is in the library: write “a sks dog” in a prompt"
    other = f"my-dog has ended at step 3 of 3, but {job.advice}"  # three steps may go either way
    assert job.status(0) == (other if job.advice else learned)
    assert job.messages[-1].startswith("saved ")
    assert files(job.folder) == [
        "README.md",
        "coefficients.safetensors",
        "config.yaml",
        *(f"pictures/00{i}.{kind}" for i, kind in enumerate(("png", "jpeg", "png", "jpeg", "png"), start=1)),
        "samples/step_000000_0.png",
        "samples/step_000002_0.png",
        "samples/step_000003_0.png",
        "timeline.safetensors",
    ]
    assert list(loader.library.find()) == ["my-dog"]
    info = Coefficients.load(loader.library.path("my-dog")).info
    assert (info.name, info.trigger, info.train_steps, info.seed) == ("My Dog!", "sks dog", 3, 3)
    assert training_queue.jobs == [job]
    assert not training_queue.busy

    # The settings that it leaves make the same subject again.
    config = TrainConfig.from_yaml(job.folder / "config.yaml", output_dir=str(job.folder.parent.parent / "again"))
    again = train(config, Studio(loader.studio.pipe).pipe, say=lambda line: None)
    assert again.coefficients.sha256 == Coefficients.load(job.folder).sha256


def test_loaded_subjects_stay_out_of_it_and_drawing_goes_on(
    training_queue: TrainingQueue,
    loader: SubjectLoader,
    request_: TrainingForm,
    new_subject: Callable[..., Coefficients],
) -> None:
    expected = over(training_queue.submit(request_))
    request = DrawRequest("a sks dog", subjects={"rex": 1.0}, seed=1, steps=2)
    with loader.using((), {"rex": new_subject(vectors=1)}) as studio:
        picture = studio.draw(request)[0].image.tobytes()
    job = training_queue.submit(replace(request_, name="second"))
    with loader.using((), {"rex": new_subject(vectors=1)}) as studio:
        assert studio.draw(request)[0].image.tobytes() == picture
        assert list(loaded_coefficients(studio.pipe)) == ["rex"]
    over(job)
    assert job.losses == expected.losses
    assert Coefficients.load(job.folder).sha256 == Coefficients.load(expected.folder).sha256


def test_stopping_keeps_what_it_has(
    training_queue: TrainingQueue, loader: SubjectLoader, request_: TrainingForm
) -> None:
    job = training_queue.submit(replace(request_, settings=ENDLESS))
    wait(lambda: job.step > 1)
    assert job.status(0).startswith("my-dog: step ")
    assert job.status(0).endswith(" left")
    training_queue.stop(job.number)
    over(job)
    assert job.state == "stopped"
    assert "of 100000 and is in the library" in job.status(0)
    assert Coefficients.load(loader.library.path("my-dog")).info.train_steps == job.step
    training_queue.stop(job.number)  # once more does nothing
    training_queue.stop(77)


def test_one_at_a_time_the_rest_wait_in_line(
    training_queue: TrainingQueue, loader: SubjectLoader, request_: TrainingForm
) -> None:
    first = training_queue.submit(replace(request_, settings=ENDLESS))
    wait(lambda: first.step)
    waiting = [training_queue.submit(replace(request_, name=f"{i}")) for i in range(MAX_WAITING)]
    with pytest.raises(ConfigError, match="'my-dog' is being taught or waits for it already"):
        training_queue.submit(request_)
    assert [training_queue.place(job) for job in (first, *waiting)] == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert waiting[1].status(2) == "1 waits, number 2 in line"
    with pytest.raises(ConfigError, match="8 trainings wait already"):
        training_queue.submit(replace(request_, name="too many"))
    assert not (loader.library.folder / "too-many").exists()
    for job in waiting[1:]:
        training_queue.stop(job.number)
    assert {job.state for job in waiting[1:]} == {"stopped"}
    assert waiting[1].status(0) == "1 was stopped before its first step; nothing is left of it"
    assert training_queue.place(waiting[0]) == 1
    assert not (loader.library.folder / "1").exists()
    training_queue.stop(first.number)
    assert over(waiting[0]).state == "done"
    assert list(loader.library.find()) == ["0", "my-dog"]


def test_closing_stops_and_saves(training_queue: TrainingQueue, loader: SubjectLoader, request_: TrainingForm) -> None:
    running = training_queue.submit(replace(request_, settings=ENDLESS))
    waiting = training_queue.submit(replace(request_, name="waiting"))
    wait(lambda: running.step)
    training_queue.close()
    assert (running.state, waiting.state) == ("stopped", "stopped")
    assert list(loader.library.find()) == ["my-dog"]
    with pytest.raises(ConfigError, match="the studio is closing"):
        training_queue.submit(replace(request_, name="late"))
    assert not any(thread.name == "trainings" for thread in threading.enumerate())


def test_a_folder_that_is_deleted_is_a_failure(
    training_queue: TrainingQueue, loader: SubjectLoader, request_: TrainingForm
) -> None:
    running = training_queue.submit(replace(request_, settings=ENDLESS))
    wait(lambda: running.step)
    shutil.rmtree(running.folder)
    assert over(running).state == "failed"
    assert "its folder was deleted, moved or replaced" in running.error
    assert files(running.folder) == ["coefficients.safetensors"]  # what was learned is not lost


def test_a_failure_is_one_sentence_and_the_line_goes_on(
    training_queue: TrainingQueue, loader: SubjectLoader, request_: TrainingForm
) -> None:
    broken = training_queue.submit(
        replace(request_, settings={**SHORT, "learning_rate": 1e9, "token_learning_rate": 1e9})
    )
    next_one = training_queue.submit(replace(request_, name="next"))
    over(broken)
    assert broken.state == "failed"
    assert "lower" in broken.error
    assert "\n" not in broken.error
    assert broken.status(0) == f"my-dog failed at step {broken.step} of 3: {broken.error}"
    assert over(next_one).state == "done"


def test_a_base_with_a_subject_of_someone_else_is_refused(
    training_queue: TrainingQueue,
    loader: SubjectLoader,
    request_: TrainingForm,
    new_subject: Callable[..., Coefficients],
) -> None:
    loader.studio.load(new_subject(), name="theirs")
    job = over(training_queue.submit(request_))
    assert job.error == "the base has subjects loaded (theirs); unload them before training"
    assert not job.folder.exists()  # the name is free again


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pictures": []}, "there are no pictures"),
        ({"name": " "}, "the subject has no name"),
        ({"name": "../.."}, "the name '../..' has no letter and no digit"),
        ({"name": "x" * 9000}, "the name has 9,000 characters, expected at most 60"),
        ({"name": "a\x00b"}, "the name holds characters that cannot be shown"),
        ({"class_word": ""}, "--class_word is missing"),
        ({"class_word": "w" * 61}, "the class word has 61 characters"),
        ({"settings": {"trigger": "dog"}}, "--trigger 'dog' is the class word itself"),
        ({"settings": {"trigger": "..."}}, "--trigger is '...', expected words"),
        ({"settings": {"max_train_steps": 0}}, "--max_train_steps is 0, expected at least 1"),
        ({"settings": {"max_train_steps": "many"}}, "--max_train_steps is 'many', expected int"),
        ({"settings": {"token_learning_rate": "fast"}}, "--token_learning_rate is 'fast', expected float"),
        ({"settings": {"output_dir": "/tmp/x"}}, "unknown setting 'output_dir'"),
        ({"preset": "slow"}, "no preset 'slow'; there is quick, balanced, careful"),
    ],
)
def test_refusals(
    training_queue: TrainingQueue, loader: SubjectLoader, request_: TrainingForm, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as error:
        training_queue.submit(replace(request_, **changes))
    assert said in str(error.value)
    assert not loader.library.folder.exists()
    assert training_queue.jobs == []


def test_all_that_is_wrong_is_said_at_once(training_queue: TrainingQueue, request_: TrainingForm) -> None:
    with pytest.raises(ConfigError) as error:
        training_queue.submit(TrainingForm([], "", "", settings={"seed": -1}))
    assert len(error.value.problems) == 4


def test_a_name_never_leaves_the_library_and_never_overwrites(
    training_queue: TrainingQueue, loader: SubjectLoader, request_: TrainingForm
) -> None:
    assert [folder_name(text) for text in ("../../etc/passwd", "C:\\x", "Möwe 2", ".hidden", "a_b")] == [
        "etc-passwd",
        "c-x",
        "möwe-2",
        "hidden",
        "a-b",
    ]
    over(training_queue.submit(request_))
    written = (loader.library.folder / "my-dog" / "coefficients.safetensors").read_bytes()
    (loader.library.folder / "cat.safetensors").write_bytes(written)
    for name in ("my dog", "Cat"):
        with pytest.raises(ConfigError, match="there is a subject '(my-dog|cat)' in the library already"):
            training_queue.submit(replace(request_, name=name))
    assert (loader.library.folder / "my-dog" / "coefficients.safetensors").read_bytes() == written


# --- presets, pace, curve ---------------------------------------------------------------------------------------------


def test_presets_are_what_the_files_for_the_command_line_say() -> None:
    assert PRESETS["balanced"] == {}
    for name in ("quick", "careful"):
        assert dict(PRESETS[name]) == yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
        assert PRESETS[name].keys() <= set(SETTINGS)


def test_settings_win_over_the_preset_and_none_leaves_it(
    training_queue: TrainingQueue, request_: TrainingForm, tmp_path: Path
) -> None:
    chosen = replace(request_, preset="careful", settings={"max_train_steps": 50, "lr_warmup_steps": None})
    config = training_queue.config(chosen, tmp_path)
    assert (config.max_train_steps, config.lr_warmup_steps, config.lr_scheduler) == (50, 20, "cosine")
    prior = training_queue.config(replace(request_, settings={"with_prior_preservation": True}), tmp_path)
    assert prior.class_data_dir == str(training_queue.loader.library.folder / ".class-pictures" / "tiny-dog")


def test_the_pace_is_measured_and_then_remembered(
    training_queue: TrainingQueue, request_: TrainingForm, tmp_path: Path
) -> None:
    config = replace(training_queue.config(request_, tmp_path), validate_every_n_steps=0, keep_best=False)
    first = training_queue.time_estimate.seconds(config)
    assert first > 0
    assert training_queue.time_estimate.seconds(config) == first
    assert training_queue.time_estimate.seconds(replace(config, max_train_steps=6)) == pytest.approx(2 * first)
    for _ in range(2):
        training_queue.time_estimate.stepped(8.0, replace(config, train_batch_size=2))
    assert training_queue.time_estimate.seconds(config) == pytest.approx(3 * 4.0)
    words = [about(seconds) for seconds in (1, 42, 75, 3300, 9000)]
    assert words == ["about 5 s", "about 40 s", "about 1 min", "about 55 min", "about 2.5 h"]


def test_the_curve_is_short_and_its_mean_is_a_mean() -> None:
    losses = list(np.random.default_rng(0).random(1000))
    points = loss_curve(losses, mark=500)
    assert loss_curve([]) == []
    lines = {name: [(x, y) for x, y, line in points if line == name] for name in (EACH, MEAN, MARK)}
    assert len(points) == sum(map(len, lines.values())) == 602
    assert lines[EACH][0][0] == 1
    assert lines[EACH][-1] == (1000, pytest.approx(losses[-1], rel=1e-3))
    assert lines[MEAN][-1][1] == pytest.approx(float(np.mean(losses[-WINDOW:])), rel=1e-3)
    assert lines[MEAN][0][1] == lines[EACH][0][1]
    assert [x for x, _ in lines[MARK]] == [500, 500]
    measured = loss_curve(losses, validation={0: 0.51234567, 20: 0.4})
    assert [(x, y) for x, y, line in measured if line == VALIDATION] == [(0, 0.5123), (20, 0.4)]
    upright = [(x, y) for x, y, line in measured if line == BEST]
    assert upright == [(20, min(losses)), (20, max(losses))]
    begun = [(x, y) for x, y, line in loss_curve(losses, validation={0: 0.5}) if line == BEST]
    assert begun == [(0, min(losses))] * 2  # nothing to see, but its name is known
    assert curve_words([0.5] * 5 + [0.25] * 25, {0: 0.51, 20: 0.4, 40: 0.9}) == (
        "After step 30, mean loss of the last 25: 0.2500; best: step 20, validation loss 0.4000 (0.5100 before "
        "training)"
    )
    assert curve_words([0.5], {0: 0.4}) == "After step 1, mean loss of the last 1: 0.5000"  # nothing was measured since
    assert curve_words([]) == ""
    many = loss_curve(losses, validation={step: 1 / (step + 1) for step in range(5000)})
    assert len([line for _, _, line in many if line == VALIDATION]) == 300


def test_the_line_can_be_put_in_another_order(training_queue: TrainingQueue, request_: TrainingForm) -> None:
    running, *waiting = [
        training_queue.submit(replace(request_, name=name, settings=ENDLESS))
        for name in ("one", "two", "three", "four")
    ]
    wait(lambda: running.step)
    two, three, four = waiting
    for number in (four.number, four.number, four.number, running.number, 99):
        training_queue.sooner(number)
    assert [training_queue.place(job) for job in (running, two, three, four)] == [0, 2, 3, 1]
    assert training_queue.latest is running
    training_queue.stop(two.number)
    assert [training_queue.place(job) for job in (three, four)] == [2, 1]
    training_queue.stop(running.number)
    wait(lambda: four.step)
    assert three.state == "queued"


# --- pictures ---------------------------------------------------------------------------------------------------------


def photo(path: Path, place: int, size: tuple[int, int] = (64, 48), brighter: int = 0) -> Path:
    """A round thing at some place of a striped room."""
    image = Image.new("RGB", size, (90, 100, 110))
    pen = ImageDraw.Draw(image)
    for x in range(0, size[0], 12):
        pen.line((x, 0, x + 6, size[1]), fill=(120, 130, 120), width=3)
    pen.ellipse((place, 8, place + 18, 26), fill=(220, 60, 40))
    image.point([min(255, value + brighter) for value in range(256)] * 3).save(path)
    return path


def test_crops_are_what_training_sees(tmp_path: Path) -> None:
    path = photo(tmp_path / "a.png", 20)
    found = check_pictures([path], 32)
    assert (found.refused, found.notes) == ([], [])
    assert found.crops[path].size == (32, 32)
    other = check_pictures([path], 32, center_crop=False, seed=2).crops[path]
    assert other.tobytes() != found.crops[path].tobytes()


def test_tiny_and_nearly_identical_pictures_are_pointed_out(tmp_path: Path) -> None:
    pictures = [
        photo(tmp_path / "one.png", 5),
        photo(tmp_path / "two.png", 40),
        photo(tmp_path / "brighter.jpg", 5, brighter=20),
        photo(tmp_path / "small.png", 20, (40, 30)),
    ]
    assert check_pictures(pictures, 32).notes == [
        "small.png has 40 x 30 pixels, less than the 32 that training looks at: the subject will come out soft",
        "brighter.jpg is nearly the same picture as one.png: different poses and places teach more",
    ]
    for name, grey in (("dark", 20), ("light", 200), ("same", 20)):
        Image.new("RGB", (40, 40), (grey, grey, grey)).save(tmp_path / f"{name}.png")
    plain = check_pictures([tmp_path / f"{name}.png" for name in ("dark", "light", "same")], 32)
    assert [note.split(":")[0] for note in plain.notes] == ["same.png is nearly the same picture as dark.png"]


def test_each_picture_says_what_is_wrong_with_it(tmp_path: Path) -> None:
    sharp, other = photo(tmp_path / "sharp.png", 5, (256, 192)), photo(tmp_path / "other.png", 190, (256, 192))
    with Image.open(sharp) as image:
        image.transpose(Image.Transpose.FLIP_TOP_BOTTOM).filter(ImageFilter.GaussianBlur(4)).save(tmp_path / "soft.png")
        image.save(tmp_path / "again.jpg", quality=50)
    (tmp_path / "text.png").write_text("not a picture")
    found = check_pictures(
        [sharp, other, tmp_path / "soft.png", tmp_path / "again.jpg", tmp_path / "text.png", other], 128
    )
    assert {path.name: list(about) for path, about in found.about.items()} == {
        "other.png": ["dropped twice"],
        "sharp.png": [],
        "soft.png": ["blurred"],
        "again.jpg": ["like sharp.png"],
        "text.png": ["cannot be used"],
    }
    assert sorted(text for about in found.about.values() for text in about.values()) == sorted(
        [*found.refused, *found.notes]
    )


def test_captions_that_are_written_on_the_page_are_those_of_the_training(
    training_queue: TrainingQueue, request_: TrainingForm, tmp_path: Path
) -> None:
    pictures = [photo(tmp_path / f"{name}.png", place) for name, place in (("a", 5), ("b", 25), ("c", 40))]
    words = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for file in words:
        file.write_text("a dog of the file")
    asked = replace(request_, pictures=[*pictures, pictures[0], *words])
    captions = {pictures[0]: "  a dog\nin the snow ", pictures[1]: " "}
    shown = [(text, "cannot be shown") for text in ("a\u202eb", "half of an emoji: \ud83d")]
    for text, said in [("x" * 70_000, "more than 65,536 bytes"), *shown]:
        with pytest.raises(ConfigError, match=f"the caption of c.png .*{said}"):
            training_queue.submit(replace(asked, captions={pictures[2]: text}))
    job = over(training_queue.submit(replace(asked, captions=captions)))
    assert files(job.folder / "pictures") == ["001.png", "001.txt", "002.png", "003.png"]
    assert (job.folder / "pictures" / "001.txt").read_text() == "a dog in the snow"


def test_a_painted_mask_is_that_of_the_training_instead_of_a_files(
    training_queue: TrainingQueue, request_: TrainingForm, tmp_path: Path
) -> None:
    pictures = [photo(tmp_path / f"{name}.png", place) for name, place in (("a", 5), ("b", 25))]
    for name in ("a", "b"):
        Image.new("L", (64, 48), 255).save(tmp_path / f"{name}-masklabel.png")
    painted = Image.new("L", (512, 384))
    painted.paste(255, (0, 0, 256, 384))
    asked = replace(request_, pictures=sorted(tmp_path.glob("*.png")), masks={pictures[0]: painted})
    job = over(training_queue.submit(asked))
    masks = [job.folder / "pictures" / f"{number}-masklabel.png" for number in ("001", "002")]
    assert files(job.folder / "pictures") == ["001-masklabel.png", "001.png", "002-masklabel.png", "002.png"]
    for path, right in zip(masks, (0, 255), strict=True):
        with Image.open(path) as mask:
            assert [mask.getpixel((x, 10)) for x in (2, mask.width - 2)] == [255, right]


def test_previews_draw_what_was_asked_for(
    training_queue: TrainingQueue, request_: TrainingForm, tmp_path: Path
) -> None:
    own = {"validation_prompt": "a sks dog on the moon"}
    assert (
        training_queue.config(replace(request_, settings=own), tmp_path).validation_prompt == own["validation_prompt"]
    )
    with pytest.raises(ConfigError, match="--validation_prompt 'a cat' lacks the trigger 'sks dog'"):
        training_queue.submit(replace(request_, settings={"validation_prompt": "a cat"}))


def test_what_is_no_picture_is_refused_by_its_name(
    training_queue: TrainingQueue, request_: TrainingForm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    whole = photo(tmp_path / "whole.png", 5).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "large.png").write_bytes(bytes(2048))
    Image.new("1", (2000, 1000)).save(tmp_path / "bomb.png")
    monkeypatch.setattr("coeff_diffusion.images.photo.MAX_PIXELS", 1_000_000)
    monkeypatch.setattr("coeff_diffusion.service.picture_check.MAX_BYTES", 2000)
    paths = [tmp_path / f"{name}.png" for name in ("text", "cut", "large", "bomb", "gone")]
    refused = check_pictures(paths, 32).refused
    starts = (
        "text.png is not a readable picture",
        "cut.png is not a readable picture",
        "large.png has 2,048 bytes, expected at most 2,000",
        "bomb.png has 2000 x 1000 pixels",
    )
    assert refused[0] == "gone.png cannot be read: no regular file"
    assert [text.startswith(start) for text, start in zip(refused[1:], starts, strict=True)] == [True] * 4
    assert str(tmp_path) not in " ".join(refused)
    with pytest.raises(ConfigError, match=r"cut\.png is not a readable picture"):
        training_queue.submit(replace(request_, pictures=[tmp_path / "whole.png", tmp_path / "cut.png"]))
    copies = [shutil.copy(tmp_path / "whole.png", tmp_path / f"{number}.png") for number in range(MAX_PICTURES + 1)]
    many = check_pictures(copies, 32)
    assert many.refused == ["there are 101 pictures, expected at most 100; five good ones do"]
    assert torch.initial_seed() == 0  # looking at pictures draws from no generator but its own


def test_captions_and_masks_go_with_their_pictures(
    training_queue: TrainingQueue, request_: TrainingForm, tmp_path: Path
) -> None:
    """Uploads lie in a folder each; what belongs together is told by the names."""
    files = {"b.png": b"", "a.png": b"", "b.txt": "ein hübscher dog".encode("latin-1"), "a-masklabel.png": b""}
    files |= {"notes.md": b"x", ".DS_Store": b"x"}
    for number, (name, content) in enumerate(files.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        if name.endswith(".png"):
            photo(folder / name, 5 + 30 * number)
        else:
            (folder / name).write_bytes(content)
    Image.new("L", (64, 48), 255).save(tmp_path / "3" / "a-masklabel.png")
    paths = [tmp_path / str(number) / name for number, name in enumerate(files)]
    found = check_pictures(paths, 32)
    assert found.refused == []
    assert [path.name for path in found.crops] == ["b.png", "a.png"]
    assert found.notes == [
        "left out .DS_Store: hidden, or a file of the system",
        "left out notes.md: no picture",
        "1 of 2 pictures have a caption, 1 a mask",
        "b.txt is not UTF-8 and is read as Western European text; if it is not, save it anew",
    ]
    copy_pictures(paths, tmp_path / "copy", {})
    copied = find_pictures(tmp_path / "copy")
    assert [path.name for path in copied.paths] == ["001.png", "002.png"]
    assert copied.left_out == {}
    assert [one.mask and one.mask.name for one in copied.pictures] == [None, "002-masklabel.png"]
    assert [words and words.text for words in (one.words() for one in copied.pictures)] == ["ein hübscher dog", None]
    Image.new("L", (64, 48), 0).save(tmp_path / "3" / "a-masklabel.png")
    (refused,) = check_pictures(paths, 32).refused
    assert refused.startswith("a-masklabel.png has nothing white")


def test_photos_that_are_not_read_here_are_refused_with_what_reads_them(tmp_path: Path) -> None:
    (tmp_path / "IMG_1.CR2").write_bytes(b"II*\0")
    found = check_pictures([tmp_path / "IMG_1.CR2", photo(tmp_path / "a.png", 5)], 32)
    assert found.refused == ["IMG_1.CR2 cannot be read: raw photos are not developed; export them as JPEG, PNG or TIFF"]
    assert check_pictures([], 32).refused == []
    (tmp_path / "notes.txt").write_text("mine")
    assert check_pictures([tmp_path / "notes.txt"], 32).refused == ["there is no picture among these files"]


def test_what_is_done_to_pictures_is_said(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert check_pictures([tmp_path / "a.gif"], 32).notes == [
        "a.gif: it is an animation or holds several pictures; the first one is used"
    ]
