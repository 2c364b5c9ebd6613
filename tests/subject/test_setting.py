from dataclasses import dataclass, field
from typing import Literal

import pytest

from coeff_diffusion.subject.setting import setting, settings_of


@dataclass(frozen=True)
class Example:
    prompt: str
    names: list[str] = field(default_factory=list)
    count: int | None = setting(None, text="Number of", low=1)
    how: Literal["here", "there"] | None = setting(None)
    where: Literal["up", "down"] = setting("up", flag="direction")
    how_much: float = setting(0.5, low=0, high=2, label="Amount")
    part: float = setting(1.0, low=0, high=1, percent=True, called="share")


def test_the_field_says_the_rest() -> None:
    found = settings_of(Example)
    assert list(found) == ["count", "how", "where", "how_much", "part"]
    assert [(one.kind, one.default, one.choices) for one in found.values()] == [
        (int, None, ()),
        (str, None, ("here", "there")),
        (str, "up", ("up", "down")),
        (float, 0.5, ()),
        (float, 1.0, ()),
    ]
    assert [one.flag for one in found.values()] == ["count", "how", "direction", "how_much", "part"]
    assert [one.called for one in found.values()] == ["number of", "", "", "amount", "share"]
    assert [one.reach for one in found.values()] == [None, None, None, (0, 2), (0, 1)]
    assert [one.step for one in found.values()] == [1, 0.05, 0.05, 0.05, 1]
    assert found["how_much"].id == "how-much"


def test_a_field_with_a_setting_is_a_field_like_any_other() -> None:
    assert Example("x", count=2) == Example("x", [], 2, None, "up", 0.5, 1.0)


def test_what_a_setting_cannot_have_is_refused_where_it_is_written() -> None:
    with pytest.raises(TypeError, match="lable"):
        setting(1, lable="Steps")
