"""What jsonargparse says of a value of the wrong type, taken apart: its own words are Python's, not a user's."""

import re
from typing import NamedTuple

REPORTS = (  # the second is that of a setting which may have several types, or be left open
    re.compile(r'(?s)Parser key "([\w.]+)":\s+Expected an? (.*?)\. Got value: (.*)'),
    re.compile(r'(?s)Parser key "([\w.]+)":\s+Does not validate against .*?Subtypes: \[(.*?)\]\n.*?Given value: (.*)'),
)


class WrongValue(NamedTuple):
    """A setting's name, the value it was given, and what it may be."""

    name: str
    value: str
    expected: str

    def said(self, flag: str) -> str:
        """One clause about it, by the name that the user gave."""
        return f"{flag} is {self.value!r}, expected {self.expected}"


def wrong_value(message: str) -> WrongValue | None:
    """What is wrong by a report of jsonargparse; None: it speaks of something else."""
    for report in REPORTS:
        if found := report.match(message):
            name, kinds, value = found.groups()
            return WrongValue(name, " ".join(value.split()), _in_words(kinds))
    return None


def _in_words(kinds: str) -> str:
    """`typing.Literal['a', 'b'], <class 'NoneType'>` as "one of 'a', 'b'"."""
    kinds = re.sub(r"(?:, )?<class 'NoneType'>", "", kinds)
    return re.sub(r"typing\.Literal\[(.*?)\]", r"one of \1", re.sub(r"<class '(\w+)'>", r"\1", kinds))
