"""Styles and wildcards of a folder: what they make of a prompt, and what is drawn again of it."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from coeff_diffusion.commands.generate import generate
from coeff_diffusion.commands.generate_config import GenerateConfig
from coeff_diffusion.images.files import read_parameters
from coeff_diffusion.inference.request import DrawRequest, StudioError
from coeff_diffusion.inference.templates import Templates, check_templates

CSV = """\ufeffname,prompt,negative_prompt
Watercolour,"watercolour of {prompt}, wet paper",photo
Bright,"bright, sunny",
,nothing,
"Two
lines",,
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "styles"
    (folder / "wildcards" / "animals").mkdir(parents=True)
    (folder / "styles.csv").write_text(CSV, encoding="utf-8")
    for name, lines in {
        "colour": "# of things\nred\n\n  blue  \ngreen\n",
        "animals/pet": "__colour__ cat\n__colour__ dog",
        "round": "a __round__",
        "empty": "# nothing",
    }.items():
        (folder / "wildcards" / f"{name}.txt").write_text(lines)
    return folder


def test_styles_stand_around_what_is_written(folder: Path) -> None:
    templates = Templates(folder)
    assert list(templates.styles()) == ["Watercolour", "Bright"]
    asked = DrawRequest("a dog", negative_prompt="blurry")
    found = templates.applied(asked, ["Bright", "Watercolour"])
    assert (found.prompt, found.negative_prompt) == ("watercolour of a dog, bright, sunny, wet paper", "blurry, photo")
    assert (found.template, found.negative_template, found.styles) == ("a dog", "blurry", "Bright, Watercolour")
    assert templates.applied(asked) is asked


def test_wildcards_follow_from_the_seed(folder: Path) -> None:
    templates = Templates(folder)

    def drawn(seed: int | None, prompt: str = "a __colour__ __animals/pet__ and a __colour__ pot") -> DrawRequest:
        return templates.applied(DrawRequest(prompt, seed=seed))

    assert drawn(1) == drawn(1)
    prompts = {drawn(seed).prompt for seed in range(30)}
    assert len(prompts) > 10
    words = {word for prompt in prompts for word in prompt.split()}
    assert words == {"a", "and", "pot", "red", "blue", "green", "cat", "dog"}
    assert drawn(None).seed is not None
    for plain in ("a __nothing__ here", "a snake_case__colour__x", "__../../etc/passwd__", "__ colour __"):
        assert drawn(1, plain).prompt == plain


def test_what_cannot_be_read_is_said(folder: Path, tmp_path: Path) -> None:
    templates = Templates(folder)
    for prompt, styles, sentence in [
        ("a", ["Oil"], "there is no style 'Oil' in .*; there is Watercolour, Bright"),
        ("a __round__", [], "goes round in a circle"),
        ("an __empty__", [], "has no line for the wildcard __empty__"),
    ]:
        with pytest.raises(StudioError, match=sentence):
            templates.applied(DrawRequest(prompt, seed=1), styles)
    (folder / "wildcards" / "colour.txt").write_bytes(b"x" * (2**20 + 1))
    with pytest.raises(StudioError, match="expected at most"):
        templates.applied(DrawRequest("__colour__", seed=1))
    (folder / "styles.csv").write_text("a;b\n1;2")
    with pytest.raises(StudioError, match="has no columns name, prompt and negative_prompt"):
        templates.styles()
    assert Templates(tmp_path / "nowhere").styles() == {}
    with pytest.raises(OSError, match="is no folder; expected one with styles"):
        check_templates(tmp_path / "nowhere")


def test_a_picture_says_what_came_out_and_is_drawn_again_without_the_folder(
    folder: Path, tiny_base_dir: Path, tmp_path: Path
) -> None:
    def draw(**changes: Any) -> tuple[Path, list[str]]:
        lines: list[str] = []
        given = {"base": str(tiny_base_dir), "output_dir": str(tmp_path / "out"), **changes}
        return generate(GenerateConfig(**given), lines.append)[-1], lines

    settings = {"num_inference_steps": 2, "seed": 2, "batch_size": 2}
    asked = {"prompt": ["a __animals/pet__"], "style": ["Watercolour"], "styles_dir": str(folder), "settings": settings}
    drawn, lines = draw(**asked)
    said = read_parameters(drawn)
    assert said.prompt.startswith("watercolour of a ")
    assert said.prompt.endswith((" cat, wet paper", " dog, wet paper"))
    assert (said.template, said.styles, said.negative_prompt) == ("a __animals/pet__", "Watercolour", "photo")
    assert f"drawn as: '{said.prompt}'" in lines
    again, lines = draw(from_picture=str(drawn))
    assert read_parameters(again) == said
    assert Image.open(again).tobytes() == Image.open(drawn).tobytes()
    assert not [line for line in lines if line.startswith("note")]
    other, _ = draw(from_picture=str(drawn), prompt=["a dog"])
    assert (read_parameters(other).template, read_parameters(other).styles) == ("", "")
    with pytest.raises(StudioError, match="--style goes around a --prompt; give one"):
        draw(from_picture=str(drawn), style=["Bright"])
    with pytest.raises(StudioError, match="--styles_dir has styles and wildcards for a --prompt; give one"):
        draw(from_picture=str(drawn), styles_dir=asked["styles_dir"])
