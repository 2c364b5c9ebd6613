"""One piece of work that waits, is at work or is over, and how far it is."""

import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from ..training.reports import clock_time


@dataclass(frozen=True)
class Glimpse:
    """How far the work is.

    Attributes:
        step: of `total`; 0 while it waits, and until its first step is done.
        seconds_left: an estimate from the steps so far.
        pictures: the pictures as they form; empty where this step has no preview.
        ahead: jobs that have to end before this one begins; 0 once it is at work.
        stopping: it has been asked to end, and will after its next step.
    """

    step: int
    total: int
    seconds_left: float
    pictures: list[Image.Image] = field(default_factory=list)
    ahead: int = 0
    stopping: bool = False

    def __str__(self) -> str:
        if self.stopping:
            return "stopping at the next step ..."
        if self.ahead:
            return f"waiting: {self.ahead} {'drawing' if self.ahead == 1 else 'drawings'} of others first"
        if not self.step:
            return "getting ready"
        left = f"{round(self.seconds_left)} s" if self.seconds_left < 60 else clock_time(self.seconds_left)
        return f"step {self.step} of {self.total}" + (f", {left} left" if self.step < self.total else "")


@dataclass(eq=False)
class Job:
    """One piece of work.

    Attributes:
        number: of this process's jobs, from 1.
        owner: who asked for it: a browser, or a tab of one.
        about: it in few words, for the list of what waits.
        latest: how far it is; None before anybody was told, and once it is over.
        outcome: what the work returned or raised, once it is over.
        kept: whether the outcome is kept for whoever watches later; not where someone follows the work to its end.
    """

    number: int
    owner: str
    about: str
    stop: threading.Event = field(default_factory=threading.Event)
    latest: Glimpse | None = None
    begun: bool = False
    outcome: Future[Any] = field(default_factory=Future)
    kept: bool = True
