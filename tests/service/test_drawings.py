import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from other_programs import TEXTS
from other_programs import picture as program_picture
from PIL import Image

from coeff_diffusion import Coefficients, CoefficientsError, CoefficientsInfo
from coeff_diffusion.images.drawing_settings import SETTINGS
from coeff_diffusion.images.files import read_parameters, save_picture
from coeff_diffusion.images.generation_info import Parameters, PictureError, format_parameters
from coeff_diffusion.inference.request import DrawRequest, LayerStrengths, StudioError
from coeff_diffusion.inference.studio import Studio
from coeff_diffusion.service import Drawings, SubjectLoader, in_few_words, limits_of
from coeff_diffusion.sources.image_card import chunks, embed, extract
from coeff_diffusion.sources.library import Library
from coeff_diffusion.subject.adapter import Adapter
from coeff_diffusion.subject.adapter_kind import AdapterKind
from coeff_diffusion.subject.adapter_methods import DOWN, UP

REQUEST = DrawRequest("a sks dog", subjects={"dog": 1.0}, seed=1, steps=2)
STRANGER = Coefficients({"a.b": torch.ones(2, 2)}, info=CoefficientsInfo(name="stranger", base_model="other"))


@pytest.fixture
def library(new_subject: Callable[..., Coefficients], tmp_path: Path) -> Library:
    library = Library(tmp_path / "subjects")
    library.put(new_subject("dog", vectors=1, class_word="dog"), "dog")
    library.put(new_subject("cat", "sks cat", class_word="cat", seed=2), "cat")
    return library


@pytest.fixture
def drawings(tiny_pipe: StableDiffusionPipeline, library: Library, tmp_path: Path) -> Drawings:
    return Drawings(SubjectLoader(Studio(tiny_pipe), library), tmp_path / "pictures")


def picture(path: Path, parameters: Parameters | None, *subjects: Coefficients) -> Path:
    return save_picture(
        Image.new("RGB", (8, 8)), path, format_parameters(parameters) if parameters else None, chunks(subjects)
    )


def drawn(drawings: Drawings, **changes: object) -> Parameters:
    """What a picture of `REQUEST` says about itself, with changes."""
    found = read_parameters(drawings.draw(REQUEST, compare=False).files[0])
    return replace(found, **changes)  # type: ignore[arg-type]


def test_a_file_that_takes_anothers_place_is_drawn_also_with_its_time_and_size(
    drawings: Drawings, library: Library, new_subject: Callable[..., Coefficients]
) -> None:
    """An archive gives all its files one time, and subjects of one base are of one size."""
    path = library.path("dog")
    library.put(new_subject("dog", vectors=1, class_word="dog", seed=5), "next")
    assert library.path("next").stat().st_size == path.stat().st_size
    for one in (path, library.path("next")):
        os.utime(one, (0, 0))
    before = drawn(drawings).hashes["dog"]
    library.path("next").replace(path)
    assert drawn(drawings).hashes["dog"] == Coefficients.load(path).sha256[:12] != before


# --- drawing ----------------------------------------------------------------------------------------------------------


def test_both_sides_are_drawn_saved_and_paired(drawings: Drawings) -> None:
    steps: list[object] = []
    drawing = drawings.draw(replace(REQUEST, batch_size=2), True, steps.append)
    assert [path.name for path in drawing.files] == [
        "00001-1-base.png",
        "00002-2-base.png",
        "00003-1.png",
        "00004-2.png",
    ]
    assert [(path.name[:5], words) for path, words in drawing.saved().shown] == [
        ("00001", "base, seed 1"),
        ("00003", "dog, seed 1"),
        ("00002", "base, seed 2"),
        ("00004", "dog, seed 2"),
    ]
    assert len(steps) == 4
    assert read_parameters(drawing.files[0]).prompt == "a dog"
    alone = drawings.draw(DrawRequest("a dog", seed=1, steps=1), compare=True)
    assert [words for _, words in alone.saved().shown] == ["base, seed 1"]  # nothing to compare without a subject


def test_a_drawing_in_few_words() -> None:
    prompt = "a sks dog\nwith a " + "very " * 20 + "red ball"
    long = DrawRequest(prompt, subjects={"dog": 1.0, "cat": 0.5}, batch_size=2)
    assert in_few_words(long) == "a sks dog with a very very very very very very very very ... · dog + cat · 2 pictures"
    assert in_few_words(DrawRequest(" ")) == "no prompt · 1 picture"


def test_pictures_carry_their_subjects_when_asked(drawings: Drawings, library: Library) -> None:
    request = replace(REQUEST, prompt="a sks dog and a sks cat", subjects={"dog": 1.0, "cat": 0.5})
    base, both = drawings.draw(request, True, embed_subjects=True).files
    assert extract(base) == []
    assert extract(both) == [Coefficients.load(library.path(name)) for name in ("dog", "cat")]
    assert extract(drawings.draw(request, False).files[0]) == []


def test_what_was_probably_not_meant_is_said(drawings: Drawings) -> None:
    (note,) = drawings.draw(replace(REQUEST, prompt=" "), compare=False).notes[-1:]
    assert note.startswith("the prompt is empty")
    long = replace(REQUEST, prompt=f"a sks dog {'red ' * 73}(on:1.2) snow", steps=1)
    assert drawings.draw(long, compare=False).notes == [
        "prompt: 8 of 85 tokens are cut off, the text encoder does not read '(on:1.2) snow'",
        "read as plain text here, though not in other programs: '(on:1.2)'",
    ]
    with pytest.raises(StudioError, match="'dog' stands in two rows; take it out of one of them"):
        drawings.strengths([("dog", 1.0), ("", 1.0), ("", 2.0), ("dog", 0.5)])
    assert drawings.strengths([("dog", 0.5), ("", 1.0)]) == {"dog": 0.5}


def test_comparing_needs_a_class_word(
    drawings: Drawings, library: Library, new_subject: Callable[..., Coefficients]
) -> None:
    library.put(new_subject("pot", "sks pot"), "pot")
    with pytest.raises(StudioError, match="does not record its class word.*, or draw without comparing"):
        drawings.draw(DrawRequest("a sks pot", subjects={"pot": 1.0}, steps=1))


def test_words_that_call_a_subject_up(
    drawings: Drawings, library: Library, new_subject: Callable[..., Coefficients]
) -> None:
    library.put(new_subject("pot", "", gate="always"), "pot")
    library.put(new_subject("own", "sks own", instance_prompt="a photo of sks own"), "own")
    assert [drawings.describe(name) for name in ("dog", "pot")] == ["dog: write “sks dog”", "pot: acts on every prompt"]
    library.put(new_subject("tuned", base_model="user/tiny", base_sample=(9.0,) * 24), "tuned")
    assert drawings.describe("tuned") == (
        "tuned: write “sks dog”; the subject was trained on user/tiny, which is of the same kind as this base but has "
        "other weights; it may look different here"
    )
    library.put(new_subject("other", base_fingerprint="0" * 64, base_sample=(9.0,) * 24), "other")
    assert drawings.describe("other") == "other: write “sks dog”"
    assert [drawings.first_prompt(name) for name in ("dog", "pot", "own")] == ["a sks dog", "", "a photo of sks own"]


# --- a subject joins --------------------------------------------------------------------------------------------------


def test_a_subject_with_an_adapter_says_so_and_cannot_go_into_a_picture(drawings: Drawings, library: Library) -> None:
    subject = library.subjects()["dog"]
    width = 16  # of the first layer of the tiny base
    factors = {DOWN: torch.arange(width)[None] / 4, UP: torch.arange(width)[:, None] / 4}
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    name = library.put(subject.joined(Adapter(AdapterKind("lora", 1), {path: factors})), "joined")
    assert [drawings.has_adapter(one) for one in (name, "dog", "gone")] == [True, False, False]
    assert drawings.describe(name) == "joined: write “sks dog”, with an adapter (lora:1)"
    asked = DrawRequest("a sks dog", subjects={name: 1.0}, steps=1, seed=0)
    (with_it,), (without,), (as_dog,) = (
        drawings.draw(one).pictures
        for one in (asked, replace(asked, adapter_strength=0), replace(asked, subjects={"dog": 1.0}))
    )
    assert with_it.image.tobytes() != without.image.tobytes() == as_dog.image.tobytes()
    with pytest.raises(CoefficientsError, match="no room for the adapter"):
        drawings.draw(asked, embed_subjects=True)


def test_files_and_cards_join_the_library(drawings: Drawings, library: Library, tmp_path: Path) -> None:
    subject = Coefficients.load(library.path("dog"))
    subject.save(tmp_path / "mine.safetensors")
    card = picture(tmp_path / "card.png", None, subject.scaled(0.5))
    assert [drawings.add(file) for file in (tmp_path / "mine.safetensors", card)] == ["dog", "card"]
    assert drawings.add(card) == "card"  # the very same numbers


def test_a_subject_of_another_base_is_refused_and_not_added(
    drawings: Drawings, library: Library, tmp_path: Path
) -> None:
    STRANGER.save(tmp_path / "stranger.safetensors")
    before = list(library.find())
    with pytest.raises(CoefficientsError, match="the subject is for other .* this base is"):
        drawings.add(tmp_path / "stranger.safetensors")
    with pytest.raises(CoefficientsError) as error:
        drawings.add(picture(tmp_path / "photo.png", None))
    assert str(tmp_path) not in str(error.value)
    assert list(library.find()) == before


# --- settings of a picture --------------------------------------------------------------------------------------------


def test_all_settings_come_back(drawings: Drawings) -> None:
    asked = DrawRequest(
        "a sks dog, <b>red</b>",
        negative_prompt="blue",
        subjects={"dog": 0.55, "cat": 0.0},
        seed=7,
        steps=3,
        guidance_scale=3.3,
        scheduler="Euler a",
        width=24,
        height=32,
        batch_size=2,
        layers=LayerStrengths(self_attention=0.5, up=1.5),
        begin=0.25,
        end=0.75,
    )
    settings = drawings.settings_of(drawings.draw(asked, compare=False).files[1])
    assert settings.notes == []
    assert settings.request == replace(asked, seed=8, batch_size=1)  # of this picture alone
    assert settings.subjects == asked.subjects


def test_a_card_draws_its_picture_again_where_nobody_knew_its_subject(drawings: Drawings, library: Library) -> None:
    drawing = drawings.draw(replace(REQUEST, subjects={"dog": 0.8}), False, embed_subjects=True)
    library.delete("dog")
    settings = drawings.settings_of(drawing.files[0])
    assert settings.notes == ["its subject joined the library as 'dog'"]
    assert settings.request is not None
    again = drawings.draw(settings.request, False)
    assert again.pictures[0].image.tobytes() == drawing.pictures[0].image.tobytes()
    library.rename("dog", "rex")  # a subject that is there already joins no second time, whatever it is called
    settings = drawings.settings_of(drawing.files[0])
    assert (settings.subjects, settings.notes) == ({"rex": 0.8}, [])
    assert list(library.find()) == ["cat", "rex"]


def test_what_cannot_be_restored_is_said(drawings: Drawings, library: Library, tmp_path: Path) -> None:
    found = drawn(drawings)
    library.delete("dog")
    path = picture(tmp_path / "a.png", found)
    settings = drawings.settings_of(path)
    assert settings.subjects == {}
    assert settings.notes[0].startswith(f"it was drawn with 'dog' ({found.hashes['dog']}), which it does not carry")

    settings = drawings.settings_of(picture(path, replace(found, model="else", subjects={}, hashes={})))
    assert settings.notes == [
        "a.png was drawn by the base 'else', this base is 'tiny'; it will not be the same picture"
    ]
    settings = drawings.settings_of(picture(path, replace(found, gate="always", subjects={}, guidance_rescale=0.5)))
    assert "gate 'always'" in settings.notes[0]
    assert "rescaled by 0.5; here it is 0" in settings.notes[1]


def test_pictures_of_other_tools_give_what_they_say(drawings: Drawings, tmp_path: Path) -> None:
    parameters = Parameters(
        "a cat",
        steps=28,
        scheduler="Restart",
        unsaid=frozenset({"guidance_scale"}),
        extra={"Clip skip": "2", "VAE": "x"},
    )
    settings = drawings.settings_of(picture(tmp_path / "a.png", parameters))
    assert settings.request is not None
    assert (settings.request.prompt, settings.request.steps, settings.request.seed) == ("a cat", 28, None)
    assert settings.request.scheduler == "DDIM"
    assert settings.notes == [
        "a.png does not say which base it was drawn by; this base is 'tiny'; it will not be the same picture",
        "it does not say its seed, guidance, size",
        "it was drawn with settings that are not here, so it will look different: Clip skip 2, VAE x",
        "its sampler 'Restart' cannot draw with this base (its solver is not here); 'DDIM' is chosen",
    ]


@pytest.mark.parametrize("program", TEXTS)
def test_pictures_of_every_program_fill_the_page(program: str, drawings: Drawings, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(program_picture(TEXTS[program]))
    settings = drawings.settings_of(tmp_path / "a.png")
    request = settings.request
    assert request is not None
    assert (request.prompt, request.seed, request.steps, request.guidance_scale) == ("a cat on grass", 7, 8, 7.0)
    assert (request.scheduler or "").startswith("DPM++ 2M")
    said = " ".join(settings.notes)
    assert "its width was 128; here it is 64" in said
    assert "settings that are not here, so it will look different: " in said
    drawings.draw(replace(request, steps=1, width=16, height=16), compare=False)


def test_values_beyond_the_controls_come_back_as_near_as_they_reach(drawings: Drawings, tmp_path: Path) -> None:
    found = drawn(
        drawings,
        steps=900,
        guidance_scale=float("nan"),
        width=20,
        height=10**6,
        subjects={"dog": -1.0},
        end=float("inf"),
    )
    settings = drawings.settings_of(picture(tmp_path / "a.png", found))
    request, studio = settings.request, drawings.loader.studio
    assert (limits_of(studio, SETTINGS["width"]), studio.multiple) == ((16, 64), 8)
    assert request is not None
    assert (request.steps, request.guidance_scale, request.width, request.height) == (100, 7.5, 16, 64)
    assert (settings.subjects, request.end) == ({"dog": 0.0}, 1)
    assert "its number of steps was 900; here it is 100" in settings.notes
    assert "its width was 20; here it is 16, a multiple of 8" in settings.notes
    assert len(settings.notes) == 6
    drawings.draw(replace(request, steps=1))  # what comes back can be drawn


def test_more_subjects_than_there_are_rows(
    drawings: Drawings, library: Library, new_subject: Callable[..., Coefficients], tmp_path: Path
) -> None:
    for number in range(5):
        library.put(new_subject(f"s{number}", f"sks s{number}", seed=10 + number), f"s{number}")
    found = drawn(drawings, subjects={f"s{number}": 1.0 for number in range(5)}, hashes={})
    settings = drawings.settings_of(picture(tmp_path / "a.png", found))
    assert list(settings.subjects) == ["s0", "s1", "s2", "s3"]
    assert settings.notes[0] == "it does not record the hash of 's0'; it is taken to be the library's 's0'"
    assert settings.notes[-1] == "it was drawn with 5 subjects; here there is room for 4"


def test_a_photo_that_carries_a_subject_gives_the_subject(drawings: Drawings, library: Library, tmp_path: Path) -> None:
    subject = Coefficients.load(library.path("dog"))
    settings = drawings.settings_of(picture(tmp_path / "a.png", None, subject))
    assert settings.request is None
    assert (settings.subjects, settings.notes) == ({"dog": 1.0}, ["it does not say how it was drawn"])
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    assert drawings.settings_of(tmp_path / "a.jpg") == settings


def test_a_subject_of_another_base_is_left_out(drawings: Drawings, library: Library, tmp_path: Path) -> None:
    found = drawn(drawings, subjects={"stranger": 1.0}, hashes={"stranger": STRANGER.sha256[:12]})
    settings = drawings.settings_of(picture(tmp_path / "a.png", found, STRANGER))
    assert settings.subjects == {}
    (note,) = settings.notes
    assert note.startswith("the subject 'stranger'")
    assert "is left out: the subject is for other" in note
    assert list(library.find()) == ["cat", "dog"]


def test_damaged_library_files_are_passed_over(drawings: Drawings, library: Library, tmp_path: Path) -> None:
    found = drawn(drawings)
    (library.folder / "broken.safetensors").write_bytes(b"nothing")
    assert drawings.settings_of(picture(tmp_path / "a.png", found)).subjects == {"dog": 1.0}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.png", b"no picture", "a.png: not a subject: it is a text"),
        ("a.png", None, "a.png carries no subject"),
        ("a.jpg", None, "a.jpg is a JPEG picture, which carries no subject"),
    ],
)
def test_what_gives_nothing_is_refused_by_its_name(
    drawings: Drawings, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    path = tmp_path / name
    if content is None:
        Image.new("RGB", (64, 64)).save(path)
    else:
        path.write_bytes(content)
    with pytest.raises((PictureError, CoefficientsError), match=f"^{message}") as error:
        drawings.settings_of(path)
    assert str(tmp_path) not in str(error.value)


def test_a_damaged_card_is_refused(drawings: Drawings, library: Library, tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", None)
    card = embed(path.read_bytes(), [Coefficients.load(library.path("dog"))])
    path.write_bytes(card.replace(b'"format_version', b'"format-version'))
    with pytest.raises(CoefficientsError, match="^a.png cannot be read as a card: .*checksum"):
        drawings.settings_of(path)
    with pytest.raises(StudioError, match="picture 3 of a batch of 2"):
        drawings.settings_of(picture(path, drawn(drawings, batch_size=2, batch_position=3)))
