from pathlib import Path

import pytest
from subject_maker import make_subject

from coeff_diffusion import load_base
from coeff_diffusion.drawing import StudioError
from coeff_diffusion.generate import GenerateConfig, generate, split_strength
from coeff_diffusion.pictures import read_parameters


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
            num_inference_steps=1,
            seed=1,
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


def test_nothing_to_draw() -> None:
    with pytest.raises(StudioError, match="give a --prompt"):
        generate(GenerateConfig())
