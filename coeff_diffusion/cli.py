"""The `coeff-diffusion` command: wiring only. Every error is one line on stderr and exit code 2.

Heavy imports wait until a command runs, so that `--help` answers at once: the flags of a command stand in a file that
needs none of them.
"""

import io
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, Field, fields, is_dataclass
from importlib import import_module
from typing import Any, TypeVar, get_origin, get_type_hints

from . import __version__
from .subject.errors import UserError
from .subject.field_texts import field_texts
from .subject.printable import printable
from .subject.wrong_value import wrong_value
from .training.signals import Terminated, all_like_ctrl_c

# What a command does; its arguments: a dataclass, or a function that reads them; and what runs it.
COMMANDS = {
    "train": ("learn a subject from a folder of pictures",
              "training.config:parse_train_config", "training.trainer:train"),
    "train-many": ("learn many subjects at once, one from each folder of a folder",
                   "training.many_config:parse_many_config", "commands.train_many:teach_folder"),
    "generate": ("draw with subjects", "commands.generate_config:GenerateConfig", "commands.generate:generate"),
    "serve": ("draw for other programs, over HTTP, on Ray Serve",
              "serving.config:ServeConfig", "serving.on_ray:serve_drawing"),
    "studio": ("open the page", "ui:PageConfig", "ui:open_page"),
    "info": ("show what a subject's file or a picture carries",
             "commands.config:InfoConfig", "commands.info:show_info"),
    "verify": ("check that a subject fits a base, without loading the base's weights",
               "commands.config:VerifyConfig", "commands.verify:verify"),
    "convert": ("write a subject again with wider or narrower numbers, or fewer layers",
                "commands.config:ConvertConfig", "commands.convert:convert"),
    "blend": ("mix several subjects into one", "commands.config:BlendConfig", "commands.convert:blend_files"),
    "card": ("put a subject into a picture", "commands.config:CardConfig", "commands.card:make_card_file"),
    "qr": ("write a subject as a QR code", "commands.config:QrConfig", "commands.qr:make_qr_file"),
    "push": ("upload a subject to the Hub", "commands.config:PushConfig", "commands.push_pull:push"),
    "pull": ("fetch a subject from the Hub", "commands.config:PullConfig", "commands.push_pull:pull"),
}  # fmt: skip

# The base has two names, and every command takes both: what a diffusers user types, and the short one.
LONG, SHORT = "--pretrained_model_name_or_path", "--base"
Config = TypeVar("Config")


class UsageError(UserError, ValueError):
    """The command line does not say what to do."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; see `guarded`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _run([one for one in arguments if one != "--debug"]), debug="--debug" in arguments)


def guarded(run: Callable[[], int], debug: bool = False) -> int:
    """Run something for a user: an error becomes one line on stderr and exit code 2.

    Ctrl-C gives exit code 130, SIGTERM 143 and SIGHUP 129, as in a shell (a training that saved what it has: 0).
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not every terminal has all letters that a prompt or a name may have
            stream.reconfigure(errors="backslashreplace")
    with warnings.catch_warnings(), all_like_ctrl_c():
        _quiet(debug)
        try:
            return run()
        except KeyboardInterrupt as error:
            with suppress(OSError):  # the terminal may be gone
                print("coeff-diffusion: stopped", file=sys.stderr)
            return 128 + (error.number if isinstance(error, Terminated) else signal.SIGINT)
        except Exception as error:  # noqa: BLE001 - the last line of defence: the user gets a sentence, not a stack
            if debug:
                traceback.print_exc()
            with suppress(OSError):
                print(f"coeff-diffusion: error: {printable(_sentence(error))}", file=sys.stderr)
            return int(getattr(error, "exit_code", 2))


def _run(arguments: list[str]) -> int:
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help"):
        print("usage: coeff-diffusion COMMAND [options]\n")
        print("Teach Stable Diffusion a new subject with a file of about 10 KB.\n\ncommands:")
        print("".join(f"  {name:<10} {about}\n" for name, (about, _, _) in COMMANDS.items()))
        print("coeff-diffusion COMMAND --help lists the options of a command; --debug shows the traceback of an error.")
        return 0 if arguments else 2
    if command == "--version":
        print(f"coeff-diffusion {__version__}")
        return 0
    if command not in COMMANDS:
        raise UsageError(f"no command {command!r}; use one of {', '.join(COMMANDS)}")
    _, reader_name, runner_name = COMMANDS[command]
    reader = _named(reader_name)
    config: Any
    if isinstance(reader, type):
        config = parse(command, reader, arguments[1:])
    else:
        config = reader(_renamed(arguments[1:], SHORT, LONG))
    if command != "studio" and sys.stderr.isatty():  # the page says it by itself
        print("coeff-diffusion: loading the libraries ...", file=sys.stderr, flush=True)
    _named(runner_name)(config)
    return 0


def _named(place: str) -> Any:
    """What stands at `module:name` in this package."""
    module, _, name = place.partition(":")
    return getattr(import_module(f".{module}", __package__), name)


def parse(command: str, config: type[Config], arguments: Sequence[str]) -> Config:
    """Read a command's arguments, which are the fields of its config dataclass; their docstrings are the help.

    A field is the flag of its name, and must be given where it has no default. `field(metadata=...)` changes that:
    `{"positional": True}` is an argument without a flag (of a list: one or more), `{"short": "-o"}` adds a short flag,
    `{"bare": "x"}` is the value of a flag that is given without one, `{"flag": "--from"}` is the flag of a field whose
    name Python keeps for itself, and `{"flags": ...}` makes a field a flag for each name, type and help that this
    function returns; it holds those that are given.

    Raises:
        UsageError: unknown flag, wrong type, ...: one line that names the flag.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    assert is_dataclass(config)
    helps, hints, about = field_texts(config), get_type_hints(config), config.__doc__
    parser = ArgumentParser(f"coeff-diffusion {command}", description=about, exit_on_error=False, allow_abbrev=False)
    # `--json FILE`: where something may follow a flag, it is not the flag's value.
    bare_flags = any(item.metadata.get("positional") for item in fields(config))
    many = {item.name: item.metadata["flags"]() for item in fields(config) if "flags" in item.metadata}
    for item in fields(config):
        for flag, (kind, text) in many.get(item.name, {}).items():
            parser.add_argument(f"--{flag}", type=_as_typed(kind), help=text)
        if item.name not in many:
            names, options = _argument(item, hints[item.name], bare_flags)
            parser.add_argument(*names, help=helps[item.name], **options)
    try:
        found = parser.parse_args(_renamed(arguments, LONG, SHORT))
    except ArgumentError as error:
        shown = {item.name: _shown(item) for item in fields(config)}
        raise UsageError(_flag_error(str(error), command, shown)) from error
    given = {name: {flag: found[flag] for flag in flags if found[flag] is not None} for name, flags in many.items()}
    return config(**{item.name: found[item.name] for item in fields(config) if item.name not in many}, **given)


def _argument(item: "Field[Any]", hint: Any, bare_flags: bool) -> tuple[list[str], dict[str, Any]]:
    """The names and options of a field's argument, as argparse takes them."""
    from jsonargparse import ActionYesNo

    is_list = get_origin(hint) is list
    options: dict[str, Any] = {"type": str if is_list else _as_typed(hint)}
    if item.metadata.get("positional"):
        return [item.name], {**options, "metavar": _shown(item), **({"nargs": "+"} if is_list else {})}
    if hint is bool:  # `--grid` alone means true
        options = {"action": ActionYesNo(yes_prefix="", no_prefix="no_"), "nargs": 0 if bare_flags else "?"}
    elif is_list:
        options["action"] = "append"
    default = item.default if item.default_factory is MISSING else item.default_factory()
    options |= {"required": True} if default is MISSING else {"default": default}
    if "bare" in item.metadata:
        options |= {"nargs": "?", "const": item.metadata["bare"]}
    return [*filter(None, [item.metadata.get("short")]), _shown(item)], {**options, "dest": item.name}


def _as_typed(hint: Any) -> Any:
    """The type of an argument; a text that may be left out is what was typed, and "null" is no lack of it."""
    return str if hint == (str | None) else hint


def _shown(item: "Field[Any]") -> str:
    """How a user writes, or reads of, the argument of a field."""
    return item.name.upper() if item.metadata.get("positional") else item.metadata.get("flag", f"--{item.name}")


def _renamed(arguments: Sequence[str], old: str, new: str) -> list[str]:
    """The arguments with one flag under its other name."""
    return [new + one[len(old) :] if one.partition("=")[0] == old else one for one in arguments]


# --- words ------------------------------------------------------------------------------------------------------------


def _flag_error(message: str, command: str, shown: Mapping[str, str]) -> str:
    """argparse's and jsonargparse's reports in one line that names the argument as `shown` to the user."""
    if wrong := wrong_value(message):
        return wrong.said(shown.get(wrong.name, f"--{wrong.name}"))
    if missing := re.search(r"arguments are required: (.*)", message):
        names = [shown[name] for name in missing[1].split(", ")]
        message = f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} missing"
    return f"{' '.join(message.split())} (coeff-diffusion {command} --help lists the options)"


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
