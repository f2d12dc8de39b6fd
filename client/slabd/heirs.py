"""What forked children can still touch, and when they no longer can.

A child inherits the mapping and every view of it. So a block that existed at the fork is not given back when its owner
here is done with it: a child may be looking at it. It is *kept* until no child can.

Before a fork a pipe is made. The parent keeps its read end, every child (and a child's child) a write end, which it
closes when the last view that it inherited is gone, or by exiting in any way: then the read end is at its end. Programs
that a child executes do not inherit it.

No I/O but on these pipes, which never waits. Any thread may call anything here, except around a fork.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slabd.holding import Returnable


class _Fork:
    """One fork: blocks numbered up to `last` existed. `ear` is its pipe's read end, None when there was none."""

    def __init__(self, ear: int | None, last: int) -> None:
        self.last = last
        self.over = False
        self.kept: dict[int, Returnable] = {}
        self._ear = ear

    def listen(self) -> bool:
        """Whether no child can touch anything of then any more."""
        if not self.over and self._ear is not None:
            with suppress(BlockingIOError):
                self.over = os.read(self._ear, 1) == b""
        if self.over:
            self.close()
        return self.over

    def close(self) -> None:
        if self._ear is not None:
            os.close(self._ear)
            self._ear = None


class Heirs:
    """The children of one session's process that inherited blocks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._forks: list[_Fork] = []
        self._prepared = False
        self._pipe: tuple[int, int] | None = None
        self._mouth: int | None = None

    @property
    def keeping(self) -> bool:
        """Whether there is a block that waits for a child."""
        with self._lock:
            return any(fork.kept for fork in self._forks)

    # -- around a fork

    def about_to_fork(self) -> None:
        """Make a pipe. Without a descriptor for it, what exists now is kept until this process ends."""
        self._lock.acquire()
        self._prepared = True
        with suppress(OSError):
            self._pipe = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def has_forked(self, last: int) -> None:
        """In the parent: from now on blocks numbered up to `last` may be touched by a child, if there was a pipe."""
        if not self._prepared:
            return
        ear = None
        if self._pipe is not None:
            ear, mouth = self._pipe
            os.close(mouth)
        self._forks.append(_Fork(ear, last))
        self._prepared, self._pipe = False, None
        self._lock.release()

    def inherit(self) -> None:
        """In the child: keep the write end, until `renounce`."""
        self._lock = threading.Lock()
        for fork in self._forks:
            fork.close()
        self._forks.clear()
        if self._pipe is not None:
            ear, self._mouth = self._pipe
            os.close(ear)
        self._prepared, self._pipe = False, None

    def renounce(self) -> None:
        """In the child: say that nothing inherited can be touched here any more. Safe in the garbage collector."""
        mouth, self._mouth = self._mouth, None
        if mouth is not None:
            os.close(mouth)

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
        """Let go of the pipes."""
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
