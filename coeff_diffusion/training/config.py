"""The settings of a training run: one dataclass field is the YAML key, the command-line flag and its help.

The fields themselves stand in `settings`.
"""

import dataclasses
import difflib
import functools
import os
import re
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ActionConfigFile, ActionYesNo, ArgumentError, ArgumentParser, Namespace

from ..subject.errors import UserError, shown
from ..subject.field_texts import field_texts
from ..subject.user_file import FileError, read_text, user_path
from ..subject.wrong_value import wrong_value
from .config_layers import parse_layers
from .settings import TrainSettings
from .strict_yaml import load_yaml

MAX_CONFIG = 2**20  # bytes
BOOLEANS = ("true", "false", "yes", "no")
VALIDATE_EVERY = 20  # steps, where someone wants to choose among them


class ConfigError(UserError, ValueError):
    """Settings that cannot work. The message lists every problem, each with its flag; so does `problems`."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        listed = "".join(f"\n  {problem}" for problem in self.problems)
        super().__init__(f"the settings cannot work:{listed}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(TrainSettings):
    """Everything that decides a training run. Construct it, then `resolve()` fills in what follows from the rest.

    Raises nothing itself: `resolve` checks all fields together and reports all problems at once.
    """

    def resolve(self) -> "TrainConfig":
        """The same settings with every default that follows from others filled in.

        What only the base knows (`resolution`, the rates of words) stays None until the base is loaded.

        Raises:
            ConfigError: with all problems found, each naming its flag.
        """
        from .checks import find_problems  # needs torch, and `--help` does not

        config = _with_defaults(self)
        if problems := find_problems(config):
            raise ConfigError(problems)
        return config

    def trajectory(self) -> dict[str, Any]:
        """The settings that decide the course of training, and so have to be the same when a run is resumed.

        The rest is where things go, what is shown, how fast and how long; base and pictures are compared by what is in
        them, not by their paths.
        """
        free = {*sections()["Base"], *sections()["Previews"], *sections()["Output"]} - {
            "mixed_precision",
            "quantization",
        }
        free |= {"instance_data_dir", "dataloader_num_workers", "class_data_dir", "sample_batch_size"}
        free |= {"max_train_steps", "gradient_checkpointing", "offload", "cache_latents_dir", "gate"}
        free |= {"validation_data_dir", "keep_best", "early_stopping_patience", "early_stopping_threshold"}
        free |= {"measure_base", "caption_model"}
        if self.with_adapter is None:
            free |= {"with_adapter", "adapter_learning_rate"}
        return {name: getattr(self, name) for name in field_help() if name not in free}

    def to_yaml(self) -> str:
        """All settings with their help as comments; `from_yaml` reads it back to an equal config."""
        lines = []
        for section, names in sections().items():
            lines.append(f"# {'-' * 10} {section} {'-' * (100 - len(section))}")
            for name in names:
                value = yaml.safe_dump({flag_of(name): getattr(self, name)}, width=1000)
                lines += [f"# {field_help()[name]}", value.strip()]
            lines.append("")
        return "\n".join(lines)

    @classmethod
    def from_yaml(cls, path: str | Path, **overrides: Any) -> "TrainConfig":
        """Read a YAML file; keyword arguments win over it.

        Raises:
            ConfigError: the file cannot be read, has an unknown key or a value of the wrong type.
        """
        return dataclasses.replace(parse_train_config(["--config", str(path)]), **overrides)


# --- the command line -------------------------------------------------------------------------------------------------


class ConfigFile(ActionConfigFile):
    """`--config FILE`: a regular file of bounded size, in UTF-8 wherever it is read."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        try:
            text = read_text(user_path(values), MAX_CONFIG)
            found = load_yaml(text)
        except (FileError, yaml.YAMLError, RecursionError) as error:
            why = str(error) if isinstance(error, FileError) else f"{values} is no YAML: {' '.join(str(error).split())}"
            raise ConfigError([f"--config: {why}"]) from error
        if found is not None and not isinstance(found, dict):
            raise ConfigError([f"--config: {values} holds {shown(found)}, expected lines such as 'seed: 1'"])
        types = typing.get_type_hints(TrainSettings)
        found = found or {}
        for name, value in found.items():
            if types.get(name) is bool and value is not None and str(value).lower() not in BOOLEANS:
                raise ConfigError([f"--{name} is {value!r}, expected true or false"])
            if value is False and "no" in typing.get_args(types.get(name)):  # what YAML takes a bare `no` for
                found[name] = "no"
                text = yaml.safe_dump(found)
        self.apply_config(parser, cfg, self.dest, f"# no path\n{text if found else '{}'}")


class ConfigParser(ArgumentParser):
    """jsonargparse's parser, with the nearest known name in the error about an unknown one."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        unknown = re.search(r"Option '([\w.-]+)' is not accepted|unrecognized arguments: -*([\w.-]+)", message)
        if unknown:
            name = unknown[1] or unknown[2]
            near = difflib.get_close_matches(name.split(".")[-1], map(flag_of, field_help()), n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else "--help lists all settings"
            message = f"unknown setting '{name}'; {hint}"
        elif wrong := wrong_value(message):
            message = wrong.said(f"--{wrong.name}")
        super().error(re.sub(r'Parser key "([\w.]+)":\s*', r"--\1: ", " ".join(message.split())), ex)


def train_parser(**kwargs: Any) -> ConfigParser:
    """A parser of every field of `TrainConfig` as a flag, plus `--config FILE.yaml` (repeatable).

    Args:
        kwargs: go to jsonargparse's `ArgumentParser`, such as `exit_on_error=False`.
    """
    parser = ConfigParser(**{"allow_abbrev": False, "description": "Teach a Stable Diffusion a new subject.", **kwargs})
    parser.add_argument("--config", action=ConfigFile, help="YAML file with any of these settings; flags win over it")
    types = typing.get_type_hints(TrainConfig)
    defaults = {f.name: getattr(TrainConfig(), f.name) for f in dataclasses.fields(TrainConfig)}
    for section, names in sections().items():
        group = parser.add_argument_group(section)
        for name in names:
            flag, shared = f"--{flag_of(name)}", {"default": defaults[name], "help": field_help()[name]}
            if types[name] is bool:  # `--random_flip` alone means true, as diffusers has it
                group.add_argument(flag, action=ActionYesNo(yes_prefix="", no_prefix="no_"), nargs="?", **shared)
            else:
                group.add_argument(flag, type=types[name], **shared)
    return parser


def config_from_namespace(parsed: Namespace | Mapping[str, Any]) -> TrainConfig:
    """The config that `train_parser` parsed."""
    return TrainConfig(**{f.name: parsed[flag_of(f.name)] for f in dataclasses.fields(TrainConfig)})


def parse_train_config(
    arguments: Sequence[str] | None = None, prog: str | None = None, say: Callable[[str], None] = print
) -> TrainConfig:
    """Parse flags (by default the process's own). Flags win over `--config` files, later files over earlier ones.

    Args:
        prog: what `--help` calls the program; default: the name of the running script.
        say: takes a line for each setting that was overridden.

    Raises:
        ConfigError: an unknown flag or YAML key (the nearest known one is named), or a value of the wrong type.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        parser = train_parser(exit_on_error=False, prog=prog)
        parsed, notes = parse_layers(parser, _with_paths(given))
    except ArgumentError as error:
        raise ConfigError([str(error)]) from error
    if os.environ.get("RANK", "0") == "0":  # one of several processes speaks for all
        for note in notes:
            say(note)
    return config_from_namespace(parsed)


def _with_paths(arguments: Sequence[str]) -> list[str]:
    """The arguments, with a folder of pictures that is called as a list is written (`[dog]`) told from one."""
    found, flag = list(arguments), "--instance_data_dir"
    for place, one in enumerate(found):
        before, name = (f"{flag}=", one.removeprefix(f"{flag}=")) if one.startswith(f"{flag}=") else ("", one)
        is_value = bool(before) or (place > 0 and found[place - 1] == flag)
        if is_value and name.startswith("[") and Path(name).exists():
            found[place] = f"{before}./{name}"
    return found


@functools.cache
def field_help() -> dict[str, str]:
    """The help of every setting: the text under its field, on one line."""
    return {f.name: field_texts(TrainSettings)[f.name] for f in dataclasses.fields(TrainConfig)}


def flag_of(name: str) -> str:
    """What the flag and the YAML key of a setting are called: as its field, where Python lets a field be called so."""
    flags = {f.name: str(f.metadata.get("flag", f.name)) for f in dataclasses.fields(TrainConfig)}
    return flags[name]


def sections() -> dict[str, list[str]]:
    """The settings by section, in the order of the class, for `--help`, YAML files and forms."""
    names = list(field_help())
    starts = {
        "Base": "pretrained_model_name_or_path",
        "Subject": "instance_data_dir",
        "Prior preservation": "with_prior_preservation",
        "What is learned": "train",
        "Learning": "max_train_steps",
        "Validation": "validate_every_n_steps",
        "Previews": "validation_prompt",
        "Output": "output_dir",
    }
    bounds = [*(names.index(first) for first in starts.values()), len(names)]
    return {section: names[bounds[i] : bounds[i + 1]] for i, section in enumerate(starts)}


# --- defaults ---------------------------------------------------------------------------------------------------------


def _with_defaults(config: TrainConfig) -> TrainConfig:
    config = dataclasses.replace(
        config, **{f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}
    )
    prompt, trigger, class_word = config.instance_prompt, _words(config.trigger), _words(config.class_word)
    if trigger is None and class_word is None and prompt is not None:
        found = re.search(r"(?<!\w)sks\s+(\w+)", prompt, re.IGNORECASE)
        class_word = found[1] if found else None
    if trigger is None:
        trigger = f"sks {class_word}" if class_word else None
    elif class_word is None:
        class_word = trigger.partition(" ")[2] or None
    slug = re.sub(r"[^\w]+", "-", trigger or "subject").strip("-").lower()
    prompt = f"a {trigger}" if prompt is None and trigger else prompt
    validated = config.validation_split or config.validation_data_dir or config.keep_best
    every = VALIDATE_EVERY if validated or config.early_stopping_patience else 0
    return dataclasses.replace(
        config,
        trigger=trigger,
        class_word=class_word,
        instance_prompt=prompt,
        class_prompt=f"a {class_word}" if config.class_prompt is None and class_word else config.class_prompt,
        validate_every_n_steps=every if config.validate_every_n_steps is None else config.validate_every_n_steps,
        validation_prompt=prompt if config.validation_prompt is None else config.validation_prompt,
        output_dir=f"outputs/{slug}" if config.output_dir is None else config.output_dir,
        name=trigger if config.name is None else config.name,
    )


def _plain(value: Any) -> Any:
    """The value as YAML has it: a library user may give paths and tuples."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _words(text: str | None) -> str | None:
    """Words separated by single spaces; None stays None."""
    return None if text is None else " ".join(text.split())
