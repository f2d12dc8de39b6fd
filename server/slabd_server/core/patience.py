"""Patience: how much a search for free bytes may look at in one step, and the search that ran out of it.

Owns the looks that are left in this step: a look is at one slab or patch, or at sixteen things that are neither.
Promises that a search ends although others free memory meanwhile: what they have added to its work since the last step
is looked at on top, and a request whose search was over and did not hold gets twice as many looks the next time. Must
not know what is looked for.

A heap that has no `limit` searches to the end, whoever asks. One with a limit raises `Searching` when the looks are
used up; nothing of what was found out is lost. Whoever asked asks again when `Heap.search` has gone on to the end.

Invariants:

    pending = the search that ran out of looks first, until somebody has gone on to its end
    pending, and nobody goes on with it  =>  there are no looks: who asks meanwhile is answered at once, or waits too
"""

from __future__ import annotations

import sys
from typing import Final, Protocol

from slabd_server.core.errors import Searching

UNLIMITED: Final = sys.maxsize
# 250 looks are 2 to 5 ms: see `longest step` in tests/benchmarks/allocator.py.
SLICE: Final = 250
_PER_ITEM: Final = 8
_TRIES_MAX: Final = 16


class Search(Protocol):
    """A search that can be gone on with."""

    def backlog(self) -> int:
        """Return how much is written down for it to read."""

    def step(self) -> None:
        """Go on as far as there are looks; raise `Searching` when that is not to the end."""


class Patience:
    """The looks of one heap. `limit` is how many there are in a step, None for as many as it takes."""

    __slots__ = ("_backlog", "_tries", "left", "limit", "pending")

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.left = UNLIMITED if limit is None else limit
        self.pending: Search | None = None
        self._backlog = 0
        self._tries = 0

    def renew(self, items: int) -> None:
        """Begin a step that grants this many blocks."""
        if self.limit is not None:
            self.left = 0 if self.pending else (self.limit + _PER_ITEM * items) << self._tries

    def suspend(self, search: Search) -> None:
        """Keep a search that has run out of looks, unless there is one already."""
        if self.pending is None:
            self.pending = search
            self._backlog = search.backlog()
            self.left = 0

    def go_on(self) -> bool:
        """Go on for a step with the pending search, if there is one; return whether there is more to do."""
        search = self.pending
        if search is None:
            return False
        limit = UNLIMITED if self.limit is None else self.limit
        self.left = limit + max(search.backlog() - self._backlog, 0)
        try:
            search.step()
        except Searching:
            self._backlog = search.backlog()
            self.left = 0
            return True
        self.pending = None
        self._tries = min(self._tries + 1, _TRIES_MAX)
        return False

    def answered(self) -> None:
        """Note that a request has got its answer."""
        self._tries = 0

    def require(self) -> None:
        """Raise `Searching` unless there are looks left."""
        if self.left <= 0:
            raise Searching("a search for free bytes is under way")
