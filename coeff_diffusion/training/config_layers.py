"""Which setting wins: flags over config files, later files over earlier ones, whatever order they are typed in."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from ..subject.errors import cut, shown

FLAG = "--config"
Layer = tuple[str, Mapping[str, Any]]  # what it is called, and the settings that it gives


def parse_layers(parser: ArgumentParser, arguments: Sequence[str]) -> tuple[Namespace, list[str]]:
    """Read flags and the config files among them, each file once.

    Args:
        parser: has `--config` as one of its flags.

    Returns:
        all settings, and a sentence for each that a flag or a later file has overridden.
    """
    files, flags = _split(arguments)
    own = {FLAG[2:], *(action.dest for action in parser._actions if not action.option_strings)}  # no file has these
    given = parser.parse_args(flags, defaults=False)  # first: it may be a call for help, or a typing error
    layers: list[Layer] = [
        (cut(file), _settings(parser.parse_args([FLAG, file], defaults=False), own)) for file in files
    ]
    merged = Namespace()
    for _, settings in layers:
        merged.update(Namespace(**settings))
    found = parser.parse_args(flags, namespace=merged)
    added = {flag[2:].partition("+")[0] for flag in flags if flag.partition("=")[0].endswith("+")}  # --blocks+=x
    typed = {name: value for name, value in _settings(given, own).items() if name not in added}
    return found, _overridden([*layers, ("the command line", typed)])


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The config files in their order, and all other arguments."""
    files, flags = [], []
    left = iter(arguments)
    for argument in left:
        name, is_joined, value = argument.partition("=")
        if name != FLAG:
            flags.append(argument)
        elif is_joined:
            files.append(value)
        elif (following := next(left, None)) is not None:
            files.append(following)
        else:
            flags.append(argument)  # for the parser to say that its value is missing
    return files, flags


def _settings(namespace: Namespace, but: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in vars(namespace).items() if name not in but}


def _overridden(layers: Sequence[Layer]) -> list[str]:
    """A sentence for each setting of which a later layer says something else than an earlier one."""
    notes = []
    for name in dict.fromkeys(name for _, settings in layers for name in settings):
        *earlier, (winner, value) = [(source, settings[name]) for source, settings in layers if name in settings]
        lost = [f"not {shown(other)} of {source}" for source, other in earlier if other != value]
        if lost:
            notes.append(f"note: {name} is {shown(value)} of {winner}, {', '.join(lost)}")
    return notes
