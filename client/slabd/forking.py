"""Forking with gRPC in the house.

Measured with grpcio 1.85: a forked child can use a new channel of its own if, at the moment of the fork, no thread was
inside a gRPC call; if one was, the child hangs at its first call, for ever. So every blocking call goes through one
process-wide gate, and a fork closes it:

    before     close the gate, cut short the calls that wait in the daemon's queue (their threads make them again
               afterwards, with the same sequence number), and wait until no thread is inside
    in parent  open the gate
    in child   a new gate, and every session becomes an inherited one, which is never used again

Calls on asyncio channels do not pass the gate: grpc.aio does not survive a fork, and its pools refuse to work in a
child.
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
    """Counts the threads that are inside gRPC calls, and lets a fork wait for them."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._inside: dict[int, int] = {}
        self._forking: int | None = None
        self._cuts: set[Callable[[], object]] = set()
        self.used = False

    def reset(self) -> None:
        """Forget everything: in a forked child no other thread is left, and the parent's locks may be in any state."""
        used = self.used
        self.__init__()  # type: ignore[misc]  # exactly the new gate that the child needs
        self.used = used

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Make a gRPC call in this block: it waits while another thread forks."""
        me = threading.get_ident()
        with self._changed:
            while self._forking not in {None, me} and me not in self._inside:
                self._changed.wait()
            self._inside[me] = self._inside.get(me, 0) + 1
            self.used = True
        try:
            yield
        finally:
            with self._changed:
                self._inside[me] -= 1
                if not self._inside[me]:
                    del self._inside[me]
                self._changed.notify_all()

    @contextmanager
    def cuttable(self, cut: Callable[[], object]) -> Iterator[None]:
        """Within `inside`: have `cut` called when a thread wants to fork."""
        with self._changed:
            self._cuts.add(cut)
            forking = self._forking is not None
        try:
            if forking:
                cut()
            yield
        finally:
            with self._changed:
                self._cuts.discard(cut)

    @property
    def forking(self) -> bool:
        """Whether a thread forks now."""
        return self._forking is not None

    def close(self) -> None:
        """Wait until no other thread is inside, and let none in."""
        me = threading.get_ident()
        with self._changed:
            while self._forking not in {None, me}:
                self._changed.wait()
            self._forking = me
            cuts = list(self._cuts)
        for cut in cuts:
            cut()
        with self._changed:
            while self._inside.keys() - {me}:
                self._changed.wait()

    def open(self) -> None:
        """Let everybody in again."""
        with self._changed:
            self._forking = None
            self._changed.notify_all()


class Inheritable(Protocol):
    """What has to know that it came into this process by a fork."""

    def become_inherited(self) -> None:
        """Take note. Called in the child, before anything else runs there."""


gate: Final = Gate()
_inheritables: weakref.WeakSet[Inheritable] = weakref.WeakSet()
# Inherited sessions stay here: their attach sockets tell the daemon that somebody can still touch the parent's blocks.
_kept: list[Inheritable] = []
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


def _after_in_child() -> None:
    global _doomed  # noqa: PLW0603  # a fact about this process
    _doomed = gate.used
    gate.reset()
    for inheritable in list(_inheritables):
        inheritable.become_inherited()
        _kept.append(inheritable)


os.register_at_fork(before=gate.close, after_in_parent=gate.open, after_in_child=_after_in_child)
