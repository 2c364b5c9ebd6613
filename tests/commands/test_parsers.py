"""Every command's parser, built in several threads at once, as the page and its trainings may do."""

import ast
import contextlib
import gc
import io
import sys
import threading
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest

from coeff_diffusion import cli
from coeff_diffusion.commands.config import PullConfig
from coeff_diffusion.commands.generate_config import GenerateConfig, drawing_flags
from coeff_diffusion.images.drawing_settings import DrawRequest
from coeff_diffusion.subject.field_texts import field_texts
from coeff_diffusion.training.config import field_help, parse_train_config
from coeff_diffusion.training.settings import TrainSettings

CONFIGS = {
    command: cli._named(reader)
    for command, (_, reader, _) in cli.COMMANDS.items()
    if isinstance(cli._named(reader), type)
}


def forget() -> None:
    for kept in (field_texts, field_help, drawing_flags):
        kept.cache_clear()


def read(command: str) -> Any:
    """What a parser makes of arguments, after all that it remembers is forgotten."""
    forget()
    if command == "train":
        return parse_train_config(["--max_train_steps", "7"]).max_train_steps
    if command == "pull":
        return cli.parse(command, PullConfig, ["ann/dog", "-o", "there"]).output
    return cli.parse(command, GenerateConfig, ["--prompt", "a dog", "--seed", "7"]).settings["seed"]


@pytest.fixture
def hostile_threads() -> Iterator[None]:
    """Threads change places as often as they can, also while Python itself makes a syntax tree."""
    interval = sys.getswitchinterval()

    def anything(phase: str, info: dict[str, int]) -> None:
        sum(range(50))

    gc.callbacks.append(anything)
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)
    gc.callbacks.remove(anything)


@pytest.mark.usefixtures("hostile_threads")
def test_parsers_are_built_in_many_threads_while_others_parse_python() -> None:
    expected = {"train": 7, "pull": "there", "generate": 7}
    wrong: list[str] = []
    done = threading.Event()

    def build(command: str) -> None:
        for _ in range(2):
            try:
                found = read(command)
            except BaseException as error:  # noqa: BLE001 - all of it is what is looked for
                found = f"{type(error).__name__}: {error}"
            if found != expected[command]:
                wrong.append(f"{command}: {found}")

    def parse_python() -> None:
        source = "def f(x):\n    return {**x, 'a': [1, 2, 3]}\n" * 200
        while not done.is_set():
            with contextlib.suppress(SystemError):  # where Python has this fault, it has it here
                ast.parse(source)

    others = [threading.Thread(target=parse_python) for _ in range(2)]
    builders = [threading.Thread(target=build, args=[command]) for command in expected for _ in range(2)]
    for thread in (*others, *builders):
        thread.start()
    for thread in builders:
        thread.join()
    done.set()
    for thread in others:
        thread.join()
    assert wrong == []


def test_no_parser_makes_a_syntax_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a syntax tree is made")

    shown = {}
    for again in (False, True):  # what is imported late is there the second time
        for command in cli.COMMANDS:
            text = io.StringIO()
            with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
                cli.main([command, "--help"])
            assert shown.setdefault(command, text.getvalue()) == text.getvalue()
            assert "--help" in text.getvalue()
        if not again:
            monkeypatch.setattr(ast, "parse", refused)
            forget()


@pytest.mark.parametrize("config", [*CONFIGS.values(), TrainSettings, DrawRequest])
def test_every_field_has_its_text(config: type) -> None:
    many = {item.name for item in fields(config) if "flags" in item.metadata} | {"subjects", "layers", "prompt"}
    texts = field_texts(config)
    assert {item.name for item in fields(config)} - many <= set(texts)
    assert all(text and text == " ".join(text.split()) and '"""' not in text for text in texts.values())


def test_texts_are_those_that_a_parser_of_docstrings_finds() -> None:
    docstring_parser = pytest.importorskip("docstring_parser")
    for config in (*CONFIGS.values(), TrainSettings, DrawRequest):
        found = {one.arg_name: one.description for one in docstring_parser.parse_from_object(config).params}
        assert field_texts(config) == {name: " ".join(text.split()) for name, text in found.items() if text}
