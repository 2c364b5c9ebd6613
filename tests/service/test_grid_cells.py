from collections.abc import Callable
from dataclasses import replace

from coeff_diffusion import Coefficients
from coeff_diffusion.service.grid_cells import Actor, GridRequest, lay_out, notes

REQUEST = GridRequest("subjects", ["toy", "still", "free"], [1], ["a sks toy and some idle words"])


def test_words_of_the_base_s_own_cell(new_subject: Callable[..., Coefficients]) -> None:
    """A trigger becomes its kind of thing only where both are known."""
    toy = Actor("toy", new_subject("toy", trigger="sks toy", class_word="robot"), 0)
    still = Actor("still", new_subject("still", trigger="idle words"), 1)
    free = Actor("free", new_subject("free", trigger="", class_word="cat"), 2)
    request = replace(REQUEST, kind="prompts", with_base=True)
    ((base, *_),) = lay_out(request, [toy, still, free])
    assert base.label == "base: a robot and some idle words"
    assert notes(request, [toy, still, free]) == [
        "'still' does not say what kind of thing it is: the base reads 'idle words' as text"
    ]


def test_what_has_no_words_of_its_own_always_acts(new_subject: Callable[..., Coefficients]) -> None:
    free = Actor("free", new_subject("free", trigger="", gate="trigger"), 0)
    bound = Actor("bound", new_subject("bound", trigger="sks pot", gate="trigger", class_word="pot"), 1)
    assert notes(replace(REQUEST, prompts=["a photo"]), [free, bound]) == [
        "'bound' does not act: its words are 'sks pot', which are not there"
    ]


def test_as_many_rows_and_columns_as_a_grid_takes() -> None:
    replace(REQUEST, subjects=list("abcdefgh"), strengths=[0.1 * i for i in range(7)], with_base=True).check()
