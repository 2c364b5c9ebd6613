"""Estimates, stopping and words."""

import errno
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from coeff_diffusion.cli import guarded
from coeff_diffusion.training import validation
from coeff_diffusion.training.config import TrainConfig
from coeff_diffusion.training.probe import MOST, Effect
from coeff_diffusion.training.reports import Clock, StopRequest, clock_time, outcome, own_random_state, unbroken
from coeff_diffusion.training.signals import REQUESTS, ending_once


def test_time_left_counts_steps_and_previews() -> None:
    config = TrainConfig(max_train_steps=100, validation_steps=40)  # previews at 0, 40, 80 and 100
    clock = Clock()
    clock.stepped(9.0)  # the first step is slow
    for _ in range(9):
        clock.stepped(0.5)
    clock.previewed(10.0)
    assert clock.seconds_left(0, config) == 100 * 0.5 + 4 * 10
    assert clock.seconds_left(1, config) == 99 * 0.5 + 3 * 10
    assert clock.seconds_left(10, config) == 90 * 0.5 + 3 * 10
    assert clock.seconds_left(40, config) == 60 * 0.5 + 3 * 10  # the preview of this step is still to come
    assert clock.seconds_left(41, config) == 59 * 0.5 + 2 * 10
    assert clock.seconds_left(100, config) == 10
    assert clock.seconds_left(50, TrainConfig(max_train_steps=100, validation_steps=0)) == 25


def test_previews_are_expected_before_the_first_one() -> None:
    clock = Clock()
    clock.stepped(0.3)
    few, many = (TrainConfig(max_train_steps=10, num_validation_images=n) for n in (1, 4))
    # 20 denoising steps of two passes, where a training step is about 2.3 passes of four pictures
    assert clock.seconds_left(10, few) == pytest.approx(0.3 * 40 / 9.2)
    assert clock.seconds_left(10, many) == pytest.approx(4 * clock.seconds_left(10, few))


@pytest.mark.parametrize(("seconds", "shown"), [(0, "0:00"), (59.6, "1:00"), (75, "1:15"), (3700, "1:01:40")])
def test_clock_time(seconds: float, shown: str) -> None:
    assert clock_time(seconds) == shown


@pytest.mark.parametrize("first", REQUESTS)
def test_no_number_of_requests_to_end_breaks_off(first: int) -> None:
    lines: list[str] = []
    before = [signal.getsignal(number) for number in REQUESTS]
    stop = StopRequest(None, lines.append)
    assert not stop.asked()
    with stop:
        os.kill(os.getpid(), first)
        assert stop.asked()
        for number in REQUESTS:
            os.kill(os.getpid(), number)
    assert lines[0] == "stopping after this step and saving what is learned"
    assert len(lines) == 1 + len(REQUESTS)
    assert all(line.startswith("still saving what is learned") for line in lines[1:])
    assert [signal.getsignal(number) for number in REQUESTS] == before
    assert StopRequest(lambda: True, print).asked()


def test_what_is_switched_off_stays_off() -> None:
    """`nohup` has a program ignore SIGHUP; a shell in the background ignores SIGINT for it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest(None, print) as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.asked()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_another_thread_leaves_signals_alone() -> None:
    before, inside = [signal.getsignal(number) for number in REQUESTS], []

    def train() -> None:
        with StopRequest(None, print):
            inside.extend(signal.getsignal(number) for number in REQUESTS)

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert inside == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_command_that_is_ended_tidies_up(number: int, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    tidied = []

    def run() -> int:
        try:
            os.kill(os.getpid(), number)
            time.sleep(10)
        finally:
            tidied.append(number)
        return 0

    assert guarded(run) == code
    assert tidied == [number]
    assert capsys.readouterr().err == "coeff-diffusion: stopped\n"


@pytest.mark.parametrize("number", REQUESTS)
def test_what_the_first_request_has_begun_no_later_one_breaks_off(number: int) -> None:
    lines: list[str] = []
    with ending_once(lines.append):
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        for other in REQUESTS:
            os.kill(os.getpid(), other)
    assert lines == ["still saving what is being trained"] * len(REQUESTS)


def test_a_terminal_that_is_gone_ends_nothing() -> None:
    def gone(line: str) -> None:
        raise OSError(errno.EIO, "Input/output error")

    unbroken(gone)("nobody reads this")


def test_random_state_is_given_back() -> None:
    state = torch.get_rng_state()
    with own_random_state():
        torch.manual_seed(5)
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), state)


def test_outcome(tmp_path: Path) -> None:
    file = tmp_path / "coefficients.safetensors"
    file.write_bytes(b"x" * 5416)
    config, effect = TrainConfig(max_train_steps=10, early_stopping_patience=3), Effect(0.2, 0.25, 0.2)
    assert outcome(10, config, effect, file) == [
        "loss on the subject's pictures 0.2500 -> 0.2000 (+20.0% better); predictions changed by 20.0%",
        f"saved {file} (5,416 bytes)",
    ]
    assert outcome(10, config, Effect(0.2, 0.25, 0.26), file)[0] == (
        "loss on the subject's pictures 0.2500 -> 0.2600; predictions changed by 20.0%"  # no gain, none is told
    )
    stopped = outcome(4, config, Effect(0.0, 0.25, 0.25), file, kept=4)
    assert stopped[0] == "stopped at step 4 of 10; what was learned so far is saved"
    assert stopped[2].startswith("warning: the subject learned nothing")
    assert outcome(8, config, effect, file, kept=5, is_early=True)[:2] == [
        "ended at step 8 of 10: no lower validation loss in 3 measurements",
        "the subject is that of step 5, which has the lowest validation loss",
    ]


def test_time_left_counts_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "MOST", MOST)
    config = TrainConfig(max_train_steps=100, validation_steps=0, validate_every_n_steps=40)  # at 40, 80 and 100
    clock = Clock()
    clock.stepped(0.5)
    assert clock.seconds_left(40, config) == pytest.approx(60 * 0.5 + 2 * 0.5 * 36 / 9.2)  # 36 pictures of 9.2 a step
    clock.validated(2.0)
    assert clock.seconds_left(0, config) == 100 * 0.5 + 3 * 2
    assert clock.seconds_left(40, config) == 60 * 0.5 + 2 * 2  # that of this step is done
    assert clock.seconds_left(100, config) == 0
