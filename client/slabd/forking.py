"""Forking with gRPC in the house.

Measured with grpcio 1.85: a forked child can use a new channel of its own if, at the moment of the fork, no thread was
inside a gRPC call; if one was, the child hangs at its first call, for ever. So every call goes through one process-wide
gate, and a fork closes it:

    before     close the gate, cut short the calls that are futures (they are made again afterwards, with the same
               sequence number), and wait until no call is under way; then every session prepares for its heirs
    in parent  every session knows that it has one more, and the gate is opened
    in child   a new gate, and every session becomes an inherited one, which is never used again

grpc.aio is used nowhere: its poller thread is always inside gRPC, and a process that has used it once can have children
that crash (found with grpcio 1.85.1; gRPC itself logs "skipping fork() handlers").
"""

from __future__ import annotations

import os
import threading
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol

from slabd.errors import InheritedByFork

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
        """Take note. Called in the parent, in the thread that forks, when no call is under way."""

    def has_forked(self) -> None:
        """Take note. Called in the parent afterwards, in the same thread, also when no child came of it."""

    def become_inherited(self) -> None:
        """Take note. Called in the child, before anything else runs there."""


gate: Final = Gate()
_inheritables: weakref.WeakSet[Inheritable] = weakref.WeakSet()
# Inherited sessions stay here: their attach sockets tell the daemon that somebody can still touch the parent's blocks.
_kept: list[Inheritable] = []
# Those who were told before a fork and have to be told after it. The gate lets one thread at a time fork.
_forking: list[Inheritable] = []
_doomed = False


def register(inheritable: Inheritable) -> None:
    """Have `become_inherited` called in forked children."""
    _inheritables.add(inheritable)


def check_child_can_call() -> None:
    """Raise InheritedByFork in a forked child whose gRPC would hang for ever."""
    setting = os.environ.get(_FORK_SUPPORT, "")
    if _doomed and setting.lower() in _NO:
        raise InheritedByFork(
            f"{_FORK_SUPPORT}={setting} makes gRPC hang in a forked child: unset it, or use the spawn start method"
        )


def _before() -> None:
    gate.close()
    _forking.extend(_inheritables)
    for inheritable in _forking:
        inheritable.about_to_fork()


def _after_in_parent() -> None:
    while _forking:
        _forking.pop().has_forked()
    gate.open()


def _after_in_child() -> None:
    global _doomed  # noqa: PLW0603  # a fact about this process
    _doomed = gate.used
    gate.reset()
    _forking.clear()
    for inheritable in list(_inheritables):
        inheritable.become_inherited()
        _kept.append(inheritable)


os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
