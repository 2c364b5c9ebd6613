"""The `coeff-diffusion` command: wiring only. Every error is one line on stderr and exit code 2.

Heavy imports wait until a command runs, so that `--help` answers at once.
"""

import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar, get_origin, get_type_hints

from . import __version__

USAGE = """\
usage: coeff-diffusion COMMAND [options]

Teach Stable Diffusion a new subject with a file of about 10 KB.

commands:
  train      learn a subject from a folder of pictures
  generate   draw with subjects
  studio     open the page
  info       show what a subject's file or a picture carries

coeff-diffusion COMMAND --help lists the options of a command; --debug shows the traceback of an error.
"""

# The base has two names, and every command takes both: what a diffusers user types, and the short one.
LONG, SHORT = "--pretrained_model_name_or_path", "--base"
Config = TypeVar("Config")


class UsageError(ValueError):
    """The command line does not say what to do."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 for an error, 130 for Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    return guarded(lambda: _run(arguments), debug)


def guarded(run: Callable[[], int], debug: bool = False) -> int:
    """Run something for a user: an error becomes one line on stderr and exit code 2, Ctrl-C exit code 130."""
    _quiet(debug)
    try:
        return run()
    except KeyboardInterrupt:
        print("coeff-diffusion: stopped", file=sys.stderr)
        return 130
    except Exception as error:  # noqa: BLE001 - the last line of defence: the user gets a sentence, not a stack
        if debug:
            traceback.print_exc()
        print(f"coeff-diffusion: error: {_sentence(error)}", file=sys.stderr)
        return 2


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"coeff-diffusion {__version__}")
        return 0
    command = COMMANDS.get(arguments[0])
    if command is None:
        raise UsageError(f"no command {arguments[0]!r}; use one of {', '.join(COMMANDS)}")
    return command(arguments[1:])


def parse(command: str, config: type[Config], arguments: Sequence[str]) -> Config:
    """Read a command's flags, which are the fields of its config dataclass; their docstrings are the help.

    Raises:
        UsageError: unknown flag, wrong type, ...: one line that names the flag.
    """
    from docstring_parser import parse_from_object
    from jsonargparse import ActionYesNo, ArgumentError, ArgumentParser

    assert is_dataclass(config)
    documented = parse_from_object(config)
    helps = {parameter.arg_name: " ".join((parameter.description or "").split()) for parameter in documented.params}
    hints = get_type_hints(config)
    parser = ArgumentParser(
        prog=f"coeff-diffusion {command}",
        description=documented.short_description,
        exit_on_error=False,
        allow_abbrev=False,
    )
    for item in fields(config):
        default = item.default_factory() if item.default_factory is not MISSING else item.default
        options: dict[str, Any] = {"help": helps[item.name], "default": default}
        if hints[item.name] is bool:
            yes_or_no = ActionYesNo(yes_prefix="", no_prefix="no_")  # `--grid` alone means true
            parser.add_argument(f"--{item.name}", action=yes_or_no, nargs="?", **options)
        elif get_origin(hints[item.name]) is list:
            parser.add_argument(f"--{item.name}", action="append", type=str, **options)
        else:
            parser.add_argument(f"--{item.name}", type=hints[item.name], **options)
    try:
        found = parser.parse_args(_renamed(arguments, LONG, SHORT))
    except ArgumentError as error:
        raise UsageError(_flag_error(str(error), command)) from error
    return config(**{item.name: found[item.name] for item in fields(config)})


# --- commands ---------------------------------------------------------------------------------------------------------


def _train(arguments: list[str]) -> int:
    from .config import parse_train_config
    from .trainer import train

    train(parse_train_config(_renamed(arguments, SHORT, LONG)))
    return 0


def _generate(arguments: list[str]) -> int:
    from .generate import GenerateConfig, generate

    config = parse("generate", GenerateConfig, arguments)
    generate(config)
    return 0


def _studio(arguments: list[str]) -> int:
    from .ui import PageConfig, open_page

    config = parse("studio", PageConfig, arguments)
    open_page(config)
    return 0


def _info(arguments: list[str]) -> int:
    if arguments in (["-h"], ["--help"]):
        print("usage: coeff-diffusion info FILE\n\nShow what a subject's file or a drawn picture (PNG) carries.")
        return 0
    if len(arguments) != 1 or arguments[0].startswith("--"):
        raise UsageError("info wants one file: coeff-diffusion info FILE")
    from .info import describe

    print(describe(arguments[0]))
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": _train,
    "generate": _generate,
    "studio": _studio,
    "info": _info,
}


# --- words ------------------------------------------------------------------------------------------------------------


def _renamed(arguments: Sequence[str], old: str, new: str) -> list[str]:
    """The arguments with one flag under its other name."""
    return [new + argument[len(old) :] if argument.partition("=")[0] == old else argument for argument in arguments]


def _flag_error(message: str, command: str) -> str:
    """jsonargparse's report of a wrong value in one line that names the flag."""
    key, given = re.search(r'Parser key "([^"]+)"', message), re.search(r"Given value: (.*)", message)
    if key and given:
        wanted = list(dict.fromkeys(re.findall(r"Expected an? <class '(\w+)'>", message)))
        kinds = " or ".join(kind for kind in wanted if kind != "NoneType") or "another value"
        return f"--{key[1]} is {given[1].strip()!r}, expected {kinds}"
    return f"{' '.join(message.split())} (coeff-diffusion {command} --help lists the options)"


def _sentence(error: Exception) -> str:
    """One line. Errors made for users speak for themselves; any other is named by its type."""
    text = " ".join(str(error).split()) or "no message"
    if isinstance(problems := getattr(error, "problems", None), list):
        return "; ".join(problems)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    ours = type(error).__module__.startswith(("coeff_diffusion", "__main__"))
    return text if ours else f"{type(error).__name__}: {text} (--debug shows where)"


def _quiet(debug: bool) -> None:
    """Leave stdout and stderr to what the user asked for: no loading bars, no library chatter, unless debugging."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if debug:
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", module=r"(huggingface_hub|transformers|diffusers|gradio|torch)\b.*")


if __name__ == "__main__":
    sys.exit(main())
