"""The texts under the fields of a dataclass: the help of their flags, keys and controls.

They are read as tokens. As a syntax tree (`ast`) they cannot be read in one thread while another one does the same: in
Python 3.11.7 and 3.12.1 and before, both count the depth of their trees in one place ("AST constructor recursion depth
mismatch"), and no lock of ours is held by what else parses in a process.
"""

import inspect
import io
import linecache
import re
import tokenize
from collections.abc import Iterator
from functools import cache

Line = list[tokenize.TokenInfo]
ASIDE = (tokenize.COMMENT, tokenize.NL, tokenize.INDENT, tokenize.DEDENT)


@cache
def field_texts(config: type) -> dict[str, str]:
    """The text under each field, in one line, the bases' first; a field without one is left out.

    Args:
        config: a class at the top of a module whose source is there.
    """
    found: dict[str, str] = {}
    for owner in reversed(config.__mro__[:-1]):
        field = ""
        for line in _body(owner):
            if len(line) > 2 and line[0].type == tokenize.NAME and line[1].string == ":":
                field = line[0].string
            elif field and all(token.type == tokenize.STRING for token in line):
                found[field] = " ".join(" ".join(_text(token.string) for token in line).split())
                field = ""
            else:
                field = ""
    return found


def _body(owner: type) -> Iterator[Line]:
    """The lines of a class as Python counts them, a statement each, without those inside its functions."""
    lines = linecache.getlines(inspect.getsourcefile(owner) or "")
    start = next((i for i, line in enumerate(lines) if re.match(rf"class {owner.__name__}\b", line)), len(lines))
    line: Line = []
    depth = 0
    for token in tokenize.generate_tokens(io.StringIO("".join(lines[start:])).readline):
        depth += (token.type == tokenize.INDENT) - (token.type == tokenize.DEDENT)
        if token.type == tokenize.DEDENT and not depth:
            return
        if token.type == tokenize.NEWLINE:
            if depth == 1:
                yield line
            line = []
        elif token.type not in ASIDE:
            line.append(token)


def _text(literal: str) -> str:
    """What a string without a prefix and without escapes says."""
    quotes = 3 if literal[:3] in ('"""', "'''") else 1
    return literal[quotes:-quotes]
