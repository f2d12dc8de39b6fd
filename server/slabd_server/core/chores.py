"""Work on one session that is too long for one step: done a slice at a time, so that nobody else waits long behind it.

A session may have hundreds of thousands of blocks when it ends, or when it goes into quarantine. Each of them takes
some microseconds; together they would stop the daemon for a second. A chore is an iterator that does one block's work
at each step. Its first slice is done at once, so nearly every chore is over before anybody sees it; what remains is
done by `tick`, slice by slice, the oldest chore first. Whoever would fail for want of memory calls `finish` first, so
that memory on its way back counts as free.

A step that has something to tell leaves it with `owe`; `collect` hands it over. `due` is when `tick` has to be called,
None while there is nothing to do and nothing to tell.
"""

from __future__ import annotations

import math
from itertools import islice
from typing import TYPE_CHECKING, Final

from slabd_server.core.records import Effects, merged

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slabd_server.core.records import SessionId

# 500 blocks are 2 to 5 ms.
SLICE: Final = 500


class Chores:
    """The chores of all sessions, at most one each."""

    def __init__(self) -> None:
        self._steps: dict[SessionId, Iterator[None]] = {}
        self._owed: list[Effects] = []
        self.due: float | None = None

    def __len__(self) -> int:
        return len(self._steps)

    def __contains__(self, session: object) -> bool:
        return session in self._steps

    def begin(self, session: SessionId, steps: Iterator[None], *, now: float) -> None:
        """Begin a session's chore, in place of one it may have, and do the first slice."""
        self._steps.pop(session, None)
        self._steps[session] = steps
        self._do(session, SLICE)
        self._schedule(now)

    def tick(self, now: float) -> None:
        """Do one slice of the oldest chore, if it is time."""
        if self.due is None or now < self.due:
            return
        if self._steps:
            self._do(next(iter(self._steps)), SLICE)
        self._schedule(now)

    def finish(self, now: float) -> None:
        """Do everything that remains."""
        for session in tuple(self._steps):
            self._do(session, None)
        self._schedule(now)

    def owe(self, effects: Effects) -> None:
        """Leave effects for `collect`, at the next tick at the latest."""
        self._owed.append(effects)
        if self.due is None:
            self.due = -math.inf

    def collect(self, now: float) -> Effects:
        """Return what the steps so far have to tell."""
        effects = merged(*self._owed)
        self._owed.clear()
        self._schedule(now)
        return effects

    def _do(self, session: SessionId, steps: int | None) -> None:
        remaining = self._steps[session]
        done = sum(1 for _ in islice(remaining, steps))
        if steps is None or done < steps:
            self._steps.pop(session, None)

    def _schedule(self, now: float) -> None:
        self.due = now if self._steps or self._owed else None
