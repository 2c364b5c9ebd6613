"""Class pictures and pictures of the subject are kept apart, however their folders are spelled."""

import os
from pathlib import Path

import pytest

from coeff_diffusion.training.config import ConfigError, TrainConfig


def check(instance: object, of_class: object) -> None:
    TrainConfig(
        instance_data_dir=instance,  # type: ignore[arg-type]
        class_word="dog",
        with_prior_preservation=True,
        class_data_dir=str(of_class),
    ).resolve()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with pictures, which is the home folder and where the process runs."""
    for name in ("dog/deep", "class", "Dogs"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "dog" / "1.png").touch()
    (tmp_path / "link").symlink_to(tmp_path / "dog")
    (tmp_path / "up").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


SAME = [
    *(("dog", "dog"), ("dog", "dog/"), ("./dog", "dog"), ("dog", "dog/../dog"), ("dog", "class/../dog")),
    *(
        ("link", "dog"),
        ("dog", "link"),
        ("dog", "up/dog"),
        ("up/link", "dog"),
        ("~/dog", "dog"),
        ("dog", "{place}/dog"),
    ),
    *(("dog", "dog/deep"), ("dog/deep", "dog"), ("dog", "dog/new"), ("link", "dog/new/newer"), (".", "class")),
    *((["dog/1.png"], "dog"), (["link/1.png"], "dog"), ("dog/1.png", "dog"), (["dog/1.png"], "dog/class")),
]


@pytest.mark.parametrize(("instance", "of_class"), SAME)
def test_one_place(place: Path, instance: object, of_class: str) -> None:
    with pytest.raises(ConfigError, match="--class_data_dir .* are one place, or one is inside the other"):
        check(instance, of_class.format(place=place))


@pytest.mark.parametrize(
    ("instance", "of_class"),
    [
        ("dog", "class"),
        ("dog", "new"),
        ("dog", "dogs"),
        ("dog", "link/../class"),
        (["dog/1.png"], "class"),
        ("no", "new"),
    ],
)
def test_two_places(place: Path, instance: object, of_class: str) -> None:
    check(instance, of_class)


def test_another_case_on_a_system_where_case_does_not_matter(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There, a name in another case is the same folder to the system, which is asked."""
    real = os.stat

    def stat(path: object, *args: object, **kwargs: object) -> os.stat_result:
        return real(str(path).replace("DOG", "dog"), *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "stat", stat)
    with pytest.raises(ConfigError, match="are one place"):
        check("dog", "DOG")
    with pytest.raises(ConfigError, match="are one place"):
        check("dog", "DOG/class")


def test_a_circle_of_links(place: Path) -> None:
    (place / "a").symlink_to(place / "b")
    (place / "b").symlink_to(place / "a")
    check("dog", "a")
