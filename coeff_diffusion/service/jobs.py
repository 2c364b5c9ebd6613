"""Work that someone watches and may stop: one job at a time in a thread of its own, the others wait in line."""

import queue
import threading
import time
import traceback
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from PIL import Image

from ..inference.request import DrawCancelled, DrawProgress, StudioError
from .job import Glimpse, Job
from .line import Line

Result = TypeVar("Result")
OnStep = Callable[[DrawProgress], None]
ShouldStop = Callable[[], bool]
PREVIEW_SECONDS = 0.3  # at most one preview in this time: a picture of 128 pixels takes less than a second in all
LAST_STEP = 30.0  # seconds that one may take when the page closes; there is nothing to save
MAX_WAITING = 16  # of one owner
MAX_WAITING_IN_ALL = 64  # each may hold pictures to start from
MAX_REMEMBERED = 32  # owners whose newest result is kept for a page that is loaded again
News = tuple[Job, Glimpse | None]  # how far a job is; None: it is over


@dataclass(eq=False)
class Ear:
    """Who listens to the jobs of an owner, and what there is to hear; None where there will be nothing more."""

    owner: str
    listener: str
    news: queue.SimpleQueue[News | None] = field(default_factory=queue.SimpleQueue)


class Jobs:
    """What is at work and what waits. There is one base to draw with, so one job is at work at a time.

    Owners take turns (see `Line`). Jobs belong to the process and not to who watches them.
    """

    def __init__(self, preview: Callable[[DrawProgress], list[Image.Image]]) -> None:
        self.preview = preview
        self._lock = threading.RLock()
        self._jobs: dict[int, Job] = {}  # the one at work, and those that wait
        self._works: dict[int, Callable[[OnStep, ShouldStop], Any]] = {}  # of those that wait
        self._line = Line()
        self._at_work: Job | None = None
        self._worker: threading.Thread | None = None
        self._count = 0
        self._ears: list[Ear] = []
        self._newest: dict[str, Job] = {}  # by owner, the last one that came to its end by itself

    # --- asking -------------------------------------------------------------------------------------------------------

    def submit(self, owner: str, work: Callable[[OnStep, ShouldStop], Any], about: str = "") -> Job:
        """Put work in line; it is done whether or not somebody watches.

        Args:
            work: is given `on_step` and `should_stop`, as `Studio.draw` takes them.
            about: it in few words.

        Raises:
            StudioError: too many wait already.
        """
        with self._lock:
            if len(self._line.of(owner)) >= MAX_WAITING:
                raise StudioError(f"{MAX_WAITING} of your drawings wait already; take one out, or ask when one is done")
            if len(self._line) >= MAX_WAITING_IN_ALL:
                raise StudioError(f"{MAX_WAITING_IN_ALL} drawings of all browsers wait already; ask again later")
            self._count += 1
            job = self._jobs[self._count] = Job(self._count, owner, about)
            self._works[job.number] = work
            self._line.add(owner, job.number)
            if self._worker is None:
                self._worker = threading.Thread(target=self._work, name="drawings", daemon=True)
                self._worker.start()
            self._tell_places()
        return job

    def run(self, owner: str, work: Callable[[OnStep, ShouldStop], Result]) -> Generator[Glimpse, None, Result]:
        """Do work for who follows it: yield how far it is; the generator's return value is the work's.

        An earlier job of the same owner is stopped. Closing the generator (the browser went away) stops the work at
        its next step and does not wait for it: the one who closes it may be an event loop.

        Raises:
            What the work raises; `DrawCancelled` after `cancel`. StudioError: too many wait already.
        """
        with self._lock:
            for number in self._of(owner):
                self._stop(self._jobs[number])
            job = self.submit(owner, work)
            job.kept = False
            ear = self._listen(owner, owner, job)
        try:
            while (news := ear.news.get()) is not None and news != (job, None):
                if news[0] is job and news[1] is not None:
                    yield news[1]
        finally:
            self._forget(ear)
            self._stop(job)
        result: Result = job.outcome.result()
        return result

    # --- looking ------------------------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether anything is at work or waits."""
        return bool(self._jobs)

    def current(self, owner: str) -> Job | None:
        """The owner's job that is at work, else the one that is next."""
        with self._lock:
            return next((self._jobs[number] for number in self._of(owner)), None)

    def waiting(self, owner: str) -> list[Job]:
        """Those of an owner that wait, the next first."""
        with self._lock:
            return [self._jobs[number] for number in self._line.of(owner)]

    def watch(self, owner: str, listener: str, seen: int = 0) -> Generator[News, None, None]:
        """How the jobs of an owner go, until none is left. Closing the generator stops none of them.

        Each is told of with every step, and once with None when it is over. It begins with the newest one that is
        over, unless that was seen, and goes on with what is at work.

        Args:
            listener: who watches: a page. It ends an earlier watch of its own.
            seen: the number of the newest one that the listener has seen the end of.
        """
        with self._lock:
            self.leave(listener)
            newest = self._newest.get(owner)
            over = () if newest is None or newest.number == seen else (newest,)
            ear = self._listen(owner, listener, *over, self.current(owner))
        try:
            while True:
                with self._lock:  # what is told is told under it, so nothing is missed
                    if ear.news.empty() and self.current(owner) is None:
                        return
                if (news := ear.news.get()) is None:
                    return
                yield news
        finally:
            self._forget(ear)

    def leave(self, listener: str) -> None:
        """End what this listener watches; its page is gone."""
        with self._lock:
            for ear in [one for one in self._ears if one.listener == listener]:
                self._forget(ear)
                ear.news.put(None)

    # --- changing the line --------------------------------------------------------------------------------------------

    def cancel(self, owner: str) -> bool:
        """Stop the owner's job that is at work, at its next step, else the one that is next; whether there is one."""
        with self._lock:
            job = self.current(owner)
            if job is not None:
                self._stop(job)
                if job.begun:  # told in the order of all that is: who asked hears of the end after it
                    self._tell(job, replace(job.latest or Glimpse(0, 1, 0.0), pictures=[], stopping=True))
        return job is not None

    def take_out(self, owner: str, *numbers: int) -> None:
        """Take jobs of an owner out of the line; those that have begun or are over stay as they are."""
        with self._lock:
            for number in numbers:
                if number in self._line.of(owner):
                    self._stop(self._jobs[number])

    def sooner(self, owner: str, number: int) -> None:
        """Let one that waits change places with the one that its owner asked for before it."""
        with self._lock:
            self._line.sooner(owner, number)
            self._tell_places()

    def close(self) -> None:
        """Take out all that waits, stop what is at work and wait for its next step: a process ended in it aborts."""
        with self._lock:
            worker = self._worker
            for job in list(self._jobs.values()):
                self._stop(job)
        if worker is not None:
            worker.join(LAST_STEP)

    # --- working ------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._lock:
                number = self._line.take()
                if number is None:
                    self._worker = None
                    return
                job, work = self._jobs[number], self._works.pop(number)
                self._at_work, job.begun = job, True
                self._tell(job, Glimpse(0, 1, 0.0))
                self._tell_places()
            result, error = None, None
            try:
                result = work(self._reporter(job), job.stop.is_set)
            except BaseException as raised:  # noqa: BLE001 - it is raised again where somebody waits for it
                error = _let_go(raised)
            with self._lock:
                self._at_work = None
                self._end(job, result, error)

    def _reporter(self, job: Job) -> OnStep:
        """Tells of every step, with a preview now and then; the last step's is the picture itself."""
        last = 0.0

        def on_step(progress: DrawProgress) -> None:
            nonlocal last
            due = time.monotonic() - last > PREVIEW_SECONDS and progress.step < progress.total
            pictures = self.preview(progress) if due else []
            last = time.monotonic() if due else last
            stopping = job.stop.is_set()
            self._tell(job, Glimpse(progress.step, progress.total, progress.seconds_left, pictures, stopping=stopping))

        return on_step

    def _stop(self, job: Job) -> None:
        with self._lock:
            job.stop.set()
            if self._line.remove(job.owner, job.number):
                del self._works[job.number]
                self._end(job, None, DrawCancelled())

    def _end(self, job: Job, result: Any, error: BaseException | None) -> None:
        del self._jobs[job.number]
        if error is None:
            job.outcome.set_result(result)
        else:
            job.outcome.set_exception(error)
        if job.kept and not isinstance(error, DrawCancelled):
            self._newest.pop(job.owner, None)
            self._newest[job.owner] = job
            for owner in list(self._newest)[:-MAX_REMEMBERED]:
                del self._newest[owner]
        self._tell(job, None)
        self._tell_places()

    def _of(self, owner: str) -> list[int]:
        """The numbers of an owner's jobs, the one at work first."""
        at_work = self._at_work
        return [*([at_work.number] if at_work and at_work.owner == owner else ()), *self._line.of(owner)]

    def _listen(self, owner: str, listener: str, *jobs: Job | None) -> Ear:
        """Hear from now on, and at first how far these are: over, at work, or how many come first."""
        ear = Ear(owner, listener)
        self._ears.append(ear)
        for job in jobs:
            if job is not None and (job.latest is not None or job.outcome.done()):
                ear.news.put((job, job.latest))
        return ear

    def _forget(self, ear: Ear) -> None:
        with self._lock:
            if ear in self._ears:
                self._ears.remove(ear)

    def _tell(self, job: Job, glimpse: Glimpse | None) -> None:
        with self._lock:
            job.latest = glimpse
            for ear in self._ears:
                if ear.owner == job.owner:
                    ear.news.put((job, glimpse))

    def _tell_places(self) -> None:
        """Those that wait hear how many come first, where that has changed."""
        at_work = int(self._at_work is not None)
        for place, number in enumerate(self._line):
            job, ahead = self._jobs[number], place + at_work
            if ahead and (job.latest is None or job.latest.ahead != ahead):
                self._tell(job, Glimpse(0, 1, 0.0, ahead=ahead))


def _let_go(error: BaseException) -> BaseException:
    """The error, which is kept for who asked, without what its frames hold: that may be gigabytes on a GPU."""
    one: BaseException | None = error
    while one is not None:
        traceback.clear_frames(one.__traceback__)
        one = one.__cause__ or one.__context__
    return error
