"""What forked children can still touch, and when they no longer can.

A child inherits the mapping and every view of it. So a block that existed at the fork is not given back when its owner
here is done with it: a child may be looking at it. It is *kept* until no child can.

Before a fork a pipe is made. The parent keeps its read end, the *ear*; every child (and a child's child) has a write
end, the *mouth*, which it closes when the last view that it inherited is gone, or by exiting in any way: then the ear
is at its end. Programs that a child executes do not inherit it.

No I/O but on these pipes, which never waits. Any thread may call anything here.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from slabd.descriptors import Descriptor

if TYPE_CHECKING:
    from slabd.holding import Returnable


class _Fork:
    """One fork: blocks numbered up to `last` existed. `ear` is None when there was no pipe to be had."""

    def __init__(self, ear: Descriptor | None, last: int) -> None:
        self.ear: Final = ear
        self.last: Final = last
        self.over = False
        self.kept: dict[int, Returnable] = {}

    def listen(self) -> bool:
        """Whether no child can touch anything of then any more."""
        if not self.over and self.ear is not None:
            with suppress(OSError):  # a child has not closed its mouth yet
                self.over = os.read(self.ear.number, 1) == b""
            if self.over:
                self.ear.close()
        return self.over

    def close(self) -> None:
        """Stop listening."""
        if self.ear is not None:
            self.ear.close()


class Heirs:
    """The children of one session's process that inherited blocks."""

    def __init__(self) -> None:
        # Held from `about_to_fork` to `has_forked`: so no other thread is half-way through anything at the fork.
        self._lock = threading.Lock()
        self._forks: list[_Fork] = []
        self._leaving = False
        self._pipe: tuple[Descriptor, Descriptor] | None = None
        self._mouth: Descriptor | None = None

    @property
    def keeping(self) -> bool:
        """Whether there is a block that waits for a child."""
        with self._lock:
            return any(fork.kept for fork in self._forks)

    # -- around a fork

    def about_to_fork(self, *, leaving: bool) -> None:
        """Let no other thread in until `has_forked`; with something to leave to a child, make a pipe.

        Without descriptors for one, what exists now is kept until this process ends.
        """
        self._lock.acquire()
        self._leaving = leaving
        # Descriptors are not to pile up in a process that forks and forks.
        self._forks = [fork for fork in self._forks if fork.kept or not fork.listen()]
        if leaving:
            with suppress(OSError):
                ear, mouth = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
                self._pipe = Descriptor(ear), Descriptor(mouth)

    def has_forked(self, last: int) -> None:
        """In the parent: from now on blocks numbered up to `last` may be touched by a child, if any were left to it."""
        if self._leaving:
            ear = None
            if self._pipe is not None:
                ear, mouth = self._pipe
                mouth.close()
            self._forks.append(_Fork(ear, last))
        self._leaving, self._pipe = False, None
        self._lock.release()

    def inherit(self) -> None:
        """In the child: keep the mouth, until `renounce`."""
        self._lock = threading.Lock()
        if self._pipe is not None:
            ear, self._mouth = self._pipe
            ear.close()
        self._leaving, self._pipe = False, None
        forks, self._forks = self._forks, []
        for fork in forks:
            fork.close()

    def renounce(self) -> None:
        """In the child: say that nothing inherited can be touched here any more. Safe in the garbage collector."""
        if self._mouth is not None:
            self._mouth.close()

    # -- giving back

    def may_touch(self, serial: int) -> bool:
        """Whether a child may still touch a block."""
        with self._lock:
            return self._fork_of(serial) is not None

    def keep(self, block: Returnable) -> bool:
        """Keep a block that a child may still touch, until `due`; False when none can."""
        with self._lock:
            return self._keep(block)

    def is_due(self) -> bool:
        """Whether `due` has something to return."""
        with self._lock:
            return any(fork.kept and fork.listen() for fork in self._forks)

    def due(self) -> list[Returnable]:
        """Take out the kept blocks that no child can touch any more."""
        with self._lock:
            over = [fork for fork in self._forks if fork.listen()]
            self._forks = [fork for fork in self._forks if not fork.over]
            # Of another fork's children they may not be free yet.
            return [block for fork in over for block in fork.kept.values() if not self._keep(block)]

    def close(self) -> None:
        """Let go of the pipes: the session is over, and its connection says who can touch what."""
        with self._lock:
            for fork in self._forks:
                fork.close()
            self._forks.clear()

    def _keep(self, block: Returnable) -> bool:
        fork = self._fork_of(block.serial)
        if fork is not None:
            fork.kept[block.serial] = block
        return fork is not None

    def _fork_of(self, serial: int) -> _Fork | None:
        return next((fork for fork in self._forks if 0 < serial <= fork.last and not fork.listen()), None)
