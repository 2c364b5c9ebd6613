"""What is wrong with a subject, said so that a user can do something about it."""


class UserError(Exception):
    """Something that the user can mend. The message is for people: what is wrong, what was expected, what to do."""


class CoefficientsError(UserError, ValueError):
    """Coefficients are damaged, contradict themselves or do not fit the base; the message names both sides."""


def listed(problems: list[str], most: int = 3) -> str:
    """The first few problems, and how many more there are."""
    return "; ".join(problems[:most]) + (f" (and {len(problems) - most} more)" if len(problems) > most else "")


def shown(value: object) -> str:
    """A value of unknown origin, fit for one line of an error."""
    return cut(repr(value))


def cut(text: str, most: int = 80) -> str:
    """The text, or its beginning where it is longer than `most`: names from strangers can be endless."""
    return text if len(text) <= most else f"{text[: most - 3]}..."
