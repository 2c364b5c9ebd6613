"""Who has logged in, and until when: gradio itself lets a login last for as long as the page runs."""

import time
from collections.abc import Callable, Iterator, MutableMapping

# Gradio's page does nothing when it is told to log in. What stands on it is not lost: a login in another tab is enough.
SCRIPT = """<script>
(() => {
  const ask = window.fetch, note = document.createElement("div");
  note.id = "page-login";
  note.setAttribute("role", "alert");
  note.innerHTML = 'Your login has ended. <a href="./" target="_blank">Log in in a new tab</a>, then go on here.';
  window.fetch = async (...what) => {
    const answer = await ask(...what);
    if (answer.status === 401 && !window.gradio_config.auth_required) document.body.prepend(note);
    else if (answer.ok && /[/](queue[/]join|run[/])/.test(answer.url)) note.remove();
    return answer;
  };
})();
</script>"""
CSS = """
#page-login { position: sticky; top: 0; z-index: 10000; padding: 12px 32px; font-family: var(--font);
  color: var(--body-text-color); background: var(--block-background-fill);
  border-bottom: 1px solid var(--border-color-primary); }
#page-login a { color: var(--link-text-color); text-decoration: underline; }
"""


class Sessions(MutableMapping[str, str]):
    """User names by the secret of each login's cookie; stands in for the dictionary that gradio looks them up in.

    A login ends so many seconds after it was made, whether or not it is used: an open page asks for news all the time
    and would keep its own alive for ever.

    Args:
        seconds: how long a login lasts.
        clock: seconds that never go back.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds, self.clock = seconds, clock
        self._logins: dict[str, tuple[str, float]] = {}  # the user, and when it ends

    @property
    def _valid(self) -> dict[str, tuple[str, float]]:
        for token, (_, end) in list(self._logins.items()):
            if end <= self.clock():
                self._logins.pop(token, None)
        return self._logins

    def __getitem__(self, token: str) -> str:
        return self._valid[token][0]

    def __setitem__(self, token: str, user: str) -> None:
        self._valid[token] = (user, self.clock() + self.seconds)

    def __delitem__(self, token: str) -> None:
        del self._valid[token]

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._valid))

    def __len__(self) -> int:
        return len(self._valid)
