"""Trigger words: one rule for the gate and the tokenizer."""

import pytest

from coeff_diffusion.inference.trigger import contains_trigger, replace_trigger, with_trigger, without_trigger

WITH = [
    "sks dog",
    "a photo of sks dog",
    "a Sks  Dog, red",
    "(sks dog:1.3)",
    "sks\ndog's ball",
    "sks dog sks dog",
    "SKS DOG",
]
WITHOUT = ["", "a dog", "sks dogs", "xsks dog", "sks-dog", "sks_dog", "_sks dog", "dog sks", "sks dog_1"]


@pytest.mark.parametrize("prompt", WITH)
def test_case_and_white_space_do_not_matter(prompt: str) -> None:
    assert contains_trigger(prompt, "sks dog")
    assert contains_trigger(prompt, " Sks   DOG ")
    assert not contains_trigger(replace_trigger(prompt, "sks dog", "dog"), "sks dog")


@pytest.mark.parametrize("prompt", WITHOUT)
def test_word_boundaries_do(prompt: str) -> None:
    assert not contains_trigger(prompt, "sks dog")
    assert replace_trigger(prompt, "sks dog", "dog") == prompt


@pytest.mark.parametrize("trigger", ["<cat-toy>", "möpp", "mo\u0308pp", "1.5 (new)", "犬", r"a\b"])
def test_any_words_can_be_a_trigger(trigger: str) -> None:
    assert contains_trigger(f"a {trigger}, red", trigger)
    assert not contains_trigger("a dog, red", trigger)


def test_replace_keeps_the_rest_as_it_was() -> None:
    assert replace_trigger("A Sks  DOG,  and a Cat", "sks dog", r"\1 dog") == r"A \1 dog,  and a Cat"


@pytest.mark.parametrize(
    ("prompt", "trigger", "replaced"),
    [
        ("an İnci  kedi, İNCI KEDI", "İnci kedi", "an cat, cat"),  # in lower case this letter is two
        ("a cafe\u0301 dog", "Caf\u00e9 dog", "a cat"),
        ("कमी and कम", "कम", "कमी and cat"),  # a sign at its end makes another word of it
        ("σας ΣΑΣ", "ΣΑΣ", "σας cat"),
    ],
)
def test_what_is_found_is_what_is_replaced_in_any_script(prompt: str, trigger: str, replaced: str) -> None:
    assert contains_trigger(prompt, trigger)
    assert replace_trigger(prompt, trigger, "cat") == replaced
    assert not contains_trigger(replaced, trigger)
    assert without_trigger(f"on grass, {trigger}", trigger, "cat") == "on grass"
    assert with_trigger("a red cat", trigger, "CAT") == f"a red {trigger}"


@pytest.mark.parametrize(
    ("prompt", "written", "taken_out"),
    [
        ("a dog on grass", "a sks dog on grass", "a dog on grass"),
        ("two DOGS and a Dog, one dog", "two DOGS and a sks dog, one dog", "two DOGS and a dog, one dog"),
        ("on grass,", "on grass, sks dog", "on grass"),
        ("", "sks dog", "dog"),
        ("a my dog and a cat", "a my dog and a cat, sks dog", "a my dog and a cat"),  # another subject's words
        ("a Sks  dog", "a Sks  dog", "a dog"),
    ],
)
def test_a_trigger_is_written_and_taken_out(prompt: str, written: str, taken_out: str) -> None:
    assert with_trigger(prompt, "sks dog", "dog", ["my dog"]) == written
    assert without_trigger(written, "sks dog", "dog") == taken_out
