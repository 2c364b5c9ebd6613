"""Prompts in the spelling of other programs, and punctuation that only looks like it."""

import pytest

from coeff_diffusion.inference.prompt_syntax import foreign_syntax, syntax_notes

LONG = 30_000


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("a (red:1.2) cat", ["(red:1.2)"]),
        ("(a red cat : 0.8), (dog:1)", ["(a red cat : 0.8)", "(dog:1)"]),
        ("((red cat:1.1)) and ((dog):.9)", ["((red cat:1.1))", "((dog):.9)"]),
        ("(one, (two:1.1) three)", ["(two:1.1)"]),
        ("((cat)), (((dog)))", ["((cat))", "(((dog)))"]),
        ("[[cat]] [red:blue:0.5] [red|blue]", ["[[cat]]", "[red:blue:0.5]", "[red|blue]"]),
        ("<lora:ink:0.8> <lyco:x:1> <hypernet:y>", ["<lora:ink:0.8>", "<lyco:x:1>", "<hypernet:y>"]),
        ("a cat BREAK a dog", ["BREAK"]),
        ("embedding:easynegative, Embedding:x.pt", ["embedding:easynegative", "Embedding:x.pt"]),
        ("a __colour__ {cat|dog}, __things/small__", ["__colour__", "{cat|dog}", "__things/small__"]),
    ],
)
def test_what_other_programs_do_not_read_as_text(prompt: str, found: list[str]) -> None:
    assert list(foreign_syntax(prompt)) == found


@pytest.mark.parametrize(
    "prompt",
    [
        "(a cat)",
        "a cat (small (and red)), [a dog]",
        "a train (leaves at 10:30), a sheet (ratio 16:9), a verse (John 3:16)",
        "a cat :) (:3) <3",
        "a <toy> dog, {curly}, snake_case, a__b",
        r"miku \(vocaloid:1\)",
        "A COFFEE BREAK",
        "breakfast, an embedding: a plot",
        "a sks dog: red",
    ],
)
def test_what_is_text(prompt: str) -> None:
    assert list(foreign_syntax(prompt)) == []


def test_the_note_names_each_piece_once() -> None:
    assert syntax_notes("a cat", "") == []
    (note,) = syntax_notes("(a:1) (b:1) (c:1) (a:1)", "(d:1), (e:1), (f:1), (g:1)\x1b")
    assert note == (
        "read as plain text here, though not in other programs: '(a:1)', '(b:1)', '(c:1)', '(d:1)', '(e:1)' and 2 more"
    )


@pytest.mark.parametrize(
    "piece", ["(", "( ", "(a ", "((a:1", "[", "[|", "[[ ", "{|", ":1", "_", "__a", "<lora:", ")", "1"]
)
def test_no_prompt_takes_long(piece: str) -> None:
    """Each letter is looked at a few times: the suite's time limit would find a square of them."""
    for start in ("", "((a", "(a:", "[a", "{a"):
        assert len(list(foreign_syntax(start + piece * (LONG // len(piece))))) <= LONG
