"""The `coeff-diffusion` command: wiring only. Every error is one line on stderr and exit code 2.

Heavy imports wait until a command runs, so that `--help` answers at once.
"""

import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from importlib import import_module
from typing import Any, TypeVar, get_origin, get_type_hints

from . import __version__
from .commands.terminal import printable
from .subject.errors import UserError

# Each command: what it does, its settings, and the function that takes them. Imported when the command runs.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "train": ("learn a subject from a folder of pictures", "training.config:TrainConfig", "training.trainer:train"),
    "generate": ("draw with subjects", "commands.generate:GenerateConfig", "commands.generate:generate"),
    "studio": ("open the page", "ui:PageConfig", "ui:open_page"),
    "info": ("show what a subject's file or a picture carries", "commands.info:InfoConfig", "commands.info:show_info"),
    "verify": (
        "check that a subject fits a base, without loading the base's weights",
        "commands.verify:VerifyConfig",
        "commands.verify:verify",
    ),
    "convert": (
        "write a subject again with wider or narrower numbers",
        "commands.convert:ConvertConfig",
        "commands.convert:convert",
    ),
    "blend": ("mix several subjects into one", "commands.convert:BlendConfig", "commands.convert:blend_files"),
    "card": ("put a subject into a picture", "commands.card:CardConfig", "commands.card:make_card_file"),
    "qr": ("write a subject as a QR code", "commands.qr:QrConfig", "commands.qr:make_qr_file"),
    "push": ("upload a subject to the Hub", "commands.push_pull:PushConfig", "commands.push_pull:push"),
    "pull": ("fetch a subject from the Hub", "commands.push_pull:PullConfig", "commands.push_pull:pull"),
}
USAGE = f"""\
usage: coeff-diffusion COMMAND [options]

Teach Stable Diffusion a new subject with a file of about 10 KB.

commands:
{"".join(f"  {name:<10} {what}{chr(10)}" for name, (what, _, _) in COMMANDS.items())}
coeff-diffusion COMMAND --help lists the options of a command; --debug shows the traceback of an error.
"""

# The base has two names, and every command takes both: what a diffusers user types, and the short one.
LONG, SHORT = "--pretrained_model_name_or_path", "--base"
Config = TypeVar("Config")


class UsageError(UserError, ValueError):
    """The command line does not say what to do."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 for an error, 130 for Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    return guarded(lambda: _run(arguments), debug)


def guarded(run: Callable[[], int], debug: bool = False) -> int:
    """Run something for a user: an error becomes one line on stderr and exit code 2, Ctrl-C exit code 130."""
    with warnings.catch_warnings():
        _quiet(debug)
        try:
            return run()
        except KeyboardInterrupt:
            print("coeff-diffusion: stopped", file=sys.stderr)
            return 130
        except Exception as error:  # noqa: BLE001 - the last line of defence: the user gets a sentence, not a stack
            if debug:
                traceback.print_exc()
            print(f"coeff-diffusion: error: {printable(_sentence(error))}", file=sys.stderr)
            return 2


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"coeff-diffusion {__version__}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        raise UsageError(f"no command {name!r}; use one of {', '.join(COMMANDS)}")
    _, config, function = COMMANDS[name]
    settings = _train_config(rest) if name == "train" else parse(name, _imported(config), rest)
    _imported(function)(settings)
    return 0


def _train_config(arguments: list[str]) -> Any:
    """Those of training have files of their own, and sections."""
    parse_flags = _imported("training.config:parse_train_config")
    return parse_flags(_renamed(arguments, SHORT, LONG))


def _imported(where: str) -> Any:
    """`"commands.info:show_info"` -> the function."""
    module, _, name = where.partition(":")
    return getattr(import_module(f".{module}", __package__), name)


def parse(command: str, config: type[Config], arguments: Sequence[str]) -> Config:
    """Read a command's arguments, which are the fields of its config dataclass; their docstrings are the help.

    A field is the flag of its name, and must be given where it has no default. `field(metadata=...)` changes that:
    `{"positional": True}` is an argument without a flag (of a list: one or more), `{"short": "-o"}` adds a short flag,
    `{"flag": "--from"}` is the flag of a field whose name Python keeps for itself, and `{"flags": ...}` makes a field a
    flag for each name, type and help that this function returns; it holds those that are given.

    Raises:
        UsageError: unknown flag, wrong type, ...: one line that names the flag.
    """
    from docstring_parser import parse_from_object
    from jsonargparse import ArgumentError, ArgumentParser

    assert is_dataclass(config)
    documented = parse_from_object(config)
    helps = {parameter.arg_name: " ".join((parameter.description or "").split()) for parameter in documented.params}
    hints = get_type_hints(config)
    parser = ArgumentParser(
        prog=f"coeff-diffusion {command}",
        description=documented.description,
        exit_on_error=False,
        allow_abbrev=False,
    )
    # `--json FILE`: where something may follow a flag, it is not the flag's value.
    bare_flags = any(item.metadata.get("positional") for item in fields(config))
    flags = {item.name: item.metadata["flags"]() for item in fields(config) if "flags" in item.metadata}
    for item in fields(config):
        for name, (kind, text) in flags.get(item.name, {}).items():
            parser.add_argument(f"--{name}", type=kind, help=text)
        if item.name not in flags:
            names, options = _argument(item, hints[item.name], bare_flags)
            parser.add_argument(*names, help=helps[item.name], **options)
    try:
        found = parser.parse_args(_renamed(arguments, LONG, SHORT))
    except ArgumentError as error:
        shown = {item.name: _shown(item) for item in fields(config)}
        shown |= {flag: f"--{flag}" for of in flags.values() for flag in of}
        raise UsageError(_flag_error(str(error), command, shown)) from error
    given = {name: {flag: found[flag] for flag in of if found[flag] is not None} for name, of in flags.items()}
    return config(**{item.name: found[item.name] for item in fields(config) if item.name not in flags}, **given)


def _argument(item: "Field[Any]", hint: Any, bare_flags: bool) -> tuple[list[str], dict[str, Any]]:
    """The names and options of a field's argument, as argparse takes them."""
    from jsonargparse import ActionYesNo

    is_list = get_origin(hint) is list
    if item.metadata.get("positional"):
        return [item.name], {"metavar": _shown(item), **({"nargs": "+", "type": str} if is_list else {"type": hint})}
    names = [*filter(None, [item.metadata.get("short")]), _shown(item)]
    options: dict[str, Any] = {"dest": item.name}
    if item.default_factory is not MISSING:
        options["default"] = item.default_factory()
    elif item.default is not MISSING:
        options["default"] = item.default
    else:
        options["required"] = True
    if hint is bool:
        yes_or_no = ActionYesNo(yes_prefix="", no_prefix="no_")  # `--grid` alone means true
        return names, {**options, "action": yes_or_no, "nargs": 0 if bare_flags else "?"}
    return names, {**options, "action": "append", "type": str} if is_list else {**options, "type": hint}


def _shown(item: "Field[Any]") -> str:
    """How a user writes, or reads of, the argument of a field."""
    return item.name.upper() if item.metadata.get("positional") else item.metadata.get("flag", f"--{item.name}")


# --- words ------------------------------------------------------------------------------------------------------------


def _renamed(arguments: Sequence[str], old: str, new: str) -> list[str]:
    """The arguments with one flag under its other name."""
    return [new + argument[len(old) :] if argument.partition("=")[0] == old else argument for argument in arguments]


def _flag_error(message: str, command: str, shown: Mapping[str, str]) -> str:
    """argparse's and jsonargparse's reports in one line that names the argument as `shown` to the user."""
    help_hint = f"(coeff-diffusion {command} --help lists the options)"
    if missing := re.search(r"arguments are required: (.*)", message):
        names = [shown.get(name, name) for name in missing[1].split(", ")]
        return f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} missing {help_hint}"
    key = re.search(r'Parser key "([^"]+)"', message)
    if key and (choice := re.search(r"Expected a typing\.Literal\[(.*?)\]\. Got value: (.*)", message)):
        return f"{shown[key[1]]} is {choice[2].strip()!r}, expected one of {choice[1]}"
    if key and (given := re.search(r"Given value: (.*)", message)):
        wanted = list(dict.fromkeys(re.findall(r"Expected an? <class '(\w+)'>", message)))
        kinds = " or ".join(kind for kind in wanted if kind != "NoneType") or "another value"
        return f"{shown[key[1]]} is {given[1].strip()!r}, expected {kinds}"
    return f"{' '.join(message.split())} {help_hint}"


def _sentence(error: Exception) -> str:
    """One line. Errors made for users speak for themselves; any other is named by its type."""
    text = " ".join(str(error).split()) or "no message"
    if isinstance(problems := getattr(error, "problems", None), list):
        return "; ".join(problems)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text} (--debug shows where)"


def _quiet(debug: bool) -> None:
    """Leave stdout and stderr to what the user asked for: no loading bars, no library chatter, unless debugging."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if debug:
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", module=r"(huggingface_hub|transformers|diffusers|gradio|torch)\b.*")
    warnings.showwarning = _warn


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    """A warning in one line, without the line of code that it comes from."""
    print(f"coeff-diffusion: warning: {printable(' '.join(str(message).split()))}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
