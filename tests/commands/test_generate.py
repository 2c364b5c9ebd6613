import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from other_programs import TEXTS
from other_programs import picture as program_picture
from PIL import Image
from safetensors.torch import load_file, save_file
from subject_maker import make_subject

from coeff_diffusion import Coefficients, CoefficientsError, load_base
from coeff_diffusion.cli import main
from coeff_diffusion.commands.generate import generate
from coeff_diffusion.commands.generate_config import GenerateConfig, drawing_flags
from coeff_diffusion.images.files import read_parameters, save_picture
from coeff_diffusion.images.generation_info import Parameters, PictureError, format_parameters
from coeff_diffusion.inference.limits import within_limits
from coeff_diffusion.inference.replay import Replay
from coeff_diffusion.inference.request import StudioError, split_strength
from coeff_diffusion.inference.studio import Studio
from coeff_diffusion.sources.image_card import extract
from coeff_diffusion.subject.layer_strengths import LayerStrengths


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dog.safetensors", ("dog.safetensors", 1.0)),
        ("dog.safetensors:0.8", ("dog.safetensors", 0.8)),
        ("user/repo:-1", ("user/repo", -1.0)),
        (r"C:\subjects\dog.safetensors", (r"C:\subjects\dog.safetensors", 1.0)),
        (r"C:\subjects\dog.safetensors:2", (r"C:\subjects\dog.safetensors", 2.0)),
        ("7", ("7", 1.0)),
        ("folder:name", ("folder:name", 1.0)),
    ],
)
def test_strength_behind_the_colon(text: str, expected: tuple[str, float]) -> None:
    assert split_strength(text) == expected


def test_several_subjects_in_one_picture(tiny_base_dir: Path, tmp_path: Path) -> None:
    pipe = load_base(tiny_base_dir)
    for word in ("dog", "cat"):
        subject = make_subject(pipe.unet, pipe.text_encoder, word, f"sks {word}", word)
        subject.save(tmp_path / f"{word}.safetensors")
    lines: list[str] = []
    files = generate(
        GenerateConfig(
            prompt=["a sks dog and a sks cat"],
            subject=[str(tmp_path / "dog.safetensors:0.5"), str(tmp_path / "cat.safetensors")],
            base=str(tiny_base_dir),
            settings={"num_inference_steps": 1, "seed": 1},
            compare=True,
            output_dir=str(tmp_path / "out"),
        ),
        lines.append,
    )
    assert [file.name for file in files] == ["00001-1-base.png", "00002-1.png"]
    assert read_parameters(files[1]).subjects == {"dog": 0.5, "cat": 1.0}
    assert read_parameters(files[0]).prompt == "a dog and a cat"
    assert lines[:2] == [
        "subject 'dog' at strength 0.5, called up by 'sks dog'",
        "subject 'cat' at strength 1, called up by 'sks cat'",
    ]


def test_what_is_not_read_is_noted(tiny_base_dir: Path, tmp_path: Path) -> None:
    """Also of a picture that is drawn again."""
    negative = {"negative_prompt": "a <lora:ink:1>"}
    config = GenerateConfig(prompt=["red " * 74 + "dog, ((cat))"], base=str(tiny_base_dir), output_dir=str(tmp_path),
                            settings={"num_inference_steps": 1, "seed": 1, **negative})  # fmt: skip
    expected = [
        "note: prompt: 6 of 83 tokens are cut off, the text encoder does not read ', ((cat))'",
        "note: read as plain text here, though not in other programs: '((cat))', '<lora:ink:1>'",
    ]
    lines: list[str] = []
    (file,) = generate(config, lines.append)
    assert lines[:-1] == expected
    lines.clear()
    generate(GenerateConfig(from_picture=str(file), base=str(tiny_base_dir), output_dir=str(tmp_path)), lines.append)
    assert lines[1:-1] == expected


def test_nothing_to_draw() -> None:
    with pytest.raises(StudioError, match="give a --prompt"):
        generate(GenerateConfig())


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(StudioError, match="there is no setting 'steps'; there are negative_prompt, prompt_2"):
        generate(GenerateConfig(prompt=["a dog"], settings={"steps": 2}))


# --- a picture again --------------------------------------------------------------------------------------------------

WORDS = ("dog", "cat")
CHANGES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "negative prompt": {"negative_prompt": "a sks cat, blurry"},
    "steps": {"num_inference_steps": 3},
    "guidance": {"guidance_scale": 3.3},
    "guidance rescale": {"guidance_rescale": 0.7},
    "sampler": {"scheduler": "Euler a"},
    "size": {"width": 24, "height": 32},
    "gate": {"gate": "always", "prompt": ["a photo of the pot"]},
    "kinds of layer": {"self_attention_strength": 0.3, "cross_attention_strength": 2.0, "mid_strength": 0.0},
    "parts of the UNet": {"down_strength": 0.2, "up_strength": -1.0, "text_strength": 0.5},
    "end of denoising": {"act_from": 0.5},
    "start of denoising": {"act_until": 0.5},
    "precision": {"dtype": "bfloat16"},
}


@pytest.fixture(scope="module")
def sources(tiny_base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of two subjects, both called "pet"."""
    folder = tmp_path_factory.mktemp("subjects")
    pipe = load_base(tiny_base_dir)
    for seed, word in enumerate(WORDS):
        make_subject(pipe.unet, pipe.text_encoder, "pet", f"sks {word}", word, seed).save(
            folder / f"{word}.safetensors"
        )
    return folder


def drawn(base: Path | None, out: Path, *subjects: str, **changes: Any) -> tuple[Path, list[str]]:
    """The one picture that is drawn, and what was said."""
    lines: list[str] = []
    settings = {name: changes.pop(name) for name in drawing_flags() if name in changes}
    options = {
        "base": base and str(base),
        "subject": list(subjects),
        "output_dir": str(out),
        "settings": settings,
        **changes,
    }
    (file,) = generate(GenerateConfig(**options), lines.append)
    return file, lines


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image, dtype=np.int16)


def same(first: Path, second: Path) -> bool:
    return pixels(first).shape == pixels(second).shape and bool((pixels(first) == pixels(second)).all())


@pytest.fixture(scope="module")
def plain(tiny_base_dir: Path, sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A card of both subjects with the default settings."""
    return both(tiny_base_dir, sources, tmp_path_factory.mktemp("plain"))[0]


def both(base: Path, sources: Path, out: Path, **changes: Any) -> tuple[Path, list[str]]:
    asked = {"prompt": ["a sks dog and a sks cat"], "num_inference_steps": 2, "seed": 3, "embed_subjects": True}
    subjects = (f"{sources}/dog.safetensors:0.5", f"{sources}/cat.safetensors:-0.3")
    return drawn(base, out, *subjects, **asked | changes)


@pytest.mark.parametrize("kind", CHANGES)
def test_a_card_gives_the_very_same_picture(
    kind: str, tiny_base_dir: Path, sources: Path, plain: Path, tmp_path: Path
) -> None:
    card, lines = both(tiny_base_dir, sources, tmp_path / "drawn", **CHANGES[kind])
    assert same(card, plain) == (kind == "as it is")  # each of these settings shows in the pixels
    assert "which carries 'pet' (" in lines[-1]
    card = card.rename(tmp_path / "card.png")
    again, lines = drawn(tiny_base_dir, tmp_path / "again", from_picture=str(card))
    assert same(again, card)
    assert read_parameters(again) == read_parameters(card)
    assert list(read_parameters(again).subjects.items()) == [("pet", 0.5), ("pet-2", -0.3)]
    assert extract(again) == []  # what was embedded once is not embedded again unless asked for
    assert lines[1:3] == [
        "subject 'pet' at strength 0.5, called up by 'sks dog'",
        "subject 'pet-2' at strength -0.3, called up by 'sks cat'",
    ]
    assert not any(line.startswith("note") for line in lines)


def test_each_picture_of_a_batch_comes_again_bit_by_bit(tiny_base_dir: Path, sources: Path, tmp_path: Path) -> None:
    cards = generate(
        GenerateConfig(
            prompt=["a sks dog"],
            subject=[str(sources / "dog.safetensors")],
            base=str(tiny_base_dir),
            settings={"num_inference_steps": 2, "batch_size": 3},
            embed_subjects=True,
            compare=True,
            output_dir=str(tmp_path / "drawn"),
        ),
        lambda line: None,
    )
    assert [bool(extract(card)) for card in cards] == [False] * 3 + [True] * 3  # the base draws without subjects
    for card in (cards[1], cards[5]):
        again, _ = drawn(tiny_base_dir, tmp_path / "again", from_picture=str(card))
        assert same(again, card)
        assert read_parameters(again) == read_parameters(card)
    place = read_parameters(cards[5])
    assert (place.batch_size, place.batch_position) == (3, 2)
    alone, _ = drawn(tiny_base_dir, tmp_path / "alone", from_picture=str(cards[5]), batch_size=1)
    assert read_parameters(alone).seed == place.seed
    assert read_parameters(alone).batch_size == 1
    assert np.abs(pixels(alone) - pixels(cards[5])).max() <= 1


def test_a_picture_may_ask_for_no_more_than_the_page_offers(tiny_base_dir: Path, tmp_path: Path) -> None:
    asked = Parameters("a dog", seed=70, steps=90_000, width=16_384, height=16_384, batch_size=64, batch_position=5,
                       scheduler="DDIM", model=tiny_base_dir.name)  # fmt: skip
    save_picture(Image.new("RGB", (8, 8)), tmp_path / "a.png", format_parameters(asked))
    file, lines = drawn(tiny_base_dir, tmp_path, from_picture=str(tmp_path / "a.png"), num_inference_steps=1)
    found = read_parameters(file)
    assert (found.width, found.height, found.steps, found.seed, found.batch_size) == (64, 64, 1, 70, 1)
    assert [line for line in lines if "here it is" in line] == [
        "note: its width was 16384; here it is 64, unless you give --width 16384",
        "note: its height was 16384; here it is 64, unless you give --height 16384",
        "note: it was drawn with 63 others, too many at once for 64 x 64 pixels; here it is drawn alone, so its last "
        "bits may differ",
    ]
    request, place = Replay.read(tmp_path / "a.png").request()
    request, place, notes = within_limits(Studio(load_base(tiny_base_dir)), request, place, ("width", "height"))
    assert (request.width, request.height, request.steps, place) == (16_384, 16_384, 100, None)
    assert notes[0] == "its number of steps was 90000; here it is 100, unless you give --num_inference_steps 90000"
    few = replace(request, width=None, height=None, batch_size=16)
    assert within_limits(Studio(load_base(tiny_base_dir)), few, 3, ()) == (few, 3, [])


def test_flags_win_over_the_card(tiny_base_dir: Path, sources: Path, plain: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "prompt": ["the sks dog"], "negative_prompt": "", "seed": 9, "num_inference_steps": 1, "guidance_scale": 1.0,
        "scheduler": "Euler", "width": 24, "gate": "always",
    }  # fmt: skip
    file, lines = drawn(
        tiny_base_dir, tmp_path, f"{sources}/cat.safetensors:2", from_picture=str(plain), embed_subjects=True, **changes
    )
    found = read_parameters(file)
    assert (found.prompt, found.seed, found.steps, found.guidance_scale) == ("the sks dog", 9, 1, 1.0)
    assert (found.scheduler, found.width, found.height, found.gate) == ("Euler", 24, 16, "always")
    assert found.subjects == {"pet": 0.5, "pet-2": 2.0}
    assert len(extract(file)) == 2
    assert lines[0].startswith(f"again from {plain}: 'the sks dog'")


def test_a_flag_changes_one_kind_of_layer(tiny_base_dir: Path, sources: Path, tmp_path: Path) -> None:
    card, _ = both(tiny_base_dir, sources, tmp_path, cross_attention_strength=0.2, up_strength=0.5, act_from=0.5)
    again, _ = drawn(tiny_base_dir, tmp_path, from_picture=str(card), up_strength=1.0, act_from=0.0, act_until=0.5)
    found = read_parameters(again)
    assert (found.layers, found.begin, found.end) == (LayerStrengths(cross_attention=0.2), 0.0, 0.5)
    for changes, message in [
        ({"act_until": 1.5}, "end is 1.5, expected 0 to 1"),
        ({"act_from": 0.5, "act_until": 0.5}, "begin is 0.5 and end is 0.5, expected begin before end"),
        ({"mid_strength": float("inf")}, "mid layers is inf, expected a finite number"),
    ]:
        with pytest.raises(StudioError, match=message):
            both(tiny_base_dir, sources, tmp_path, **changes)


def test_a_picture_without_its_subjects_wants_their_files(tiny_base_dir: Path, sources: Path, tmp_path: Path) -> None:
    options = {"prompt": ["a sks dog"], "num_inference_steps": 1}
    file, _ = drawn(tiny_base_dir, tmp_path, f"{sources}/dog.safetensors:0.25", **options)
    dog, cat = (Coefficients.load(sources / f"{word}.safetensors").sha256[:12] for word in WORDS)
    with pytest.raises(StudioError, match=rf"'pet' \({dog}\), which it does not carry; give the file with --subject"):
        drawn(tiny_base_dir, tmp_path, from_picture=str(file))
    with pytest.raises(StudioError, match=rf"'pet' \({dog}\), which it does not carry; but .*is 'pet' \({cat}\)"):
        drawn(tiny_base_dir, tmp_path, f"{sources}/cat.safetensors", from_picture=str(file))
    again, _ = drawn(tiny_base_dir, tmp_path, f"{sources}/dog.safetensors", from_picture=str(file))
    assert same(again, file)
    assert read_parameters(again).subjects == {"pet": 0.25}
    weaker, _ = drawn(tiny_base_dir, tmp_path, f"{sources}/dog.safetensors:0", from_picture=str(file))
    assert not same(weaker, file)


def test_another_base_is_refused_unless_it_was_asked_for(
    tiny_base_dir: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StudioError, match=r"drawn by the base 'tiny', this base is 'embedded'; give .* with --base"):
        drawn(None, tmp_path, from_picture=str(plain))
    other = tmp_path / "other"
    shutil.copytree(tiny_base_dir, other)
    _, lines = drawn(other, tmp_path, from_picture=str(plain))
    (note,) = [line for line in lines if line.startswith("note")]
    assert "drawn by the base 'tiny', this base is 'other'; it will not be the same picture" in note

    # The base in the package may have other weights in another version.
    for part in ("embedded_path",):
        monkeypatch.setattr(f"coeff_diffusion.families.load.{part}", lambda: tiny_base_dir)
    card, _ = drawn(None, tmp_path, prompt=["a dog"], num_inference_steps=1)
    again, _ = drawn(None, tmp_path, from_picture=str(card))
    assert same(again, card)
    weights = other / "unet" / "diffusion_pytorch_model.safetensors"
    changed = load_file(weights)
    changed["conv_in.weight"] += 0.1
    save_file(changed, weights)
    monkeypatch.setattr("coeff_diffusion.families.load.embedded_path", lambda: other)
    with pytest.raises(StudioError, match=r"drawn by 'embedded' with other weights.* with --base"):
        drawn(None, tmp_path, from_picture=str(card))
    _, lines = drawn(Path("embedded"), tmp_path, from_picture=str(card))
    assert any("with other weights" in line for line in lines if line.startswith("note"))


@pytest.mark.parametrize("program", TEXTS)
def test_pictures_of_other_programs_are_drawn_again(program: str, tiny_base_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(program_picture(TEXTS[program]))
    flags = {"width": 16, "height": 16, "num_inference_steps": 1}
    file, lines = drawn(tiny_base_dir, tmp_path, from_picture=str(tmp_path / "a.png"), **flags)
    found = read_parameters(file)
    assert (found.prompt, found.seed, found.guidance_scale) == ("a cat on grass", 7, 7.0)
    assert found.scheduler in ("DPM++ 2M", "DPM++ 2M Karras")
    assert any("settings that are not here, so it will look different: " in line for line in lines)


def test_what_cannot_be_drawn_is_changed_and_said(tiny_base_dir: Path, tmp_path: Path) -> None:
    texts = {"prompt": {"3": {"class_type": "KSampler", "inputs": {"seed": 1033245876545643, "sampler_name": "lms"}}}}
    (tmp_path / "a.png").write_bytes(program_picture(texts))
    again: dict[str, Any] = {"from_picture": str(tmp_path / "a.png"), "num_inference_steps": 1}
    with pytest.raises(StudioError, match=r"a\.png does not say its prompt; give one with --prompt"):
        drawn(tiny_base_dir, tmp_path, **again)
    file, lines = drawn(tiny_base_dir, tmp_path, **again, prompt=["a cat"])
    found = read_parameters(file)
    assert (found.prompt, found.seed, found.scheduler) == ("a cat", 1033245876545643 % 2**32, "DDIM")
    said = "\n".join(lines)
    assert "note: it does not say its prompt, steps, guidance, size\n" in said
    assert f"note: its seed was 1033245876545643, expected 0 to 4294967295; here it is {found.seed}" in said
    assert "note: its sampler 'lms' cannot draw with this base (its solver is not here); 'DDIM' is chosen" in said


def test_cards_that_are_no_recipe(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(PictureError, match="no drawing parameters"):
        drawn(None, tmp_path, from_picture=str(save_picture(Image.new("RGB", (8, 8)), tmp_path / "a.png")))
    (tmp_path / "b.png").write_bytes(plain.read_bytes()[:-20])
    with pytest.raises(PictureError, match="truncated"):
        drawn(None, tmp_path, from_picture=str(tmp_path / "b.png"))


def test_prompts_of_strangers_do_not_steer_the_terminal(
    tiny_base_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = format_parameters(Parameters("a \x1b[2Jdog", steps=1, seed=1, model="tiny\x07", width=16, height=16))
    card = save_picture(Image.new("RGB", (8, 8)), tmp_path / "a.png", text)
    _, lines = drawn(tiny_base_dir, tmp_path, from_picture=str(card))
    assert "\x1b" not in "".join(lines)
    assert "\x07" not in "".join(lines)
    assert "\x1b[2J" not in capsys.readouterr().err


def test_too_many_subjects_are_refused_before_anything_is_drawn(
    tiny_base_dir: Path, sources: Path, tmp_path: Path
) -> None:
    many = [str(sources / "dog.safetensors")] * 17
    with pytest.raises(CoefficientsError, match="a picture carries"):
        drawn(tiny_base_dir, tmp_path / "out", *many, prompt=["a sks dog"], embed_subjects=True)
    assert not (tmp_path / "out").exists()


def test_the_commands_from_end_to_end(
    tiny_base_dir: Path, sources: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Drawn by one, made a card, and drawn again by another who has nothing but the card."""
    file, _ = drawn(tiny_base_dir, tmp_path, f"{sources}/dog.safetensors:0.8", prompt=["a sks dog"], seed=1,
                    num_inference_steps=2)  # fmt: skip
    assert main(["card", f"{sources}/dog.safetensors", str(file), "-o", str(tmp_path / "card.png")]) == 0
    assert "carries 'pet'" in capsys.readouterr().out
    flags = ["--base", str(tiny_base_dir), "--output_dir", str(tmp_path / "again")]
    assert main(["generate", "--from", str(tmp_path / "card.png"), *flags, "--embed_subjects"]) == 0
    (again,) = (tmp_path / "again").iterdir()
    assert same(again, file)
    assert extract(again) == extract(tmp_path / "card.png")
    flags += ["--prompt", "a sks dog", "--subject", f"{tmp_path}/card.png:0.8", "--seed", "1"]
    assert main(["generate", *flags, "--num_inference_steps", "2"]) == 0
    (other,) = set((tmp_path / "again").iterdir()) - {again}
    assert same(other, file)
