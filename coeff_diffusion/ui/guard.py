"""What of gradio's server stays shut: all that reads files which are not the page's, or asks other servers.

Gradio refuses most of it by itself, version by version; here it is one rule that does not depend on the version.
"""

import re
from pathlib import Path
from typing import Any

from starlette.responses import PlainTextResponse

# Routes that take a file's path, or an address, as the rest of their own.
FILE = re.compile(r"(?:.*?/gradio_api)?/file[=/](?P<path>.*)", re.DOTALL)
# Other servers' pages, edited videos (which end up where all users' are), runs kept on the Hub, code that is edited.
SHUT = re.compile(r"(?:.*?/gradio_api)?/(?:proxy=|process_recording|run-history|runs\b|(?:undo-)?vibe-)", re.DOTALL)


class Guard:
    """ASGI middleware in front of the page.

    Args:
        app: the page.
        folder: the only one whose files are handed out.
    """

    def __init__(self, app: Any, folder: Path) -> None:
        self.app, self.folder = app, folder

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer with 403, or let the page answer."""
        if scope["type"] == "http" and not allowed(scope["path"], self.folder):
            await PlainTextResponse("This page does not serve that.", 403)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def allowed(path: str, folder: Path) -> bool:
    """Whether a path of an address, already decoded, may be asked for."""
    if SHUT.match(path):
        return False
    wanted = FILE.match(path)
    if wanted is None:
        return True
    file = Path(wanted["path"])
    try:
        return file.is_absolute() and file.resolve().is_relative_to(folder)
    except (OSError, ValueError):  # a circle of links, a zero byte
        return False
