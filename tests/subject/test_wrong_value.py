"""jsonargparse's reports of wrong values, in one clause."""

from typing import Any, Literal

import pytest
from jsonargparse import ArgumentError, ArgumentParser

from coeff_diffusion.subject.wrong_value import wrong_value


def report(kind: Any, value: str) -> str:
    """What jsonargparse says of it."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--size", type=kind)
    with pytest.raises(ArgumentError) as error:
        parser.parse_args([f"--size={value}"])
    return str(error.value)


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        (int, "x", "'x', expected int"),
        (float | None, "a\nb", "'a b', expected float"),
        (int | float | None, "x", "'x', expected int, float"),
        (Literal["a", "b"], "c", "'c', expected one of 'a', 'b'"),
        (Literal["a", "b"] | None, "c", "'c', expected one of 'a', 'b'"),
        (dict[str, list[float]] | None, "3", "'3', expected dict[str, list[float]]"),
        (list[int], "[1, z]", "'z', expected int"),
    ],
)
def test_a_wrong_value_is_said_in_one_clause(kind: Any, value: str, said: str) -> None:
    wrong = wrong_value(report(kind, value))
    assert wrong is not None
    assert wrong.said("-s/--size") == f"-s/--size is {said}"


def test_other_reports_are_left_alone() -> None:
    assert wrong_value("unrecognized arguments: --sise 3") is None
