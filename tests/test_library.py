import shutil
from pathlib import Path

import pytest
from diffusers import StableDiffusionPipeline
from subject_maker import make_subject

from coeff_diffusion import Coefficients, CoefficientsError
from coeff_diffusion.library import Library


@pytest.fixture
def dog(tiny_pipe: StableDiffusionPipeline, tmp_path: Path) -> Path:
    path = tmp_path / "dog.safetensors"
    make_subject(tiny_pipe.unet, tiny_pipe.text_encoder, "my dog", "sks dog", "dog").save(path)
    return path


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library(tmp_path / "outputs")


def test_a_run_is_listed_under_its_folder(library: Library, dog: Path) -> None:
    assert library.find() == {}
    run = library.folder / "my-run"
    (run / "checkpoints").mkdir(parents=True)
    (run / ".trash").mkdir()
    for name in ("coefficients", "timeline", "checkpoints/step_000010", ".trash/old"):
        shutil.copy(dog, run / f"{name}.safetensors")
    assert library.find() == {"my-run": run / "coefficients.safetensors"}


def test_adding_copies_under_a_free_name(library: Library, dog: Path, tmp_path: Path) -> None:
    assert [library.add(dog), library.add(dog)] == ["dog", "dog-2"]
    assert list(library.find()) == ["dog", "dog-2"]
    assert Coefficients.load(library.path("dog-2")) == Coefficients.load(dog)
    strange = shutil.copy(dog, tmp_path / "..  ünï <b> $x.safetensors")
    assert library.add(strange) == "ünï-b-x"
    endless = shutil.copy(dog, tmp_path / f"{'a' * 200}.safetensors")
    assert library.add(endless) == "a" * 80


def test_what_is_not_listed_is_refused(library: Library, dog: Path, tmp_path: Path) -> None:
    library.add(dog)
    for name in ("../dog", "cat", str(dog), ""):
        with pytest.raises(CoefficientsError, match=r"no subject '.*' in .*; there is 'dog'"):
            library.path(name)
    (tmp_path / "bad.safetensors").touch()
    with pytest.raises(CoefficientsError, match="truncated"):
        library.add(tmp_path / "bad.safetensors")
