"""Helper threads: gRPC calls of the main thread are made on them.

Signal handlers run in the main thread, between any two steps of it, and may raise: KeyboardInterrupt does. When that
happens inside grpcio while it holds one of its locks, the lock stays taken, and every later call on that channel hangs
for ever (found by a storm of SIGINTs; grpcio 1.85.1 lost a channel at about one in sixty). So the main thread hands its
calls to a helper and waits for the outcome in `SimpleQueue.get`, which is one call into C and can be interrupted
anywhere. Other threads never run signal handlers and make their calls themselves.
"""

from __future__ import annotations

import os
import queue
import threading
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from slabd.transport import T


class _Helper:
    """One thread. It does what is in its inbox, and is idle again before anybody hears of the outcome."""

    def __init__(self) -> None:
        self.inbox: queue.SimpleQueue[tuple[Callable[[], Any], queue.SimpleQueue[_Outcome]]] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="slabd-call", daemon=True).start()

    def _work(self) -> None:
        while True:
            job, outbox = self.inbox.get()
            outcome = _Outcome(job)
            _idle.append(self)
            outbox.put(outcome)
            # Nothing of the finished job may stay alive while this thread sleeps.
            del job, outbox, outcome


class _Outcome:
    """What a job returned, or raised."""

    def __init__(self, job: Callable[[], Any]) -> None:
        self._value: Any = None
        self._error: BaseException | None = None
        try:
            self._value = job()
        except BaseException as error:  # noqa: BLE001  # it is raised again where somebody waits for it
            self._error = error

    def get(self) -> Any:
        error, self._error = self._error, None
        if error is None:
            return self._value
        try:
            raise error
        finally:
            del error  # the traceback refers to this frame


# More than one only after an interrupt: the main thread went on, its helper has still to finish.
_idle: Final[list[_Helper]] = []


def call_safely(job: Callable[[], T]) -> T:
    """Return what `job()` returns, done where no signal handler can interrupt it.

    When a signal handler raises, this does at once, and the job goes on without anybody who waits for it.
    """
    if threading.current_thread() is not threading.main_thread():
        return job()
    outcome: T = submit(job).get().get()
    return outcome


def submit(job: Callable[[], Any]) -> queue.SimpleQueue[_Outcome]:
    """Have a job done by a helper, and return where its outcome will be."""
    try:
        helper = _idle.pop()
    except IndexError:
        helper = _Helper()
    outbox: queue.SimpleQueue[_Outcome] = queue.SimpleQueue()
    helper.inbox.put((job, outbox))
    return outbox


# A forked child has none of these threads.
os.register_at_fork(after_in_child=_idle.clear)
