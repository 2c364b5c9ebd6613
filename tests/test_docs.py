"""What the pages in docs/ and the README say of names, flags, keys and limits is what the program has."""

import contextlib
import io
import json
import re
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path

import pytest
import torch

from coeff_diffusion import Coefficients, CoefficientsInfo
from coeff_diffusion.cli import COMMANDS, main
from coeff_diffusion.commands.info import subject_facts
from coeff_diffusion.families.layout import PUBLISHED, known_layout
from coeff_diffusion.images.drawing_settings import SETTINGS
from coeff_diffusion.images.generation_info import Parameters
from coeff_diffusion.service.presets import PRESETS
from coeff_diffusion.sources import image_card, qr_payload, shared_folder
from coeff_diffusion.subject import adapter, coefficients, info, safetensors_file

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MIB = 2**20


def page(name: str) -> str:
    """A page without its line breaks."""
    return " ".join((ROOT / "docs" / f"{name}.md").read_text().split())


def commands(text: str) -> list[str]:
    """The lines that call the program, each with the lines that go on with it."""
    return re.findall(r"^(?: {4}|\$ )*coeff-diffusion ((?:[^\n]*\\\n)*[^\n]*)", text, re.MULTILINE)


@pytest.fixture(scope="module")
def helps() -> dict[str, str]:
    """What each command says of its flags."""
    found = {}
    for command in COMMANDS:
        said = io.StringIO()
        with contextlib.redirect_stdout(said), pytest.raises(SystemExit):
            main([command, "--help"])
        found[command] = said.getvalue()
    return found


def test_flags_are_those_of_their_command(helps: dict[str, str]) -> None:
    calls = [(path.name, call) for path in PAGES for call in commands(path.read_text())]
    assert len(calls) > 30
    wrong = [
        f"{name}: {call.split()[0]} {flag}"
        for name, call in calls
        if call.split()[0] in helps
        for flag in re.findall(r"(?<=\s)--?[a-z]\w*", call.partition("#")[0])
        if flag not in ("--help", "--debug") and not re.search(rf"{flag}\b", helps[call.split()[0]])
    ]
    assert wrong == []


def test_flags_in_sentences_exist(helps: dict[str, str]) -> None:
    known = set(re.findall(r"--\w+", "".join(helps.values()))) | {"--help", "--debug", "--version"}
    foreign = {"--repeats", "--topology", "--subjects", "--interception", "--method"}  # of the benchmarks
    named = {flag for path in PAGES for flag in re.findall(r"`(--[a-z_]+)\b", path.read_text())}
    assert named - known - foreign == set()


def test_commands_can_be_copied() -> None:
    """A line that goes on ends in one backslash: two of them are a word for a shell, and end the command."""
    assert [path.name for path in PAGES if re.search(r"\\\\$", path.read_text(), re.MULTILINE)] == []


def test_the_examples_follow_one_subject() -> None:
    """Where one command's output was copied anew, so was that of all others."""
    text = (ROOT / "docs" / "commands.md").read_text()
    digits = re.search(r"hash +([0-9a-f]{64})\n", text)[1][:12]
    assert set(re.findall(r"'sks cat' \(([0-9a-f]{12})\)", text)) == {digits}
    (size,) = set(re.findall(r"^    size +([\d,]+) bytes", text, re.MULTILINE))
    assert set(re.findall(r"outputs/cat/coefficients.safetensors \(([\d,]+) bytes", text)) == {size}
    assert set(re.findall(r"([\d,]+) bytes  coefficients.safetensors", text)) == {size}
    (gain,) = set(re.findall(r"effect +changes the base's predictions by (\S+)", text))
    assert f"predictions changed by {gain}\n    saved outputs/cat/" in text


def test_files_that_are_named_are_there() -> None:
    for path in PAGES:
        for name in re.findall(r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|cpp|yaml|md|toml))`", path.read_text()):
            assert any((folder / name).exists() for folder in (ROOT, ROOT / "coeff_diffusion", ROOT / "docs")) or (
                list((ROOT / "coeff_diffusion").rglob(name))
            ), f"{path.name}: {name}"


@pytest.mark.parametrize(
    ("name", "start", "expected"),
    [
        ("studio", "settings by name: ", set(SETTINGS) | {"layers"}),
        ("studio", "preset (", set(PRESETS)),
    ],
)
def test_lists_are_complete(name: str, start: str, expected: set[str]) -> None:
    listed = page(name).partition(start)[2].partition(";" if ":" in start else ")")[0]
    assert set(re.findall(r"`(\w+)`", listed)) == expected


@pytest.mark.parametrize(
    ("name", "heading", "known"),
    [
        ("file-format", "| field | type | meaning |", {one.name for one in fields(CoefficientsInfo)} - {"extra"}),
        (
            "commands",
            "Of a subject:",
            set(subject_facts(Coefficients({"a.attn1": torch.zeros(2, 2)}), 0)),
        ),
    ],
)
def test_tables_are_complete(name: str, heading: str, known: set[str]) -> None:
    rows = (ROOT / "docs" / f"{name}.md").read_text().partition(heading)[2].lstrip().split("\n\n")[0].splitlines()
    assert {key for row in rows for key in re.findall(r"`(\w+)`", row.split("|")[1])} == known


def test_keys_of_a_picture() -> None:
    """Of those that `info --json` prints of how it was drawn, the page names the one that is called otherwise."""
    assert "`sampler` for `scheduler`" in page("commands")
    assert "scheduler" in {one.name for one in fields(Parameters)}


def test_the_example_of_the_format_is_what_is_written() -> None:
    text = (ROOT / "docs" / "file-format.md").read_text()
    shown = json.loads(text.partition("```json\n")[2].partition("```")[0])
    known = CoefficientsInfo.from_json(shown["info"])
    assert known.extra == {}
    assert known.to_json() == shown["info"]
    written = Coefficients({"a.attn1": torch.ones(2, 2)}, {"text_encoder": torch.ones(1, 2)}, known).to_bytes()
    length = int.from_bytes(written[:8], "little")
    metadata = json.loads(written[8 : 8 + length])["__metadata__"]
    same = dict.fromkeys(["modelspec.hash_sha256"])
    assert {**metadata, **same} == {**shown, **same}
    assert asdict(known)["trigger"] == "sks dog"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("file-format", f"a header of more than {safetensors_file.MAX_HEADER // MIB} MiB"),
        ("file-format", f"a file of more than {safetensors_file.MAX_FILE // MIB} MiB"),
        (
            "file-format",
            f"`H` from 1 to {coefficients.MAX_HEADS}, `vectors` 1 to {coefficients.MAX_TOKEN[0]}, "
            f"`D` 1 to {coefficients.MAX_TOKEN[1]:,}",
        ),
        ("file-format", f"any value of magnitude over {coefficients.MAX_MAGNITUDE:g}"),
        ("file-format", f"an info of more than {info.MAX_INFO:,} characters"),
        ("file-format", f"a text of more than {info.MAX_TEXT:,} Unicode characters"),
        ("file-format", f"a list of more than {info.MAX_LIST} entries"),
        ("hub", f"a subject of more than {safetensors_file.MAX_FILE // MIB} MiB"),
        ("hub", f"adapter of more than {adapter.MAX_ADAPTER // MIB} MiB"),
        ("hub", f"a card of more than {shared_folder.MAX_BYTES['README.md'] // MIB} MiB"),
        ("hub", f"a picture of more than {shared_folder.MAX_SAMPLE // MIB} MiB"),
        ("hub", f"more than {shared_folder.MAX_SAMPLES} pictures"),
        ("cards", f"more than {image_card.MAX_SUBJECTS} of them, or more than {image_card.MAX_BYTES // MIB} MiB"),
        ("qr", f"a body of more than {qr_payload.MAX_BODY // 1024} KiB"),
        ("commands", f"of the {qr_payload.CAPACITY:,} bytes that a QR code holds"),
    ],
)
def test_limits(name: str, text: str) -> None:
    assert text in page(name)


def test_published_bases_of_qr_codes() -> None:
    starts = re.findall(r"`([0-9a-f]{16})`", page("qr"))
    assert len(starts) == len(PUBLISHED)
    for start, count in zip(starts, (32, 32), strict=True):
        layout = known_layout(start)
        assert layout is not None
        assert len(layout.heads) == count


def test_keys_of_files_name_the_component(new_subject: Callable[..., Coefficients]) -> None:
    names = new_subject(vectors=1).named_tensors()
    patterns = re.findall(r"^\| `(\w+/[^`]*)`", (ROOT / "docs" / "file-format.md").read_text(), re.MULTILINE)
    assert patterns[0] == "unet/<attention path>.coeff"
    shapes = [re.escape(one).replace("<attention\\ path>", r"[\w.]+") for one in patterns]
    assert [name for name in names if not any(re.fullmatch(shape, name) for shape in shapes)] == []
