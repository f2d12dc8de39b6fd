"""Calls of the main thread, made where no signal handler can interrupt them."""

from __future__ import annotations

import signal
import sys
import threading
import time
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from slabd.helpers import call_safely, cancel_by, insist

if TYPE_CHECKING:
    from types import FrameType


WAIT_SECONDS = 60.0


class Alarm(Exception):  # what a signal handler raises
    """Raised by the handler of SIGALRM."""


def test_the_main_threads_calls_are_made_elsewhere() -> None:
    """And their outcome comes back."""
    assert call_safely(threading.current_thread) is not threading.main_thread()


def test_other_threads_make_their_calls_themselves() -> None:
    """They never run signal handlers."""
    seen: list[bool] = []
    thread = threading.Thread(target=lambda: seen.append(call_safely(threading.current_thread) is thread))
    thread.start()
    thread.join()
    assert seen == [True]


def test_errors_come_back() -> None:
    """As they were raised."""
    with pytest.raises(LookupError, match="gone"):
        call_safely(lambda: (_ for _ in ()).throw(LookupError("gone")))


def test_an_interrupt_leaves_the_call_to_itself() -> None:
    """The main thread goes on at once; the call ends undisturbed; the next one does not wait for it."""
    ended, go = threading.Event(), threading.Event()

    def call() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        go.wait(WAIT_SECONDS)
        ended.set()

    def ring(_number: int, _frame: FrameType | None) -> None:
        raise Alarm

    before = signal.signal(signal.SIGALRM, ring)
    try:
        with pytest.raises(Alarm):
            call_safely(call)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not ended.is_set()
    assert call_safely(lambda: 3) == 3
    go.set()
    assert ended.wait(WAIT_SECONDS)


def test_a_finished_call_keeps_nothing_alive() -> None:
    """A helper that sleeps must not hold on to a lease."""
    gone = threading.Event()
    thing = threading.Event()
    watch = weakref.ref(thing, lambda _: gone.set())
    call_safely(partial(id, thing))
    del thing
    for _ in range(1000):
        if watch() is None:
            break
        time.sleep(0.01)
    assert gone.is_set()


def test_an_interrupt_cancels_what_can_be_cancelled() -> None:
    """A lease that waits leaves the daemon's queue."""
    cancelled = threading.Event()

    def call() -> None:
        cancel_by(cancelled.set)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        cancelled.wait(WAIT_SECONDS)

    def ring(_number: int, _frame: FrameType | None) -> None:
        raise Alarm

    before = signal.signal(signal.SIGALRM, ring)
    try:
        with pytest.raises(Alarm):
            call_safely(call)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert cancelled.wait(WAIT_SECONDS)


def test_what_is_insisted_on_is_done_once_and_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A storm of signals whose handler raises neither cuts it short nor makes it happen twice."""
    begun: list[int] = []
    done: list[int] = []

    def work() -> None:
        begun.append(len(begun))
        time.sleep(0.002)
        done.append(len(done))

    def strike(_number: int, frame: FrameType | None) -> None:
        while frame is not None and frame.f_code is not insist.__code__:
            frame = frame.f_back
        if frame is not None:
            raise Alarm

    # What is raised inside the garbage collector is printed by a hook, which must not be struck in its turn.
    unraised: list[Any] = []
    hook = sys.unraisablehook
    monkeypatch.setattr(sys, "unraisablehook", unraised.append)
    before = signal.signal(signal.SIGALRM, strike)
    struck = 0
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        for _ in range(100):
            try:
                insist(work)
            except Alarm:  # before its first step, or after its last
                struck += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    for each in unraised:
        if each.exc_type is not Alarm:
            hook(each)
    assert begun == done == list(range(len(done)))
    assert len(done) >= 100 - struck


def test_what_is_insisted_on_may_fail() -> None:
    """Its error is the caller's."""

    def work() -> None:
        raise LookupError("gone")

    with pytest.raises(LookupError, match="gone"):
        insist(work)


def test_an_interrupt_that_was_held_off_comes_later() -> None:
    """It is delivered again when the work is done, and ends what the main thread does then."""
    held: list[bool] = []

    def work() -> None:
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGINT)
        time.sleep(0.01)
        held.append(True)

    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - it may come at any moment from here on
        insist(work)
        assert held
        time.sleep(WAIT_SECONDS)
    assert held == [True]
