"""What is to happen when, earliest first.

Entries are never searched for or removed: when one falls due, its owner looks whether it still means anything. An owner
that postpones an event (a keep-alive) leaves the old entry in place and sets the new one when the old falls due, so the
heap holds at most one entry for each living thing, plus those of things that ended early. When the latter are most of
it, `owner.is_current` sweeps them out.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

K = TypeVar("K")


class Deadlines(Generic[K]):
    """A priority queue of keys by time. `is_current(when, key)` tells whether an entry still means anything."""

    def __init__(self, is_current: Callable[[float, K], bool]) -> None:
        self._is_current = is_current
        self._heap: list[tuple[float, int, K]] = []
        self._count = 0
        self._sweep_at = 1024

    def __len__(self) -> int:
        return len(self._heap)

    def __iter__(self) -> Iterator[tuple[float, K]]:
        """Walk over all entries, those that mean nothing any more included, in no order."""
        return ((when, key) for when, _, key in self._heap)

    def set(self, when: float, key: K) -> None:
        """Let `key` fall due at `when`."""
        self._count += 1
        heapq.heappush(self._heap, (when, self._count, key))
        if len(self._heap) > self._sweep_at:
            self._heap = [entry for entry in self._heap if self._is_current(entry[0], entry[2])]
            heapq.heapify(self._heap)
            self._sweep_at = max(1024, 2 * len(self._heap))

    def next(self) -> float | None:
        """Return when the earliest current entry falls due, None when there is none."""
        while self._heap and not self._is_current(self._heap[0][0], self._heap[0][2]):
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def due(self, now: float) -> Iterator[K]:
        """Take out and yield every current key that has fallen due."""
        while self._heap and self._heap[0][0] <= now:
            when, _, key = heapq.heappop(self._heap)
            if self._is_current(when, key):
                yield key
