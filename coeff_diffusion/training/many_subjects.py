"""A folder of folders -> the subjects to teach, each with its settings.

What is told of a subject stands, the first counts: in its row of the table (`subjects.csv`, `.jsonl`, `.json` or
`.yaml` in the folder of folders), in `subject.yaml` beside its pictures, in the name of its folder: `rex.dog` holds the
dog rex, `dog` a dog. A class word for all counts before the name of a folder that has no dot in it.
"""

import csv
import difflib
import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from ..images.photo import DatasetError
from ..sources.library import SUFFIX, LibraryError, check_name, plain_name
from ..subject.errors import cut, shown
from ..subject.user_file import FileError, read_text, user_path
from .captions import json_lines
from .config import ConfigError, TrainConfig
from .many_config import TABLES
from .picture_folder import ABOUT, find_pictures, is_system, natural
from .strict_yaml import load_yaml
from .subject_store import inside, is_address

COLUMNS = ("name", "class_word", "trigger", "instance_prompt", "validation_prompt", "class_prompt", "license", "seed")
FOLDER = ("folder", "file_name")  # what a row calls its folder
MAX_TABLE = 16 * 2**20  # bytes
RUNS = ".runs"  # where trainings keep what is no subject, in the folder of subjects
# What one subject alone can have, not all of them.
OF_ONE = (
    "instance_data_dir",
    "crop_boxes",
    "trigger",
    "name",
    "class_prompt",
    "validation_data_dir",
    "resume_from_checkpoint",
)


@dataclass(frozen=True)
class Wanted:
    """A subject that is to be learned.

    Attributes:
        name: of its file, and of its folder among the runs.
        folder: its pictures.
        config: its settings, resolved; None where they cannot work.
        problem: why not.
    """

    name: str
    folder: Path
    config: TrainConfig | None
    problem: str = ""


def find_subjects(folder: str | Path, config: TrainConfig, table: str | Path | None = None) -> list[Wanted]:
    """The subjects of a folder, in the order of its folders' names.

    Args:
        config: what holds for all; `output_dir` is where they go.
        table: a file that tells of them; by default the one that lies in the folder.

    Raises:
        ConfigError: no folder, nothing in it, a table that cannot be read, or settings that are one subject's alone.
    """
    folder, output = user_path(folder), str(config.output_dir)
    output = output if is_address(output) else str(user_path(output))
    if wrong := [name for name in OF_ONE if getattr(config, name) is not None]:
        column = f"say it in a column of {TABLES[0]}, or in {ABOUT} beside the pictures"
        instead = dict.fromkeys(COLUMNS, column) | {"resume_from_checkpoint": "the same command goes on by itself"}
        alone = "leave it out, or teach that one alone by 'train'"
        raise ConfigError([f"--{name} is of one subject; {instead.get(name, alone)}" for name in wrong])
    try:
        entries = sorted(folder.iterdir(), key=natural)
        places = {path.name: path for path in entries if path.is_dir() and not is_system(path)}
    except OSError as error:
        raise ConfigError([f"{folder} cannot be read: {error.strerror or error}"]) from error
    for own in (Path(output), user_path(config.class_data_dir or "")):
        places = {name: path for name, path in places.items() if not _is_same(path, own)}
    rows = _rows(_table(folder, table))
    if not places:
        raise ConfigError([f"{folder} holds no folders; expected one for each subject, with its pictures inside"])
    found, taken = list[Wanted](), dict[str, Path]()
    for name, path in {**places, **{name: folder / name for name in rows if name not in places}}.items():
        wanted = _wanted(path, rows.get(name, {}), config, output)
        if (other := taken.setdefault(wanted.name.casefold(), path)) != path:
            problem = f"{wanted.name}{SUFFIX} is to be of the folder {other.name}; rename one"
            wanted = Wanted(f"{name}/", path, None, problem)
        found.append(wanted)
    return found


def _wanted(folder: Path, row: Mapping[str, Any], config: TrainConfig, output: str) -> Wanted:
    """One subject; what is wrong with it concerns no other."""
    stem, _, after = folder.name.partition(".")
    name = plain_name(stem)
    try:
        told = {**_beside(folder), **row}
        called = told.get("name") or stem
        name = check_name(plain_name(called))
        class_word = told.get("class_word") or _words(after) or config.class_word or ("" if after else _words(stem))
        if not class_word:
            raise ConfigError(
                [f"{stem!r} is no word for what it shows: call the folder {stem}.dog, or say class_word in {ABOUT}"]
            )
        class_word = " ".join(str(class_word).split())
        own = _words(called) or called
        trigger = str(told.get("trigger") or (f"sks {own}" if own == class_word else f"{own} {class_word}"))
        prompts: dict[str, Any] = {
            key: re.sub(r"\[trigger\]", lambda _: trigger, str(text), flags=re.IGNORECASE)
            for key in ("instance_prompt", "validation_prompt")
            if (text := told.get(key) or getattr(config, key))
        }
        kept = config.class_data_dir
        settings = replace(
            config,
            **prompts,
            instance_data_dir=str(folder),
            class_word=class_word,
            trigger=trigger,
            name=called,
            class_prompt=told.get("class_prompt"),
            class_data_dir=None if kept is None else str(user_path(kept) / plain_name(class_word)),
            license=told.get("license") or config.license,
            seed=told.get("seed", config.seed),
            output_dir=inside(output, f"{RUNS}/{name}"),
            overwrite_output_dir=False,
        )
        settings = settings.resolve()
        find_pictures(folder)  # or what is wrong with them, before a base is loaded
        return Wanted(name, folder, settings)
    except ConfigError as error:
        return Wanted(name, folder, None, "; ".join(error.problems))
    except (LibraryError, FileError, DatasetError) as error:
        return Wanted(name, folder, None, str(error))


def _words(name: str) -> str:
    """A folder's name as words; empty where it holds more than letters: "lady_beetle" is a lady beetle, "dog2" none."""
    words = re.sub(r"[\s_-]+", " ", name).strip()
    return words.lower() if re.fullmatch(r"[^\W\d]+(?: [^\W\d]+)*", words) else ""


def _is_same(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except OSError:  # it is not there
        return False


# --- tables -----------------------------------------------------------------------------------------------------------


def _table(folder: Path, table: str | Path | None) -> Path | None:
    if table is not None:
        return user_path(table)
    found = [folder / name for name in TABLES if (folder / name).is_file()]
    if len(found) > 1:
        raise ConfigError([f"{folder} holds {' and '.join(path.name for path in found)}; keep one, or name it"])
    return found[0] if found else None


def _rows(table: Path | None) -> dict[str, dict[str, Any]]:
    """What a table tells of each folder, by the folder's name."""
    rows: dict[str, dict[str, Any]] = {}
    problems = []
    for place, row in _read(table) if table else ():
        name = next((row[key] for key in FOLDER if isinstance(row.get(key), str) and row[key].strip()), "")
        name = name.strip().strip("/")
        if not name or "/" in name or name in rows:
            why = "is there twice" if name in rows else "is no name of a folder in it"
            problems.append(f"{place}: {shown(name)} {why}; expected a column '{FOLDER[0]}'")
            continue
        try:
            rows[name] = _checked({key: value for key, value in row.items() if key not in FOLDER}, place)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems[:8])
    return rows


def _read(table: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each row with its place, for messages."""
    try:
        text = read_text(table, MAX_TABLE)
        if table.suffix.lower() == ".csv":
            lines = csv.DictReader(io.StringIO(text), strict=True)
            yield from ((f"{table.name}, line {lines.line_num}", row) for row in lines)
            return
        found: Any
        if table.suffix.lower() == ".jsonl":
            found = [json.loads(line) for line in json_lines(text) if line.strip()]
        else:
            found = load_yaml(text)
    except (FileError, csv.Error, ValueError, yaml.YAMLError, RecursionError) as error:
        why = cut(" ".join(str(error).split()), 200)
        raise ConfigError([why if isinstance(error, FileError) else f"{table} cannot be read: {why}"]) from error
    if isinstance(found, dict):
        found = [{FOLDER[0]: name, **(about if isinstance(about, dict) else {"class_word": about})}
                 for name, about in found.items()]  # fmt: skip
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise ConfigError([f"{table} holds {shown(found)}; expected a row for each folder"])
    yield from ((f"{table.name}, row {number}", row) for number, row in enumerate(found, start=1))


def _beside(folder: Path) -> dict[str, Any]:
    """What `subject.yaml` beside the pictures tells; nothing where there is none."""
    file = folder / ABOUT
    if not file.exists():
        return {}
    try:
        found = load_yaml(read_text(file, MAX_TABLE))
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError([f"{file} is no YAML: {cut(' '.join(str(error).split()))}"]) from error
    if not isinstance(found, dict):
        raise ConfigError([f"{file} holds {shown(found)}; expected lines such as 'class_word: dog'"])
    return _checked(found, ABOUT)


def _checked(row: Mapping[Any, Any], place: str) -> dict[str, Any]:
    """A row without what it leaves empty.

    Raises:
        ConfigError: a column that means nothing, or a value of another kind.
    """
    problems, kept = [], dict[str, Any]()
    for key, value in row.items():
        if value is None or (isinstance(value, str) and not value.strip()):
            continue
        if key not in COLUMNS:
            near = difflib.get_close_matches(str(key), COLUMNS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join((FOLDER[0], *COLUMNS))}"
            problems.append(f"{place}: nothing is called {shown(key)}; {hint}")
        elif key == "seed":
            if not re.fullmatch(r"\d{1,10}", str(value)) or isinstance(value, bool):
                problems.append(f"{place}: seed is {shown(value)}, expected a whole number")
            else:
                kept[key] = int(value)
        elif not isinstance(value, str):
            problems.append(f"{place}: {key} is {shown(value)}, expected words")
        else:
            kept[key] = " ".join(value.split())
    if problems:
        raise ConfigError(problems)
    return kept
