import gc
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator

import pytest
import torch
from PIL import Image

from coeff_diffusion.inference.request import DrawCancelled, DrawProgress, StudioError
from coeff_diffusion.service import Glimpse, Jobs
from coeff_diffusion.service.jobs import MAX_WAITING, MAX_WAITING_IN_ALL

PATIENCE = 10


@pytest.fixture
def jobs() -> Jobs:
    return Jobs(lambda progress: [Image.new("RGB", (progress.step, 1))])


def steps(on_step: Callable[[DrawProgress], None], should_stop: Callable[[], bool], total: int = 3) -> str:
    """Work as the studio does it: a report after every step, then the question whether to stop."""
    for step in range(1, total + 1):
        on_step(DrawProgress(step, total, 2.0, torch.zeros(1)))
        if should_stop():
            raise DrawCancelled
    return "done"


class Gate:
    """Work that goes on until someone opens the gate or stops it."""

    def __init__(self) -> None:
        self.open, self.begun, self.ended = threading.Event(), threading.Event(), threading.Event()

    def __call__(self, on_step: Callable[[DrawProgress], None], should_stop: Callable[[], bool]) -> str:
        self.begun.set()
        on_step(DrawProgress(1, 2, 2.0, torch.zeros(1)))
        try:
            while not self.open.wait(0.01):
                if should_stop():
                    raise DrawCancelled
        finally:
            self.ended.set()
        return "opened"


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open.set()


def result(run: Generator[Glimpse, None, str], seen: list[Glimpse] | None = None) -> str:
    while True:
        try:
            glimpse = next(run)
        except StopIteration as end:
            return str(end.value)
        if seen is not None:
            seen.append(glimpse)


def idle(jobs: Jobs) -> bool:
    """Whether all jobs have left, given a moment."""
    until = time.monotonic() + PATIENCE
    while jobs.busy and time.monotonic() < until:
        time.sleep(0.01)
    return not jobs.busy


def test_a_job_is_followed_to_its_result(jobs: Jobs) -> None:
    seen: list[Glimpse] = []
    assert result(jobs.run("ann", steps), seen) == "done"
    assert [(glimpse.step, glimpse.total, glimpse.seconds_left) for glimpse in seen] == [
        (0, 1, 0.0),  # it has begun
        (1, 3, 4.0),
        (2, 3, 2.0),
        (3, 3, 0.0),
    ]
    # The first step has a preview at once, the next one so soon after it has none, and the last one needs none.
    assert [len(glimpse.pictures) for glimpse in seen] == [0, 1, 0, 0]
    assert seen[1].pictures[0].width == 1
    assert not jobs.cancel("ann")  # it is over
    assert idle(jobs)


def test_what_work_raises_reaches_the_one_who_follows(jobs: Jobs) -> None:
    def work(on_step: object, should_stop: object) -> str:
        raise ValueError("no such subject")

    with pytest.raises(ValueError, match="no such subject"):
        result(jobs.run("ann", work))
    assert result(jobs.run("ann", steps)) == "done"


def test_cancel_stops_the_owner_s_job_alone(jobs: Jobs, gate: Gate) -> None:
    run = jobs.run("ann", gate)
    while next(run).step == 0:  # it is told of when it begins, and of its first step, which may come later
        pass
    assert not jobs.cancel("bob")
    assert not gate.ended.is_set()
    assert jobs.cancel("ann")
    seen: list[Glimpse] = []
    with pytest.raises(DrawCancelled):
        result(run, seen)
    assert [str(glimpse) for glimpse in seen][:1] == ["stopping at the next step ..."]
    assert all(glimpse.stopping for glimpse in seen)
    assert idle(jobs)


def test_a_second_job_of_an_owner_replaces_the_first(jobs: Jobs, gate: Gate) -> None:
    first = jobs.run("ann", gate)
    next(first)
    assert result(jobs.run("ann", steps)) == "done"
    with pytest.raises(DrawCancelled):
        result(first)


def test_jobs_take_turns_and_say_how_many_come_first(jobs: Jobs, gate: Gate) -> None:
    first, order = jobs.run("ann", gate), []
    next(first)
    second, third = (
        jobs.run(name, lambda on_step, should_stop, name=name: order.append(name) or steps(on_step, should_stop))
        for name in ("bob", "cleo")
    )
    assert next(second) == Glimpse(0, 1, 0.0, [], ahead=1)
    assert str(next(third)) == "waiting: 2 drawings of others first"
    gate.open.set()
    assert [result(run) for run in (first, second, third)] == ["opened", "done", "done"]
    assert order == ["bob", "cleo"]


def test_a_job_that_waits_is_cancelled_at_once(jobs: Jobs, gate: Gate) -> None:
    first = jobs.run("ann", gate)
    next(first)
    second = jobs.run("bob", steps)
    next(second)
    jobs.cancel("bob")
    with pytest.raises(DrawCancelled):
        result(second)
    assert not gate.ended.is_set()
    gate.open.set()
    assert result(first) == "opened"


def test_closing_the_generator_stops_the_work_and_does_not_wait_for_it(jobs: Jobs) -> None:
    slow, begun, asked = threading.Event(), threading.Event(), []

    def work(on_step: Callable[[DrawProgress], None], should_stop: Callable[[], bool]) -> None:
        on_step(DrawProgress(1, 2, 2.0, torch.zeros(1)))
        begun.set()
        slow.wait(PATIENCE)  # a step that takes long
        asked.append(should_stop())

    run = jobs.run("ann", work)
    next(run)
    assert begun.wait(PATIENCE)
    run.close()  # returns although the step is not done
    slow.set()
    assert idle(jobs)
    assert asked == [True]


def ended(jobs: Jobs, owner: str, seen: int = 0) -> list[str]:
    """What becomes of an owner's jobs, in the order in which they end."""
    over = [job for job, glimpse in jobs.watch(owner, "page", seen) if glimpse is None]
    return [job.about if job.outcome.exception() is None else f"{job.about}: cancelled" for job in over]


def test_a_line_goes_on_without_anybody_and_in_turns(jobs: Jobs, gate: Gate) -> None:
    order: list[str] = []

    def work(name: str) -> Callable[..., str]:
        return lambda on_step, should_stop: order.append(name) or "done"

    jobs.submit("ann", gate)
    assert gate.begun.wait(PATIENCE)
    for owner, count in (("ann", 3), ("bob", 2)):
        for number in range(1, count + 1):
            jobs.submit(owner, work(f"{owner} {number}"), f"{owner} {number}")
    assert [job.about for job in jobs.waiting("ann")] == ["ann 1", "ann 2", "ann 3"]
    watch = jobs.watch("ann", "page")
    next(watch)
    watch.close()  # the page is gone
    gate.open.set()
    assert idle(jobs)
    assert order == ["ann 1", "bob 1", "ann 2", "bob 2", "ann 3"]


def test_a_page_sees_the_end_of_each_job_and_one_that_comes_later_of_the_newest(jobs: Jobs, gate: Gate) -> None:
    first = jobs.submit("ann", gate, "first")
    second = jobs.submit("ann", steps, "second")
    assert gate.begun.wait(PATIENCE)
    watch = jobs.watch("ann", "page")
    job, glimpse = next(watch)
    assert (job, glimpse is not None) == (first, True)  # where it is now
    gate.open.set()
    assert [job for job, glimpse in watch if glimpse is None] == [first, second]
    assert ended(jobs, "ann") == ["second"]
    assert ended(jobs, "ann", seen=second.number) == []
    assert ended(jobs, "bob") == []


def test_what_is_followed_to_its_end_is_not_kept(jobs: Jobs) -> None:
    assert result(jobs.run("ann", steps)) == "done"
    assert ended(jobs, "ann") == []


def test_the_next_watch_of_a_page_and_its_end_let_go_of_the_last_one(jobs: Jobs, gate: Gate) -> None:
    jobs.submit("ann", gate)
    assert gate.begun.wait(PATIENCE)
    first, second = jobs.watch("ann", "page"), jobs.watch("ann", "page")
    next(first)
    next(second)
    for glimpse in first:
        assert glimpse[1] is not None  # it ends, although the job does not
    jobs.leave("page")
    for glimpse in second:
        assert glimpse[1] is not None
    assert not gate.ended.is_set()


def test_what_was_told_to_who_listens_no_more_is_forgotten(jobs: Jobs) -> None:
    """A page is open for days: no previews pile up for those who went away, nor for those who saw the end."""
    forming: list[weakref.ref[Image.Image]] = []

    def preview(progress: DrawProgress) -> list[Image.Image]:
        picture = Image.new("RGB", (8, 8))
        forming.append(weakref.ref(picture))
        return [picture]

    jobs.preview = preview
    watched = jobs.watch("ann", "page")
    assert next(watched, None) is None  # nothing to see yet
    for follow in (jobs.run("ann", steps), jobs.run("ann", steps), jobs.run("bob", steps)):
        next(follow)
        follow.close()
        assert idle(jobs)
    assert result(jobs.run("ann", steps)) == "done"
    assert forming
    gc.collect()
    assert [one() for one in forming if one() is not None] == []


def test_what_waits_moves_and_is_taken_out_by_its_owner_alone(jobs: Jobs, gate: Gate) -> None:
    at_work = jobs.submit("ann", gate, "at work")
    first, second, third = (jobs.submit("ann", steps, name) for name in ("first", "second", "third"))
    assert gate.begun.wait(PATIENCE)
    jobs.sooner("ann", third.number)
    jobs.sooner("bob", third.number)
    jobs.take_out("bob", second.number)
    assert jobs.waiting("ann") == [first, third, second]
    jobs.take_out("ann", first.number, at_work.number)
    assert jobs.current("ann") is at_work
    assert not gate.ended.is_set()
    with pytest.raises(DrawCancelled):
        first.outcome.result(PATIENCE)
    assert jobs.cancel("ann")  # the line goes on
    assert ended(jobs, "ann", seen=at_work.number)[-2:] == ["third", "second"]


def test_cancel_takes_the_next_one_where_others_are_at_work(jobs: Jobs, gate: Gate) -> None:
    jobs.submit("ann", gate)
    assert gate.begun.wait(PATIENCE)
    first, second = (jobs.submit("bob", steps, name) for name in ("first", "second"))
    assert jobs.current("bob") is first
    assert jobs.cancel("bob")
    assert jobs.current("bob") is second
    assert not gate.ended.is_set()
    jobs.close()
    assert idle(jobs)
    assert gate.ended.is_set()


def test_closing_waits_for_the_step_at_work(jobs: Jobs, gate: Gate) -> None:
    jobs.submit("ann", gate)
    waits = jobs.submit("ann", steps)
    assert gate.begun.wait(PATIENCE)
    jobs.close()
    assert gate.ended.is_set()
    assert isinstance(waits.outcome.exception(PATIENCE), DrawCancelled)


def test_a_failure_does_not_hold_up_the_line_nor_the_memory_of_its_work(jobs: Jobs) -> None:
    def fails(on_step: object, should_stop: object) -> None:
        latents = torch.zeros(4)
        held.append(weakref.ref(latents))
        raise ValueError("no such subject")

    held: list[weakref.ref[torch.Tensor]] = []
    failed, fine = jobs.submit("ann", fails), jobs.submit("bob", steps)
    assert fine.outcome.result(PATIENCE) == "done"
    with pytest.raises(ValueError, match="no such subject"):
        failed.outcome.result()
    assert held[0]() is None


def test_a_line_is_bounded_for_each_and_for_all(jobs: Jobs, gate: Gate) -> None:
    jobs.submit("ann", gate)
    assert gate.begun.wait(PATIENCE)
    for number in range(MAX_WAITING_IN_ALL):
        jobs.submit(f"browser {number // MAX_WAITING}", steps)
    with pytest.raises(StudioError, match="16 of your drawings wait already; take one out, or ask when one is done"):
        jobs.submit("browser 0", steps)
    with pytest.raises(StudioError, match="64 drawings of all browsers wait already; ask again later"):
        jobs.submit("ann", steps)
    jobs.close()
    assert idle(jobs)


@pytest.mark.parametrize(
    ("glimpse", "words"),
    [
        (Glimpse(7, 20, 3.2), "step 7 of 20, 3 s left"),
        (Glimpse(7, 20, 75), "step 7 of 20, 1:15 left"),
        (Glimpse(20, 20, 0), "step 20 of 20"),
        (Glimpse(0, 1, 0), "getting ready"),
        (Glimpse(0, 1, 0, ahead=1), "waiting: 1 drawing of others first"),
    ],
)
def test_words(glimpse: Glimpse, words: str) -> None:
    assert str(glimpse) == words
