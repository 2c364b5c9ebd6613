"""Words in any file become a prompt with the trigger, or an error that says which file."""

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coeff_diffusion.images.photo import DatasetError
from coeff_diffusion.training.captions import read_caption, read_table, some, with_trigger


@pytest.mark.parametrize(
    ("caption", "prompt"),
    [
        ("a sks dog in the snow", "a sks dog in the snow"),
        ("A Sks  Dog asleep", "A Sks  Dog asleep"),
        ("a dog in the snow with a dog", "a sks dog in the snow with a dog"),
        ("A photo of a Dog.", "A photo of a sks dog."),
        ("two dogs playing", "sks dog, two dogs playing"),
        ("a hotdog", "sks dog, a hotdog"),
        ("a photo of [trigger] and a dog", "a photo of sks dog and a dog"),
        ("[Name] asleep", "sks dog asleep"),
    ],
)
def test_every_caption_gets_the_trigger(caption: str, prompt: str) -> None:
    assert with_trigger(caption, "sks dog", "dog") == prompt


@pytest.mark.parametrize(
    "encoding",
    ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp1252"],
)
@pytest.mark.parametrize("text", ["a dog", "un chien à Besançon", "eine Hündin\r\n"])
def test_a_caption_in_any_encoding(tmp_path: Path, encoding: str, text: str) -> None:
    (tmp_path / "1.txt").write_bytes(text.encode(encoding))
    found = read_caption(tmp_path / "1.txt")
    assert (found.text, found.source) == (text.strip(), "1.txt")
    guessed = encoding in ("latin-1", "cp1252") and not text.isascii()
    assert [note.startswith("1.txt is not UTF-8 and is read as Western") for note in found.notes] == [True] * guessed


def test_several_lines_are_one_caption_and_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "1.txt").write_text("a dog\n\n  on grass \n")
    found = read_caption(tmp_path / "1.txt")
    assert found.text == "a dog on grass"
    assert found.notes == ("1.txt: its 2 lines are read as one caption",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("1.txt", b"", r"1\.txt is empty; write what its picture shows, or delete it"),
        ("1.txt", b" \n\t", r"1\.txt is empty"),
        ("1.txt", b"\xef\xbb\xbf", r"1\.txt is empty"),
        ("1.txt", b"\xff\xfea", r"1\.txt is no text"),
        ("1.txt", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", r"1\.txt is no text"),
        ("1.txt", b"\x81\x8d\x8f", r"1\.txt is no text"),
        ("1.txt", b"a" * 70_000, r"1\.txt has more than 65,536 bytes"),
        ("1.json", b"{", r"1\.json is not JSON"),
        ("1.json", b"[1]", r"1\.json holds no JSON object"),
        ("1.json", b'{"tags": "a"}', r"1\.json has no 'text' or 'caption' or 'prompt' \(it has: tags\)"),
        ("1.json", b"[" * 50_000, r"1\.json is not JSON"),
        ("1.json", b'{"caption": " "}', r"1\.json is empty"),
        (
            "1.json",
            b'{"caption": "a cat \\ud83d"}',
            r"1\.json holds half a letter, as where a text was cut: 'a cat \\ud83d'",
        ),
    ],
)
def test_useless_captions(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DatasetError, match=message) as error:
        read_caption(tmp_path / name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.jsonl", '{"file_name": "1.png", "text": "a"}\n{oops', r"metadata\.jsonl, line 2 is not JSON"),
        ("metadata.jsonl", '{"text": "a"}', r"metadata\.jsonl, line 1 has no file_name"),
        ("metadata.jsonl", '{"file_name": "1.png"}', r"metadata\.jsonl, line 1 has no 'text' or"),
        ("metadata.jsonl", '{"file_name": "1.png", "text": 3}', r"metadata\.jsonl, line 1 has no 'text' or"),
        ("metadata.jsonl", '{"file_name": "1.png", "text": " "}', r"metadata\.jsonl, line 1 has no words for 1\.png"),
        ("metadata.jsonl", '{"file_name": "1.png", "text": "\\ud83d"}', r"metadata\.jsonl, line 1 holds half a letter"),
        ("metadata.csv", "name,text\n1.png,a\n", r"metadata\.csv, line 2 has no file_name"),
        ("metadata.csv", 'file_name,text\n1.png,"a', r"metadata\.csv, line \d cannot be read"),
        ("metadata.csv", "file_name,text\n1.png\n", r"metadata\.csv, line 2 has no 'text' or"),
    ],
)
def test_useless_tables(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DatasetError, match=message):
        read_table(tmp_path / name)


@given(st.binary(max_size=200), st.sampled_from(["1.txt", "1.json", "metadata.jsonl", "metadata.csv"]))
def test_any_bytes_are_words_or_an_error_of_one_line(content: bytes, name: str) -> None:
    folder = Path("/dev/shm" if Path("/dev/shm").is_dir() else ".")
    file = folder / f"coeff-test-{os.getpid()}-{name}"  # suites may run side by side
    file.write_bytes(content)
    try:
        found: Any = read_table(file) if name.startswith("metadata") else read_caption(file)
        assert found is not None
    except DatasetError as error:
        assert name in str(error)  # noqa: PT017 - both outcomes are right
        assert "\n" not in str(error)  # noqa: PT017
    finally:
        file.unlink()


def test_some_lines_stand_for_many() -> None:
    assert some(["a", "b"], "lines") == ["a", "b"]
    assert some([str(i) for i in range(6)], "lines") == ["0", "1", "2", "3", "4", "5"]
    assert some([str(i) for i in range(9)], "lines") == ["0", "1", "2", "3", "4", "... and 4 more lines"]
