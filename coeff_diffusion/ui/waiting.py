"""What the page answers while the libraries and the base are loaded: that it is being opened, and how far it is."""

from html import escape
from typing import Any

from starlette.responses import HTMLResponse, Response

STATUS = 503  # "not yet", also for programs: they are to ask again, and not to take the page for an empty one
EVERY = 500  # milliseconds between two looks
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>coeff-diffusion is being opened</title>
<style>
  :root { color-scheme: light dark; }
  body { margin: 0; min-height: 100vh; display: grid; place-content: center; text-align: center; padding: 0 1rem;
    font: 1rem/1.5 system-ui, sans-serif; color: light-dark(#1c1917, #f5f5f4);
    background: light-dark(#fafaf9, #0c0a09); }
  h1 { font-size: 1.5rem; font-weight: 650; letter-spacing: -0.01em; margin: 0; }
  p { margin: 0.5rem 0 0; color: light-dark(#57534e, #a8a29e); }
</style>
<noscript><meta http-equiv="refresh" content="2"></noscript>
</head>
<body>
<main>
  <h1>coeff-diffusion</h1>
  <p id="doing" role="status">DOING</p>
</main>
<script>
  const doing = document.querySelector("#doing");
  const look = async () => {
    try {
      const answer = await fetch(location.href, { cache: "no-store" });
      if (answer.status !== STATUS) return location.reload();
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const now = page.querySelector("#doing").textContent;
      if (doing.textContent !== now) doing.textContent = now;
    } catch {
      doing.textContent = "The page was closed; the terminal that opened it says why.";
    }
    setTimeout(look, EVERY);
  };
  setTimeout(look, EVERY);
</script>
</body>
</html>
"""


class Waiting:
    """Says what is being done until the page is there.

    Attributes:
        doing: what is being done, in a sentence for people.
        over: whether the page is there.
    """

    def __init__(self, over: bool = False) -> None:
        self.doing, self.over = "The page is being opened.", over

    def answer(self) -> HTMLResponse:
        """The page that looks again by itself, and makes room for the real one."""
        text = PAGE.replace("STATUS", str(STATUS)).replace("EVERY", str(EVERY)).replace("DOING", escape(self.doing))
        return HTMLResponse(text, STATUS, {"retry-after": "1", "cache-control": "no-store"})


class Wait:
    """ASGI middleware between the guard and the page: all that people and programs ask waits.

    Args:
        app: the page.
        waiting: says whether it is there.
    """

    def __init__(self, app: Any, waiting: Waiting) -> None:
        self.app, self.waiting = app, waiting

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Let the page answer if it is there, or when gradio starts its own server."""
        if scope["type"] == "http" and (scope["method"], scope["path"]) == ("HEAD", "/"):
            answer: Any = Response(media_type="text/html")  # gradio asks so whether it is heard, and gives up after 3 s
        else:
            own = scope["type"] != "http" or scope["path"].endswith("/startup-events")
            answer = self.app if self.waiting.over or own else self.waiting.answer()
        await answer(scope, receive, send)
