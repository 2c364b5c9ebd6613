"""What the tests in a real browser share."""

import os
import shutil
from typing import Any

import pytest

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def find_chromium() -> str:
    """The browser of the system, or of `CHROMIUM`. Without one the test fails in CI and is skipped elsewhere."""
    names = (os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    if found is None:
        message = "no Chromium found: apt-get install chromium, or set CHROMIUM to its path"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(message)
        pytest.skip(message)
    return found


BROKEN_OFF = ("AbortError", "Connection errored out")  # a request, as the page was loaded again while it was answered


def complaints(page: Any, console: bool = False) -> list[str]:
    """A list that takes down what the scripts of a page fail of from now on.

    Args:
        console: take down errors of the browser's console as well.
    """
    found: list[str] = []

    def note(text: str) -> None:
        if not any(words in text for words in BROKEN_OFF):
            found.append(text)

    page.on("pageerror", lambda error: note(f"{error} {error.stack}"))
    if console:
        page.on("console", lambda line: note(line.text) if line.type == "error" else None)
    return found


class Requests:
    """Which requests of a page are on their way, from now on."""

    def __init__(self, page: Any) -> None:
        self.page, self.open = page, set[Any]()
        page.on("request", lambda request: self.open.add(request))
        for end in ("requestfinished", "requestfailed"):
            page.on(end, lambda request: self.open.discard(request))

    def settle(self) -> None:
        """Wait until there was none for 0.3 s: then the page shows what it asked for."""
        calm = 0
        while calm < 3:
            self.page.wait_for_timeout(100)
            calm = 0 if self.open else calm + 1
