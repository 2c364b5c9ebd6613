"""Texts of unknown origin, fit for a terminal: nothing in them steers it or reorders what stands there."""

import unicodedata

JOINERS = "\u200c\u200d"  # Persian words and families of emoji are written with them


def printable(text: str) -> str:
    r"""The text with every character that does not print as its escape: `\x1b`, `\n`, `\u202e`.

    That takes control characters and terminal escapes, line breaks, marks that reverse the direction of writing,
    surrogates, private and unassigned characters. What people write in any language stays.
    """
    return "".join(letter if _prints(letter) else letter.encode("unicode_escape").decode() for letter in text)


def is_text(text: str) -> bool:
    """Whether it is text that can be read and written: half of a surrogate pair, which JSON can spell, is none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _prints(letter: str) -> bool:
    return letter.isprintable() or letter in JOINERS or unicodedata.category(letter) == "Zs"
