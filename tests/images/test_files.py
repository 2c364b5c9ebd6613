import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops

from coeff_diffusion.images.files import find_drawing, free_path, read_parameters, save_picture
from coeff_diffusion.images.generation_info import Parameters, PictureError, format_parameters, parse_parameters
from coeff_diffusion.images.png import with_chunks
from coeff_diffusion.subject.layer_strengths import LayerStrengths

PARAMETERS = Parameters(
    prompt="a photo of sks dog, on the beach",
    negative_prompt="blurry, dark",
    steps=20,
    scheduler="DPM++ 2M Karras",
    guidance_scale=7.5,
    seed=7,
    width=128,
    height=64,
    model="embedded",
    subjects={"my dog": 0.8, "cat": 1.0},
)


def prompt_of(png: bytes) -> str:
    found = find_drawing(png)
    assert found is not None
    return found.prompt


def picture(color: str, size: tuple[int, int] = (40, 40)) -> Image.Image:
    return Image.new("RGB", size, color)


def test_text_is_what_other_uis_write() -> None:
    assert format_parameters(PARAMETERS) == (
        "a photo of sks dog, on the beach\n"
        "Negative prompt: blurry, dark\n"
        "Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7.5, Seed: 7, Size: 128x64, Model: embedded, "
        r'Subjects: "{\"my dog\": 0.8, \"cat\": 1.0}"'
    )


def test_reads_what_a1111_wrote() -> None:
    found = parse_parameters(
        "a cat,\n(masterpiece:1.2)\nNegative prompt: blurry\nSteps: 28, Sampler: Euler a, CFG scale: 7, Seed: 12, "
        'Size: 512x768, Model hash: abc, Model: v1-5, Lora hashes: "a: 1, b: 2", Version: v1.10.1'
    )
    assert (found.prompt, found.negative_prompt) == ("a cat,\n(masterpiece:1.2)", "blurry")
    assert (found.steps, found.scheduler, found.guidance_scale, found.seed) == (28, "Euler a", 7.0, 12)
    assert (found.width, found.height, found.model) == (512, 768, "v1-5")
    assert found.extra == {"Model hash": "abc", "Lora hashes": "a: 1, b: 2", "Version": "v1.10.1"}


@settings(max_examples=300, deadline=None)
@given(
    prompt=st.text(max_size=60),
    negative=st.one_of(st.text(max_size=40), st.just("x\nNegative prompt: y")),
    name=st.text(max_size=20),
    strength=st.floats(-4, 4),
    guidance=st.floats(0, 100),
    changes=st.fixed_dictionaries(
        {},
        optional={
            "guidance_rescale": st.floats(0, 1),
            "base_hash": st.just("0123456789ab"),
            "precision": st.sampled_from(["float16", "bfloat16"]),
            "batch_size": st.integers(1, 64),
            "batch_position": st.integers(0, 63),
            "gate": st.sampled_from(["trigger", "always"]),
            "model": st.text(min_size=1, max_size=20),
            "layers": st.builds(LayerStrengths, *[st.floats(-4, 4)] * 6),
            "begin": st.floats(0, 1),
            "end": st.floats(0, 1),
        },
    ),
)
def test_any_text_survives_the_round_trip(
    prompt: str, negative: str, name: str, strength: float, guidance: float, changes: dict[str, Any]
) -> None:
    written = replace(
        PARAMETERS,
        prompt=prompt,
        negative_prompt=negative,
        subjects={name: strength},
        hashes={name: "9332f95acd2a"},
        guidance_scale=guidance,
        **changes,
    )
    assert parse_parameters(format_parameters(written)) == written


def test_text_holds_all_that_decides_about_the_pixels() -> None:
    written = replace(
        PARAMETERS,
        base_hash="41b5f3c6a0d2",
        precision="bfloat16",
        batch_size=3,
        batch_position=1,
        gate="always",
        hashes={"my dog": "9332f95acd2a", "cat": "000000000000"},
        layers=LayerStrengths(cross_attention=0.5, up=0),
        begin=0.25,
        end=0.75,
    )
    assert format_parameters(written).endswith(
        "Model: embedded, Base hash: 41b5f3c6a0d2, Precision: bfloat16, Batch size: 3, Batch pos: 1, Gate: always, "
        r'Layer strengths: "{\"cross_attention\": 0.5, \"up\": 0}", Act from: 0.25, Act until: 0.75, '
        r'Subjects: "{\"my dog\": 0.8, \"cat\": 1.0}", '
        r'Subject hashes: "{\"my dog\": \"9332f95acd2a\", \"cat\": \"000000000000\"}"'
    )
    assert parse_parameters(format_parameters(written)) == written


@pytest.mark.parametrize(
    "prompt",
    [
        "Negative prompt: no",
        "a\nSteps: 1, Seed: 2, Size: 3x4",
        " padded ",
        "",
        "two\n\nlines",
        '"quoted"',
        "日本 émoji 🐶",
    ],
)
def test_prompts_that_look_like_syntax(prompt: str, tmp_path: Path) -> None:
    written = replace(PARAMETERS, prompt=prompt)
    save_picture(picture("red"), tmp_path / "a.png", format_parameters(written))
    assert read_parameters(tmp_path / "a.png") == written


@pytest.mark.parametrize(
    "bad",
    [
        'Subjects: "[1]"',
        'Subjects: "{"',
        'Subjects: "{\\"dog\\": null}"',
        f'Subjects: "{{\\"dog\\": 1{"0" * 400}}}"',
        f'Subjects: "{"[" * 100_000}"',
        f'Exact prompt: "{"[" * 100_000}"',
        'Exact prompt: "\\"\\\\ud800\\""',
        "Gate: open",
        "Act from: now",
        "Act until: 1/2",
        'Layer strengths: "[1]"',
        'Layer strengths: "{\\"sideways\\": 1}"',
        'Layer strengths: "{\\"mid\\": null}"',
        'Subject hashes: "{\\"dog\\": \\"\\"}"',
        'Subject hashes: "{\\"dog\\": \\"9332F95ACD2A\\"}"',
        'Subject hashes: "{\\"dog\\": 933295123456}"',
        'Subject hashes: "[]"',
    ],
)
def test_values_that_are_not_ours_are_refused(bad: str) -> None:
    with pytest.raises(PictureError, match="cannot be read"):
        parse_parameters(f"a dog\nSeed: 1, Model: x, {bad}")


def test_saved_picture_is_the_picture(tmp_path: Path) -> None:
    path = save_picture(picture("red"), tmp_path / "new" / "a.png", "text")
    with Image.open(path) as found:
        assert found.text == {"parameters": "text"}
        assert ImageChops.difference(found.convert("RGB"), picture("red")).getbbox() is None
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]  # nothing temporary left behind


def test_pictures_without_parameters_and_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match="carries no drawing parameters"):
        read_parameters(save_picture(picture("red"), tmp_path / "a.png"))
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(PictureError, match="not a readable picture"):
        read_parameters(tmp_path / "b.png")
    with pytest.raises(PictureError, match="not a readable picture"):
        read_parameters(tmp_path / "missing.png")


def test_text_bomb_is_refused(tmp_path: Path) -> None:
    data = save_picture(picture("red"), tmp_path / "a.png").read_bytes()
    chunk = b"zTXt" + b"parameters\0\0" + zlib.compress(b"a" * 100_000_000)
    bomb = len(chunk[4:]).to_bytes(4) + chunk + zlib.crc32(chunk).to_bytes(4)
    (tmp_path / "bomb.png").write_bytes(data[:33] + bomb + data[33:])
    with pytest.raises(PictureError, match="'parameters' has more than 262144 bytes"):
        read_parameters(tmp_path / "bomb.png")


def test_pixels_are_never_decoded(tmp_path: Path) -> None:
    data = save_picture(picture("red"), tmp_path / "a.png", format_parameters(PARAMETERS)).read_bytes()
    header = b"IHDR" + (2**31 - 1).to_bytes(4, "big") * 2 + data[24:29]  # more pixels than any memory holds
    (tmp_path / "a.png").write_bytes(data[:12] + header + zlib.crc32(header).to_bytes(4, "big") + data[33:])
    assert read_parameters(tmp_path / "a.png") == PARAMETERS


def test_text_is_found_behind_the_pixels_and_the_last_one_counts(tmp_path: Path) -> None:
    data = save_picture(picture("red"), tmp_path / "a.png", "first").read_bytes()
    chunk = b"tEXt" + b"parameters\0second"
    last = len(chunk[4:]).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    assert prompt_of(data) == "first"
    assert prompt_of(data[:-12] + last + data[-12:]) == "second"  # as Pillow has it


@pytest.mark.parametrize("prompt", ["テスト 🐶", "a café, naïve", "Ã©", "Â£ 1"])
def test_letters_are_what_was_written(prompt: str, tmp_path: Path) -> None:
    text = f"{prompt}\nSteps: 1, Seed: 1, Size: 8x8"
    data = save_picture(picture("red"), tmp_path / "a.png", text).read_bytes()
    assert prompt_of(data) == Image.open(tmp_path / "a.png").text["parameters"].partition("\n")[0] == prompt  # type: ignore[attr-defined]
    plain = save_picture(picture("red"), tmp_path / "b.png").read_bytes()
    others = with_chunks(plain, [(b"tEXt", b"parameters\0" + text.encode())])  # as some programs write it
    assert prompt_of(others) == prompt


@pytest.mark.parametrize(
    "line",
    [
        "a" * 250_000,
        "a " * 125_000,
        " " * 250_000 + "a",
        "aa:," * 60_000,
        "aa: " * 60_000,
        'aa:"' * 60_000,
        'aa:"\\",' * 30_000,
        'aa:"' + "\\a" * 120_000,
        "aa:" + " " * 240_000 + '"b',
        "Steps: 1,\n" * 25_000,
        "a Steps: 1,aa: Negative prompt:" * 8_000,
    ],
)
def test_no_text_takes_long_to_read(line: str) -> None:
    """With an expression that goes back to try again these take from minutes to days (the suite's limit is 300 s)."""
    parse_parameters(f"prompt\n{line}")


def test_names_count_up_and_are_never_taken_twice(tmp_path: Path) -> None:
    names = [free_path(tmp_path / "out", "7").name for _ in range(3)]
    assert names == ["00001-7.png", "00002-7.png", "00003-7.png"]
    (tmp_path / "out" / "00041-other.png").touch()
    assert free_path(tmp_path / "out", "7").name == "00042-7.png"
