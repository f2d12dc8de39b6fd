"""Forking with gRPC in the house.

Measured with grpcio 1.85: a forked child can use a new channel of its own if, at the moment of the fork, no thread was
inside a gRPC call; if one was, the child hangs at its first call, for ever. So every call goes through one process-wide
gate, and a fork closes it:

    before     close the gate, cut short the calls that are futures (they are made again afterwards, with the same
               sequence number), and wait until no call is under way; then every session prepares for its heirs
    in parent  every session knows that it has one more, and the gate is opened
    in child   a new gate, and every session becomes an inherited one, which is never used again

The first two are done as a whole, whatever signal handlers raise meanwhile (slabd.helpers.insist): half of either would
leave locks behind that nobody opens. Nothing that matters depends on the third: a gate or a session that finds itself
in another process than it was made in knows what that means.

grpc.aio is used nowhere: its poller thread is always inside gRPC, and a process that has used it once can have children
that crash (found with grpcio 1.85.1; gRPC itself logs "skipping fork() handlers").
"""

from __future__ import annotations

import os
import threading
import weakref
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from slabd.errors import InheritedByFork
from slabd.helpers import insist

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_FORK_SUPPORT: Final = "GRPC_ENABLE_FORK_SUPPORT"
_NO: Final = frozenset({"0", "false", "no", "off", "f", "n"})


class Gate:
    """Counts the calls that are under way, and lets a fork wait for them."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._calls = 0
        self._forking = False
        self._cuts: set[Callable[[], object]] = set()
        self._process = os.getpid()
        self.used = False

    def reset(self) -> None:
        """Forget everything: in a forked child no other thread is left, and the parent's locks may be in any state."""
        used = self.used
        self.__init__()  # type: ignore[misc]  # exactly the new gate that the child needs
        self.used = used

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Make a call in this block."""
        self.enter()
        try:
            yield
        finally:
            self.leave()

    def enter(self) -> None:
        """Begin a call: this waits while another thread forks."""
        if self._process != os.getpid():
            self.reset()
        with self._changed:
            while self._forking:
                self._changed.wait()
            self._calls += 1
            self.used = True

    def leave(self, cut: Callable[[], object] | None = None) -> None:
        """End a call, and forget how it could have been cut short."""
        with self._changed:
            self._calls -= 1
            if cut is not None:
                self._cuts.discard(cut)
            self._changed.notify_all()

    def allow_cut(self, cut: Callable[[], object]) -> None:
        """After `enter`: have `cut` called, from another thread, when one wants to fork."""
        with self._changed:
            self._cuts.add(cut)
            forking = self._forking
        if forking:
            cut()

    def close(self) -> None:
        """Wait until no call is under way, and let none begin."""
        with self._changed:
            while self._forking:
                self._changed.wait()
            self._forking = True
            cuts = list(self._cuts)
        for cut in cuts:
            cut()
        with self._changed:
            while self._calls:
                self._changed.wait()

    def open(self) -> None:
        """Let everybody in again."""
        with self._changed:
            self._forking = False
            self._changed.notify_all()


class Inheritable(Protocol):
    """What has to know that it came into this process by a fork, or that its process forks."""

    def about_to_fork(self) -> None:
        """Take note. Called in the parent when no call is under way, perhaps by another thread than forks."""

    def has_forked(self) -> None:
        """Take note. Called in the parent afterwards, also when no child came of it."""

    def become_inherited(self) -> None:
        """Take note. Called in the child, before anything else runs there."""


gate: Final = Gate()
_inheritables: weakref.WeakSet[Inheritable] = weakref.WeakSet()
# Inherited sessions stay here: their attach sockets tell the daemon that somebody can still touch the parent's blocks.
_kept: list[Inheritable] = []
# Those who were told before a fork and have to be told after it. The gate lets one thread at a time fork.
_forking: list[Inheritable] = []
_forker: int | None = None
_doomed = False


def register(inheritable: Inheritable) -> None:
    """Have `become_inherited` called in forked children."""
    _inheritables.add(inheritable)


def forget(inheritable: Inheritable) -> None:
    """Have nothing called any more, because it is over."""
    _inheritables.discard(inheritable)


def check_child_can_call() -> None:
    """Raise InheritedByFork in a forked child whose gRPC would hang for ever."""
    setting = os.environ.get(_FORK_SUPPORT, "")
    if _doomed and setting.lower() in _NO:
        raise InheritedByFork(
            f"{_FORK_SUPPORT}={setting} makes gRPC hang in a forked child: unset it, or use the spawn start method"
        )


def _prepare(thread: int) -> None:
    global _forker  # noqa: PLW0603  # a fact about this process
    if _forker == thread:
        return
    gate.close()
    _forker = thread
    for inheritable in list(_inheritables):
        inheritable.about_to_fork()
        _forking.append(inheritable)


def _resume(thread: int) -> None:
    global _forker  # noqa: PLW0603  # a fact about this process
    if _forker != thread:
        return
    while _forking:
        _forking.pop().has_forked()
    _forker = None
    gate.open()


def _before() -> None:
    insist(partial(_prepare, threading.get_ident()))


def _after_in_parent() -> None:
    insist(partial(_resume, threading.get_ident()))


def _after_in_child() -> None:
    global _doomed, _forker  # noqa: PLW0603  # facts about this process
    _doomed = gate.used
    gate.reset()
    _kept.extend(_inheritables)
    _forking.clear()
    _forker = None
    for inheritable in list(_inheritables):
        inheritable.become_inherited()


os.register_at_fork(after_in_child=_after_in_child)
# Twice, and the second time does nothing, unless a signal handler raised in the first step of the first time.
for _ in range(2):
    os.register_at_fork(before=_before, after_in_parent=_after_in_parent)
