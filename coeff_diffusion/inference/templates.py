"""Prompts with holes in them: styles as A1111 keeps them (`styles.csv`) and wildcards as Dynamic Prompts does.

Which line of a wildcard's file is taken follows from the seed alone. What is drawn records the prompt that came out, so
that it can be drawn again without the folder, and beside it what was written.
"""

import csv
import hashlib
import io
import re
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from ..subject.errors import cut, shown
from ..subject.user_file import FileError, read_text, user_path
from .request import MAX_SEED, DrawRequest, StudioError

USUAL = Path("~/.config/coeff-diffusion")
STYLES, WILDCARDS = "styles.csv", "wildcards"
MAX_FILE = 2**20  # bytes
MAX_FILES = 2_000
MAX_STYLES = 2_000
MAX_DEPTH = 8  # wildcards within lines of wildcards
MAX_PROMPT = 20_000  # characters that may come out
WILDCARD = re.compile(r"(?<![\w/-])__([A-Za-z0-9](?:[\w/-]{0,100}[A-Za-z0-9])?)__(?![\w/-])")
PLACE = "{prompt}"


@dataclass(frozen=True)
class Style:
    """What is added to a prompt: in place of `{prompt}` stands what was written, or it stands in front."""

    prompt: str = ""
    negative_prompt: str = ""


class Templates:
    """The styles and wildcards of a folder, as they lie there now.

    Args:
        folder: with `styles.csv` and `wildcards/`, either of which may be missing.
    """

    def __init__(self, folder: str | Path = USUAL) -> None:
        self.folder = user_path(folder)

    def styles(self) -> dict[str, Style]:
        """By name, in the order of the file.

        Raises:
            StudioError: the file is no table with the columns name, prompt and negative_prompt.
        """
        path = self.folder / STYLES
        if not path.exists():
            return {}
        rows = csv.DictReader(io.StringIO(read_text(path, MAX_FILE, StudioError)))
        if not {"name", "prompt"} <= {*(rows.fieldnames or ())}:
            raise StudioError(
                f"{path} has no columns name, prompt and negative_prompt, expected those of A1111's styles"
            )
        try:
            found = {
                (row["name"] or "").strip(): Style(row["prompt"] or "", row.get("negative_prompt") or "")
                for row in islice(rows, MAX_STYLES)
            }
        except csv.Error as error:
            raise StudioError(f"{path} is no table that can be read: {error}") from error
        return {name: style for name, style in found.items() if name and style != Style()}

    def wildcards(self) -> dict[str, Path]:
        """The file of each, by its name: "colour", "animals/cats"."""
        folder = self.folder / WILDCARDS
        paths = sorted(islice(folder.rglob("*.txt"), MAX_FILES))
        return {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths}

    def applied(self, request: DrawRequest, styles: Collection[str] = ()) -> DrawRequest:
        """The request with its styles and wildcards written out; as it is where there are none.

        A request of several pictures has one prompt, that of its first seed.

        Raises:
            StudioError: there is no such style, a file cannot be read, or wildcards go round in a circle.
        """
        known = self.styles() if styles else {}
        if unknown := [name for name in styles if name not in known]:
            there = cut(", ".join(known), 300) or "none"
            raise StudioError(f"there is no style {shown(unknown[0])} in {self.folder / STYLES}; there is {there}")
        written = (request.prompt, request.negative_prompt, request.prompt_2)
        prompt, negative, prompt_2 = written
        for name in styles:
            prompt, negative = _styled(prompt, known[name].prompt), _styled(negative, known[name].negative_prompt)
        seed = request.seed
        if any(WILDCARD.search(text) for text in (prompt, negative, prompt_2)):
            seed = secrets.randbelow(MAX_SEED - max(0, request.batch_size)) if seed is None else seed
            lines = _Lines(self.wildcards(), seed)
            prompt, negative, prompt_2 = (lines.written_out(text) for text in (prompt, negative, prompt_2))
        if (prompt, negative, prompt_2) == written:
            return request
        return replace(
            request, prompt=prompt, negative_prompt=negative, prompt_2=prompt_2, seed=seed, template=written[0],
            negative_template=written[1], styles=", ".join(styles),
        )  # fmt: skip


class _Lines:
    """Which line of each wildcard is taken for a seed."""

    def __init__(self, files: Mapping[str, Path], seed: int) -> None:
        self.files, self.seed, self.taken = files, seed, 0
        self._read: dict[str, list[str]] = {}

    def written_out(self, text: str, depth: int = 0) -> str:
        """The text with a line in place of each wildcard that there is a file of; others stay as they are written."""

        def line(match: re.Match[str]) -> str:
            if match[1] not in self.files:
                return match[0]
            if depth == MAX_DEPTH:
                raise StudioError(
                    f"the wildcard {shown(match[0])} goes round in a circle, or more than {MAX_DEPTH} deep"
                )
            return self.written_out(self._pick(match[1]), depth + 1)

        found = WILDCARD.sub(line, text)
        if len(found) > MAX_PROMPT:
            raise StudioError(f"the wildcards make a prompt of more than {MAX_PROMPT:,} characters")
        return found

    def _pick(self, name: str) -> str:
        lines = self._lines(name)
        self.taken += 1
        digest = hashlib.sha256(f"{self.seed} {self.taken} {name}".encode()).digest()
        return lines[int.from_bytes(digest[:8], "big") % len(lines)]

    def _lines(self, name: str) -> list[str]:
        if name not in self._read:
            texts = (line.strip() for line in read_text(self.files[name], MAX_FILE, StudioError).splitlines())
            self._read[name] = [text for text in texts if text and not text.startswith("#")]
            if not self._read[name]:
                raise StudioError(
                    f"{self.files[name]} has no line for the wildcard __{name}__; write one choice a line"
                )
        return self._read[name]


def _styled(written: str, style: str) -> str:
    if PLACE in style:
        return style.replace(PLACE, written)
    return ", ".join(filter(None, (written.strip(), style.strip())))


def check_templates(folder: str | Path | None) -> Templates:
    """Those of a folder that someone names, or of the usual one, which may be missing.

    Raises:
        FileError: there is no such folder.
    """
    templates = Templates(USUAL if folder is None else folder)
    if folder is not None and not templates.folder.is_dir():
        raise FileError(templates.folder, "is no folder; expected one with styles.csv or a folder wildcards")
    return templates
