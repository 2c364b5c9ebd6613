"""What people write of their pictures, in the spellings of other trainers -> prompts with the trigger."""

import codecs
import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..images.photo import DatasetError
from ..inference.trigger import contains_trigger
from ..subject.errors import shown
from ..subject.printable import is_text
from ..subject.user_file import open_file

SUFFIXES = (".txt", ".caption", ".json")  # of files beside a picture; where there are several, the first one counts
TABLES = ("metadata.jsonl", "metadata.csv")  # of a whole folder, as Hugging Face's imagefolder has them
COLUMNS = ("text", "caption", "prompt")  # where a table or a JSON file says the words
MAX_CAPTION = 64 * 1024  # bytes
MAX_TABLE = 64 * 2**20

_BOMS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32"}
_BOMS |= {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


@dataclass(frozen=True)
class Caption:
    """The words of a picture.

    Attributes:
        source: where they stand, for messages: "1.txt", or "metadata.jsonl, line 3".
        text: on one line.
        notes: what of them may not be meant, one sentence each that begins with the source.
    """

    source: str
    text: str
    notes: tuple[str, ...] = ()


def read_caption(file: Path) -> Caption:
    """The caption in a `.txt`, `.caption` or `.json` file.

    Raises:
        DatasetError: it is empty, no text, or far too long.
    """
    text, notes = _decoded(file, MAX_CAPTION)
    if file.suffix.lower() == ".json":
        text = _worded(_parsed(file, text, file.name), file.name)
    lines = [line for line in map(str.strip, text.splitlines()) if line]
    if not lines:
        raise DatasetError(f"{file} is empty; write what its picture shows, or delete it to use the instance prompt")
    if len(lines) > 1:
        notes.append(f"{file.name}: its {len(lines)} lines are read as one caption")
    return Caption(file.name, " ".join(text.split()), tuple(notes))


def read_table(file: Path) -> list[tuple[str, Caption]]:
    """The names of pictures and their captions in a `metadata.jsonl` or `metadata.csv`, line by line.

    Raises:
        DatasetError: a line is not what it should be.
    """
    text, notes = _decoded(file, MAX_TABLE)
    found: list[tuple[str, Caption]] = []
    for number, row in _rows(file, text):
        source = f"{file.name}, line {number}"
        name = row.get("file_name")
        if not isinstance(name, str) or not name:
            raise DatasetError(f"{file}, line {number} has no file_name; expected the name of a picture beside it")
        words = " ".join(_worded(row, source).split())
        if not words:
            raise DatasetError(f"{file}, line {number} has no words for {name}; write some, or take the line out")
        found.append((name, Caption(source, words, tuple(notes))))
        notes = []
    return found


def _rows(file: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    if file.suffix.lower() == ".csv":
        table = csv.DictReader(io.StringIO(text), strict=True)
        try:
            for row in table:
                yield table.line_num, row
        except csv.Error as error:
            raise DatasetError(f"{file}, line {table.line_num} cannot be read: {error}") from error
        return
    for number, line in enumerate(json_lines(text), start=1):
        if line.strip():
            yield number, _parsed(file, line, f"{file}, line {number}")


def json_lines(text: str) -> list[str]:
    """The lines of a JSON Lines file: what else Unicode calls the end of a line may stand inside of JSON's texts."""
    return re.split(r"\r\n|\r|\n", text)


def _parsed(file: Path, text: str, place: str) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{place} is not JSON: {' '.join(str(error).split())[:100]}") from error
    if isinstance(found, str):
        return {"text": found}
    if not isinstance(found, dict):
        raise DatasetError(f"{place} holds no JSON object; expected one with the key 'text' or 'caption'")
    return found


def _worded(row: Mapping[str, Any], place: str) -> str:
    for column in COLUMNS:
        if isinstance(words := row.get(column), str):
            if not is_text(words):
                raise DatasetError(
                    f"{place} holds half a letter, as where a text was cut: {shown(words)}; write it anew"
                )
            return words
    known = ", ".join(str(key)[:20] for key in list(row)[:8])
    raise DatasetError(f"{place} has no {' or '.join(map(repr, COLUMNS))} (it has: {known})")


def _decoded(file: Path, most: int) -> tuple[str, list[str]]:
    """The text of a file in whichever encoding, and a note where the encoding is a guess."""
    with open_file(file, error=DatasetError) as opened:
        data = opened.read(most + 1)
    if len(data) > most:
        raise DatasetError(f"{file} has more than {most:,} bytes; expected captions")
    encoding = next((name for bom, name in _BOMS.items() if data.startswith(bom)), "")
    if not encoding and b"\0" in data:  # every second byte of plain English in UTF-16 is zero
        encoding = "utf-16-le" if data[1::2].count(0) > data[::2].count(0) else "utf-16-be"
    notes = []
    try:
        try:
            text = data.decode(encoding or "utf-8")
        except UnicodeDecodeError:
            if encoding:
                raise
            text = data.decode("cp1252")
            notes.append(f"{file.name} is not UTF-8 and is read as Western European text; if it is not, save it anew")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{file} is no text ({error.reason}); save the caption as UTF-8") from error
    if re.search(r"[\x00-\x08\x0e-\x1f]", text):
        raise DatasetError(f"{file} is no text (it holds control characters); save the caption as UTF-8")
    return text, notes


# --- prompts ----------------------------------------------------------------------------------------------------------


def with_trigger(caption: str, trigger: str, class_word: str) -> str:
    """The caption, certain to contain the trigger.

    "[trigger]" and "[name]" stand for it, as ai-toolkit and textual inversion have them. Captions made by a tool never
    know the trigger. Without it a picture would teach the subject nothing, so it takes the place of the first class
    word ("a dog in the snow" -> "a sks dog in the snow"), or goes in front of all.
    """
    caption = re.sub(r"\[(?:trigger|name)\]", lambda _: trigger, caption, flags=re.IGNORECASE)
    if contains_trigger(caption, trigger):
        return caption
    word = r"(?<!\w)" + r"\s+".join(map(re.escape, class_word.split())) + r"(?!\w)"
    replaced, count = re.subn(word, lambda _: trigger, caption, count=1, flags=re.IGNORECASE)
    return replaced if count else f"{trigger}, {caption}"


def some(lines: Sequence[str], what: str, most: int = 5) -> list[str]:
    """The first lines, and how many more there are."""
    rest = len(lines) - most
    return [*lines[:most], f"... and {rest} more {what}"] if rest > 1 else list(lines)
