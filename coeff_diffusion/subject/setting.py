"""What is known of a setting beside its name, type, default and help, written where its field is:

    softness: float = setting(0.5, text="Softness", low=0, high=1, label="Softness", hint="1 is as soft as it gets")
    \"""How soft the picture is, 0 to 1; left out, 0.5.\"""

Its flag, its key in a picture's text, its range and its control on the page follow from that.
"""

from dataclasses import MISSING, dataclass, field, fields, replace
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Value = TypeVar("Value")


@dataclass(frozen=True)
class Setting:
    """One setting: what `setting` is given, and at the end what the field itself says.

    Attributes:
        flag: sets it on the command line, without the dashes; the field's own name where none is given.
        text: its key in a picture's text (letters, digits, spaces, `-`, `/`); empty where it has none of its own.
        always: it is written there also where it is the default: a picture that does not say it is another tool's.
        low, high: what could be drawn at all, both included; None where only the base knows, or there is no end.
        label, hint: of its control on the page; without a label it has none. `{}` is what the base has.
        reach: from where to where the control goes; of a `float` from `low` to `high` where it is not given.
        step: of the control; 1 of whole numbers and percent, else 0.05 where it is not given.
        percent: the control shows a hundred times the value.
        fine: the control is not among the first that people see.
        of: what it means nothing without: "start", "control" or "refiner" of a request, or another setting, by name.
        usual: what it is where it is left out, if that hangs on nothing but what it is `of`.
        id: the end of the control's `elem_id`; the field's own name where none is given.
        called: what sentences call it; the label, or the key, in lower case where it is not given.
        kind: `int`, `float`, `str`, or a dataclass that has settings itself.
        choices: the only values of a `str`.
    """

    flag: str = ""
    text: str = ""
    always: bool = False
    low: float | None = None
    high: float | None = None
    label: str = ""
    hint: str = ""
    reach: tuple[float, float] | None = None
    step: float | None = None
    percent: bool = False
    fine: bool = False
    of: str = ""
    usual: float | None = None
    id: str = ""
    called: str = ""
    name: str = ""
    kind: Any = None
    choices: tuple[str, ...] = ()
    default: Any = None


def setting(default: Value, **known: Any) -> Value:
    """A field of a dataclass with its default, and what is known of it (see `Setting`)."""
    return field(default=default, metadata={"setting": Setting(**known)})


def settings_of(source: type) -> dict[str, Setting]:
    """The settings among the fields of a dataclass, by name, with all that follows filled in."""
    hints, found = get_type_hints(source), {}
    for item in fields(source):
        if (known := item.metadata.get("setting")) is None:
            continue
        hint = hints[item.name]
        kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        (kind,) = (one for one in kinds if one is not type(None))
        choices = get_args(kind) if get_origin(kind) is Literal else ()
        ends = (known.low, known.high) if kind is float and None not in (known.low, known.high) else None
        found[item.name] = replace(
            known,
            flag=known.flag or item.name,
            reach=known.reach or ends,
            step=known.step or (1 if kind is int or known.percent else 0.05),
            id=known.id or item.name.replace("_", "-"),
            called=known.called or (known.label or known.text).lower(),
            name=item.name,
            kind=str if choices else kind,
            choices=choices,
            default=item.default if item.default_factory is MISSING else item.default_factory(),
        )
    return found
