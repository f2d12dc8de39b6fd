"""Helper threads: what the main thread asks for is done on them.

Signal handlers run in the main thread, between any two steps of it, and may raise: KeyboardInterrupt does. When that
happens inside grpcio while it holds one of its locks, the lock stays taken, and every later call on that channel hangs
for ever (found by a storm of SIGINTs; grpcio 1.85.1 lost a channel at about one in sixty); and no code of ours that
takes a block out of one place to put it into another could be sure to arrive there. So the main thread hands each
operation to a helper, as a whole, and waits for the outcome in `SimpleQueue.get`, which is one call into C and can be
interrupted anywhere. The operation then goes on by itself: what it was granted is dropped with its outcome, and returns
like anything that is dropped. Other threads never run signal handlers, and do their work themselves.
"""

from __future__ import annotations

import inspect
import os
import queue
import signal
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from slabd.transport import run

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from slabd.transport import T


# Long enough for a fork's hooks to be over.
_SOON_SECONDS: Final = 0.01


class _Job:
    """Something to do, how to end it early, and what became of it."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work: Callable[[], Any] | None = work
        self._cancel: Callable[[], object] | None = None
        self._given_up = False
        self.finished = False
        self._value: Any = None
        self._error: BaseException | None = None

    def do(self) -> None:
        """Do it, in a helper."""
        work, self._work = self._work, None
        assert work is not None  # noqa: S101  # a job is done once
        _current.job = self
        try:
            self._value = work()
        except BaseException as error:  # noqa: BLE001  # it is raised again where somebody waits for it
            self._error = error
        finally:
            self._cancel = _current.job = None
            self.finished = True

    def cancel_by(self, cancel: Callable[[], object]) -> None:
        self._cancel = cancel
        if self._given_up:  # before it could be cancelled
            cancel()

    def give_up(self) -> None:
        self._given_up = True
        if (cancel := self._cancel) is not None:
            cancel()

    def outcome(self) -> Any:
        """Return what it returned, or raise what it raised."""
        error, self._error = self._error, None
        if error is None:
            return self._value
        try:
            raise error
        finally:
            del error  # the traceback refers to this frame


class _Helper:
    """One thread. It does what is in its inbox, and is idle again before anybody hears of the outcome."""

    def __init__(self) -> None:
        self.inbox: queue.SimpleQueue[tuple[_Job, queue.SimpleQueue[_Job]]] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="slabd-call", daemon=True).start()

    def _work(self) -> None:
        while True:
            job, outbox = self.inbox.get()
            job.do()
            _idle.append(self)
            outbox.put(job)
            # Nothing of the finished job may stay alive while this thread sleeps.
            del job, outbox


# More than one only after an interrupt: the main thread went on, its helper has still to finish.
_idle: Final[list[_Helper]] = []
_current: Final = threading.local()


def complete(operation: Coroutine[Any, Any, T]) -> T:
    """Drive an operation over a blocking transport to its end, and return what it returns. See `call_safely`."""
    try:
        return call_safely(partial(run, operation))
    except BaseException:
        if inspect.getcoroutinestate(operation) == inspect.CORO_CREATED:  # interrupted before it began
            operation.close()
        raise


def call_safely(work: Callable[[], T]) -> T:
    """Return what `work()` returns, done where no signal handler can interrupt it.

    When a signal handler raises, this does at once; the work goes on without anybody who waits for it, or ends early if
    it has told `cancel_by` how.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()
    job = _Job(work)
    try:
        _submit(job).get()
    except BaseException:
        _submit(_Job(job.give_up))
        raise
    outcome: T = job.outcome()
    return outcome


def insist(work: Callable[[], None]) -> None:
    """Do work to its end, whatever signal handlers raise meanwhile. What it raises is raised here.

    A KeyboardInterrupt that came in the middle is raised anew a moment later: where this is needed, around a fork,
    Python would only print it.
    """
    if threading.current_thread() is not threading.main_thread():
        work()
        return
    interrupted = submitted = False
    once: _Once | None = None
    while once is None or not once.job.finished:
        try:
            once = once or _Once(work)
            if not submitted:
                _submit(_Job(once.do))
                submitted = True
            while not once.job.finished:
                once.done.get()
        except BaseException as error:  # noqa: BLE001  # from a signal handler; the work goes on all the same
            interrupted = interrupted or isinstance(error, KeyboardInterrupt)
    if interrupted:
        _submit(_Job(_interrupt_again))
    once.job.outcome()


def _interrupt_again() -> None:
    time.sleep(_SOON_SECONDS)
    main = threading.main_thread().ident
    assert main is not None  # noqa: S101  # it has been started
    signal.pthread_kill(main, signal.SIGINT)


class _Once:
    """A job that is done once, however often it is submitted; `done` hears of its end."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.job = _Job(work)
        self.done: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._tokens = [None]

    def do(self) -> None:
        try:
            self._tokens.pop()
        except IndexError:
            return
        self.job.do()
        self.done.put(None)


def cancel_by(cancel: Callable[[], object]) -> None:
    """Within `call_safely`: have `cancel` called when nobody waits for the outcome any more."""
    job: _Job | None = getattr(_current, "job", None)
    if job is not None:
        job.cancel_by(cancel)


def _submit(job: _Job) -> queue.SimpleQueue[_Job]:
    try:
        helper = _idle.pop()
    except IndexError:
        helper = _Helper()
    outbox: queue.SimpleQueue[_Job] = queue.SimpleQueue()
    helper.inbox.put((job, outbox))
    return outbox


# A forked child has none of these threads.
os.register_at_fork(after_in_child=_idle.clear)
