"""Work that someone watches and may stop: it runs in a thread, the page follows it by a generator."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from PIL import Image

from ..drawing import DrawProgress

Result = TypeVar("Result")
OnStep = Callable[[DrawProgress], None]
ShouldStop = Callable[[], bool]
PREVIEW_SECONDS = 0.3  # at most one preview in this time: a picture of 128 pixels takes less than a second in all


@dataclass(frozen=True)
class Glimpse:
    """How far the work is.

    Attributes:
        seconds_left: an estimate from the steps so far.
        pictures: the pictures as they form; empty where this step has no preview.
    """

    step: int
    total: int
    seconds_left: float
    pictures: list[Image.Image]


class Jobs:
    """What is at work, by who asked for it (a browser's session). One job at a time for each of them."""

    def __init__(self, preview: Callable[[DrawProgress], list[Image.Image]]) -> None:
        self.preview = preview
        self._stops: dict[str, threading.Event] = {}

    def run(self, owner: str, work: Callable[[OnStep, ShouldStop], Result]) -> Iterator[Glimpse]:
        """Do the work in a thread and yield how far it is; the generator's return value is the work's.

        An earlier job of the same owner is stopped. Closing the generator (the browser went away) stops the work.

        Args:
            work: is given `on_step` and `should_stop`, as `Studio.draw` takes them.

        Raises:
            What the work raises; `DrawCancelled` after `cancel`.
        """
        self.cancel(owner)
        stop = self._stops[owner] = threading.Event()
        news: queue.Queue[Glimpse | None] = queue.Queue()
        outcome: dict[str, Any] = {}
        last = 0.0

        def on_step(progress: DrawProgress) -> None:
            nonlocal last
            due = time.monotonic() - last > PREVIEW_SECONDS and progress.step < progress.total
            pictures = self.preview(progress) if due else []
            last = time.monotonic() if due else last
            news.put(Glimpse(progress.step, progress.total, progress.seconds_left, pictures))

        def target() -> None:
            try:
                outcome["result"] = work(on_step, stop.is_set)
            except BaseException as error:  # noqa: BLE001 - it is raised again where somebody waits for it
                outcome["error"] = error
            finally:
                news.put(None)

        thread = threading.Thread(target=target, name=f"job of {owner}", daemon=True)
        thread.start()
        try:
            while (glimpse := news.get()) is not None:
                yield glimpse
        finally:
            stop.set()
            thread.join()
            if self._stops.get(owner) is stop:
                del self._stops[owner]
        if "error" in outcome:
            raise outcome["error"]
        return outcome["result"]

    def cancel(self, owner: str) -> bool:
        """Ask the owner's job to stop at its next step; whether there is one."""
        stop = self._stops.get(owner)
        if stop is not None:
            stop.set()
        return stop is not None
