"""The one pattern of a Hub id."""

import pytest

from coeff_diffusion.subject.hub_id import HUB_ID, is_hub_id


@pytest.mark.parametrize("text", ["user/dog", "Some-Org/a_b.c-1", "u/d"])
def test_ids(text: str) -> None:
    assert is_hub_id(text)
    assert not is_hub_id(f"{text}@v1")  # the id of a repository is without a revision
    found = HUB_ID.fullmatch(f"{text}@refs/pr/1")
    assert found is not None
    assert found.groups() == (text, "refs/pr/1")


@pytest.mark.parametrize(
    "text", ["", "dog", "a/b/c", "/data/base", "../base", "./base", "~/base", "a b/c", "C:/a", "a/b\n"]
)
def test_folders_and_texts_are_none(text: str) -> None:
    assert not is_hub_id(text)
