"""Work that someone watches and may stop: it runs in a thread, the page follows it by a generator."""

import queue
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TypeVar

from PIL import Image

from ..inference.request import DrawCancelled, DrawProgress
from ..training.reports import clock_time

Result = TypeVar("Result")
OnStep = Callable[[DrawProgress], None]
ShouldStop = Callable[[], bool]
PREVIEW_SECONDS = 0.3  # at most one preview in this time: a picture of 128 pixels takes less than a second in all


@dataclass(frozen=True)
class Glimpse:
    """How far the work is.

    Attributes:
        step: of `total`; 0 while it waits.
        seconds_left: an estimate from the steps so far.
        pictures: the pictures as they form; empty where this step has no preview.
        ahead: jobs of others that have to end before this one begins; 0 once it is at work.
    """

    step: int
    total: int
    seconds_left: float
    pictures: list[Image.Image] = field(default_factory=list)
    ahead: int = 0

    def __str__(self) -> str:
        if self.ahead:
            return f"waiting: {self.ahead} {'drawing' if self.ahead == 1 else 'drawings'} of others first"
        left = f"{round(self.seconds_left)} s" if self.seconds_left < 60 else clock_time(self.seconds_left)
        return f"step {self.step} of {self.total}" + (f", {left} left" if self.step < self.total else "")


class Jobs:
    """What is at work, by who asked for it (a browser's session).

    One job of each of them, and one job of all of them at a time: there is one base to draw with. The others wait in
    the order they came, and can be cancelled while they wait.
    """

    def __init__(self, preview: Callable[[DrawProgress], list[Image.Image]]) -> None:
        self.preview = preview
        self._stops: dict[str, threading.Event] = {}  # by owner: set, it stops the owner's latest job
        self._line: list[threading.Event] = []  # of the job at work, then of those that wait
        self._moved = threading.Condition()  # the line got shorter, or someone in it was stopped

    @property
    def busy(self) -> bool:
        """Whether anything is at work."""
        return bool(self._line)

    def run(self, owner: str, work: Callable[[OnStep, ShouldStop], Result]) -> Generator[Glimpse, None, Result]:
        """Do the work in a thread and yield how far it is; the generator's return value is the work's.

        An earlier job of the same owner is stopped. Closing the generator (the browser went away) stops the work at
        its next step and does not wait for it: the one who closes it may be an event loop.

        Args:
            work: is given `on_step` and `should_stop`, as `Studio.draw` takes them.

        Raises:
            What the work raises; `DrawCancelled` after `cancel`.
        """
        stop, news, outcome = threading.Event(), queue.SimpleQueue[Glimpse | None](), Future[Result]()
        with self._moved:
            self.cancel(owner)
            self._stops[owner] = stop
            self._line.append(stop)

        def target() -> None:
            try:
                self._wait_turn(stop, news.put)
                outcome.set_result(work(self._reporter(news.put), stop.is_set))
            except BaseException as error:  # noqa: BLE001 - it is raised again where somebody waits for it
                outcome.set_exception(error)
            finally:
                self._leave(owner, stop)
                news.put(None)

        threading.Thread(target=target, name=f"job of {owner}", daemon=True).start()
        try:
            while (glimpse := news.get()) is not None:
                yield glimpse
        finally:
            self._stop(stop)
        return outcome.result()

    def cancel(self, owner: str) -> bool:
        """Ask the owner's job to stop, at its next step or while it waits; whether there is one."""
        stop = self._stops.get(owner)
        if stop is not None:
            self._stop(stop)
        return stop is not None

    def _reporter(self, tell: Callable[[Glimpse], None]) -> OnStep:
        """Tells of every step, with a preview now and then; the last step's is the picture itself."""
        last = 0.0

        def on_step(progress: DrawProgress) -> None:
            nonlocal last
            due = time.monotonic() - last > PREVIEW_SECONDS and progress.step < progress.total
            pictures = self.preview(progress) if due else []
            last = time.monotonic() if due else last
            tell(Glimpse(progress.step, progress.total, progress.seconds_left, pictures))

        return on_step

    def _wait_turn(self, stop: threading.Event, tell: Callable[[Glimpse], None]) -> None:
        """Return once the job is the first in the line, and tell how many are before it until then."""
        with self._moved:
            told = 0
            while (ahead := self._line.index(stop)) and not stop.is_set():
                if ahead != told:
                    tell(Glimpse(0, 1, 0.0, ahead=ahead))
                    told = ahead
                self._moved.wait()
        if stop.is_set():
            raise DrawCancelled

    def _stop(self, stop: threading.Event) -> None:
        stop.set()
        with self._moved:
            self._moved.notify_all()

    def _leave(self, owner: str, stop: threading.Event) -> None:
        with self._moved:
            self._line.remove(stop)
            if self._stops.get(owner) is stop:
                del self._stops[owner]
            self._moved.notify_all()
