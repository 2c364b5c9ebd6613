"""Prompts in the spelling of other programs, which weigh, load and choose by it. Here it is plain text; that is said.

Punctuation as people write it, such as "(a cat)" or "[a cat]", is none of it.
"""

import re
from collections.abc import Iterator

from ..subject.errors import shown

MOST = 5  # pieces that are named

_NUMBER = r"[+-]?(?:\d{1,4}(?:\.\d{0,8})?|\.\d{1,8})"
# Times and verses, as in "(at 10:30)", have a digit before the colon and no point behind it.
_WEIGHT = rf"(?:(?<!\d):\s{{0,4}}{_NUMBER}|:\s{{0,4}}[+-]?\d{{0,4}}\.\d{{1,8}})\s{{0,4}}"
_OPEN = r"(?<![\\(])\("  # the first of a run: prompts of strangers may be long, and each is looked through once
_SYNTAX = re.compile(
    "|".join(
        (
            rf"{_OPEN}\(*\s{{0,4}}[^()\s][^()]*{_WEIGHT}\)+",  # (word:1.2)
            rf"{_OPEN}\([^()]+\){_WEIGHT}\)",  # ((word):1.2)
            rf"{_OPEN}\(+\s{{0,4}}[^()\s][^()]*\){{2,}}",  # ((word))
            r"(?<!\[)\[{2,}\s{0,4}[^\[\]\s][^\[\]]*\]{2,}",  # [[word]]
            rf"\[[^\[\]]*{_WEIGHT}\]",  # [from:to:0.5]
            r"\[[^\[\]|]+\|[^\[\]]+\]",  # [one|other]
            r"\{[^{}|]+\|[^{}]+\}",  # {one|other}
            r"<(?:lora|lyco|hypernet)\s{0,4}:[^<>]*>",
            r"(?<!\w)(?i:embedding):[\w.-]+",
            r"(?<![\w/-])__[A-Za-z0-9](?:[\w/-]*[A-Za-z0-9])?__(?![\w/-])",  # __wildcard__
            r"(?<!\w)BREAK(?!\w)",
        )
    )
)


def syntax_notes(*prompts: str) -> list[str]:
    """One sentence that names what other programs would not read as text; empty where there is nothing of it."""
    found = list(dict.fromkeys(piece for prompt in prompts for piece in foreign_syntax(prompt)))
    if not found:
        return []
    more = f" and {len(found) - MOST} more" if len(found) > MOST else ""
    return [f"read as plain text here, though not in other programs: {', '.join(map(shown, found[:MOST]))}{more}"]


def foreign_syntax(prompt: str) -> Iterator[str]:
    """The pieces of a prompt that are weights, files, choices or breaks in other programs."""
    shouted = not any(map(str.islower, prompt))
    for match in _SYNTAX.finditer(prompt):
        if not (shouted and match[0] == "BREAK"):
            yield match[0]
