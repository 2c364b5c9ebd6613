"""Being asked to end from outside: Ctrl-C, `kill` and `docker stop` (SIGTERM), a closed terminal (SIGHUP).

Here stands nothing but the standard library: the command line needs it before it knows what to run.
"""

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

# Windows knows no SIGHUP. Ctrl-\ (SIGQUIT) and Ctrl-Break stay: they end a process at once.
REQUESTS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP, raised where Ctrl-C would be.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def requests_to_end(handler: Callable[[int], None], numbers: Sequence[int] = REQUESTS) -> Iterator[None]:
    """Within the block these requests to end go to `handler`, with their number, and nowhere else.

    Those that somebody has switched off stay off (`nohup`). In any thread but the main one nothing is changed: signals
    come to that one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        handler(number)

    previous = {
        number: signal.signal(number, handle)
        for number in numbers
        if signal.getsignal(number) not in (signal.SIG_IGN, None)  # None: not Python's, so it cannot be given back
    }
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


@contextmanager
def all_like_ctrl_c() -> Iterator[None]:
    """Within the block SIGTERM and SIGHUP do what Ctrl-C does, so that all that is to be tidied up is."""

    def handle(number: int) -> None:
        raise Terminated(number)

    with requests_to_end(handle, [number for number in REQUESTS if number != signal.SIGINT]):
        yield


@contextmanager
def kept_handlers() -> Iterator[None]:
    """Give requests to end back to whom they went before the block, whoever took them in it."""
    before = {number: signal.getsignal(number) for number in REQUESTS}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                if handler is not None:  # None: not Python's, so it cannot be given back
                    signal.signal(number, handler)


@contextmanager
def ending_once(say: Callable[[str], None]) -> Iterator[None]:
    """Within the block the first request to end does what it did, and no later one breaks off what is done about it.

    Args:
        say: takes a line for each of the later ones.
    """
    asked = False

    def handle(number: int) -> None:
        nonlocal asked
        if asked:
            say("still saving what is being trained")
            return
        asked = True
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)

    with requests_to_end(handle):
        yield
