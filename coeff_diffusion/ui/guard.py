"""What of gradio's server stays shut: all that reads files which are not the page's, or asks other servers; to whom.

Gradio refuses most of it by itself, version by version; here it is one rule that does not depend on the version.

A page of somebody else's that a browser has open can make its own name point to this machine (DNS rebinding) and would
then count as this page; it is told by the name that the browser asks for. Nor may such a page show this one in a frame.
"""

import ipaddress
import re
import socket
from collections.abc import Collection, MutableMapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse

# Routes that take a file's path, or an address, as the rest of their own.
FILE = re.compile(r"(?:.*?/gradio_api)?/file[=/](?P<path>.*)", re.DOTALL)
# Other servers' pages, edited videos (which end up where all users' are), runs kept on the Hub, code that is edited.
SHUT = re.compile(r"(?:.*?/gradio_api)?/(?:proxy=|process_recording|run-history|runs\b|(?:undo-)?vibe-)", re.DOTALL)
MISNAMED = "The page is not called so; open it by the address in the terminal, or give this name with --host_names."
SHARED = ".gradio.live"  # what public links end in
# Gradio's page has scripts and styles within, makes functions of text, and shows pictures as data.
HEADERS = {
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
    "font-src 'self' data:; worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'self'",
    "x-frame-options": "SAMEORIGIN",  # for browsers that do not know frame-ancestors
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
}


@dataclass(frozen=True)
class Names:
    """What the page may be called by whoever asks for it.

    Attributes:
        listen: it is open to the network, by any address of this machine and by its name.
        share: it has a public link besides.
        others: further names, of a proxy in front of it.
    """

    listen: bool = False
    share: bool = False
    others: Collection[str] = ()

    def know(self, host: str) -> bool:
        """Whether a request's Host header names this page."""
        name = re.sub(r":\d*$", "", host.strip().lower()).strip("[]").rstrip(".")
        if name in ("127.0.0.1", "localhost", "::1") or name in self.others:
            return True
        if self.share and name.endswith(SHARED):
            return True
        return self.listen and (_is_address(name) or name in _names_here())


class Guard:
    """ASGI middleware in front of the page.

    Args:
        app: the page.
        folder: the only one whose files are handed out.
        names: what the page is called.
    """

    def __init__(self, app: Any, folder: Path, names: Names) -> None:
        self.app, self.folder, self.names = app, folder, names

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer with 421 or 403, or let the page answer."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_guarded(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refused = None
        if not self.names.know(Headers(scope=scope).get("host", "")):
            refused = PlainTextResponse(MISNAMED, 421)
        elif not allowed(scope["path"], self.folder):
            refused = PlainTextResponse("This page does not serve that.", 403)
        await (refused or self.app)(scope, receive, send_guarded)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


@cache
def _names_here() -> frozenset[str]:
    """The names of this machine, as others in its network may call it."""
    name = socket.gethostname().lower()
    return frozenset({name, name.partition(".")[0], f"{name.partition('.')[0]}.local"})


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
