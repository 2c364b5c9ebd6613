"""The pictures of a folder: what is listed, liked, thrown away and brought back."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from coeff_diffusion.images.files import save_picture
from coeff_diffusion.images.generation_info import Parameters, PictureError, format_parameters
from coeff_diffusion.inference.request import StudioError
from coeff_diffusion.service import History

TEXT = format_parameters(
    Parameters("a sks dog,  in\nsnow", steps=4, guidance_scale=7.5, seed=7, width=8, height=8, subjects={"dog": 0.5})
)


@pytest.fixture
def history(tmp_path: Path) -> History:
    folder = tmp_path / "pictures"
    for number in (1, 2, 10):
        save_picture(Image.new("RGB", (8, 8), (number, 0, 0)), folder / f"{number:05d}-7.png", TEXT)
    return History(folder)


def names(history: History, only_favourites: bool = False) -> list[str]:
    return [one.name for one in history.find(only_favourites)]


NEWEST, MIDDLE, OLDEST = "00010-7.png", "00002-7.png", "00001-7.png"


def test_the_newest_are_first_and_only_pictures_are_listed(history: History, tmp_path: Path) -> None:
    save_picture(Image.new("RGB", (8, 8)), tmp_path / "elsewhere.png")
    (history.folder / "00099-link.png").symlink_to(tmp_path / "elsewhere.png")
    (history.folder / "00098-folder.png").mkdir()
    (history.folder / "notes.txt").write_text("no picture")
    (history.folder / ".00097-hidden.png").write_bytes(b"")
    save_picture(Image.new("RGB", (8, 8)), history.folder / "somebody's.png")
    assert names(history) == [NEWEST, MIDDLE, OLDEST, "somebody's.png"]
    assert History(tmp_path / "nowhere").find() == []


def test_what_a_picture_says(history: History) -> None:
    found = history.get(NEWEST)
    assert found.caption == "a sks dog, in snow"
    assert found.facts.splitlines() == [
        r"prompt: a sks dog,  in\nsnow",
        "subjects: dog at 0.5",
        "seed: 7",
        "steps: 4",
        "guidance: 7.5",
        "size: 8 x 8",
        f"file: {NEWEST}",
    ]
    assert found.thumbnail.getpixel((50, 50)) == (10, 0, 0)


def test_damaged_pictures_and_such_that_say_nothing_are_shown_all_the_same(history: History) -> None:
    (history.folder / "00011-broken.png").write_bytes(b"no picture")
    save_picture(Image.new("RGB", (8, 8)), history.folder / "00012-plain.png")
    plain, broken = history.find()[:2]
    assert (plain.caption, plain.facts) == ("00012-plain.png", "")
    assert broken.caption == "00011-broken.png"
    assert broken.thumbnail.size == plain.thumbnail.size
    with pytest.raises(PictureError):
        _ = broken.facts


def test_favourites(history: History) -> None:
    history.like(MIDDLE, True)
    history.like(OLDEST, True)
    history.like(OLDEST, False)
    assert names(history, only_favourites=True) == [MIDDLE]
    assert history.get(MIDDLE).caption.startswith("★ ")
    assert names(History(history.folder), only_favourites=True) == [MIDDLE]  # the folder remembers


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"7", json.dumps([1, None, MIDDLE]).encode(), b"[" * 99_999]
)
def test_a_strange_list_of_favourites_does_no_harm(history: History, content: bytes) -> None:
    (history.folder / ".favourites.json").write_bytes(content)
    assert names(history, only_favourites=True) in ([], [MIDDLE])
    history.like(OLDEST, True)
    assert OLDEST in names(history, only_favourites=True)


def test_what_is_deleted_comes_back(history: History) -> None:
    content = (history.folder / MIDDLE).read_bytes()
    key = history.delete(MIDDLE)
    assert names(history) == [NEWEST, OLDEST]
    assert (history.folder / ".trash" / key).read_bytes() == content
    assert history.put_back(key) == MIDDLE
    assert (history.folder / MIDDLE).read_bytes() == content
    assert not list((history.folder / ".trash").iterdir())


def test_nothing_is_overwritten_by_what_comes_back(history: History) -> None:
    key = history.delete(MIDDLE)
    (history.folder / MIDDLE).write_bytes(b"new")
    with pytest.raises(StudioError, match=f"there is another {re.escape(MIDDLE)} by now"):
        history.put_back(key)
    assert (history.folder / MIDDLE).read_bytes() == b"new"


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "", ".trash/x/00002-7.png", "00003-7.png"])
def test_no_text_becomes_a_path(history: History, tmp_path: Path, name: str) -> None:
    save_picture(Image.new("RGB", (8, 8)), tmp_path / "secret.png")
    for act in (history.get, history.delete, history.put_back):
        with pytest.raises(StudioError, match="any more"):
            act(name)
    with pytest.raises(StudioError, match="any more"):
        history.like(name, True)
    assert (tmp_path / "secret.png").exists()


def test_a_trash_that_leads_elsewhere_is_not_used(history: History, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (history.folder / ".trash").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StudioError, match="is a link that leads elsewhere"):
        history.delete(MIDDLE)
    assert MIDDLE in names(history)
