"""When a heap's free memory is looked at, to be given back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from slabd_server.core.heap import Heap

PAUSE_SECONDS: Final = 0.005


class DecayClock:
    """Looks once a period while there is something to give back, else never.

    `period` is in seconds, None for a heap that gives nothing back. A step that has more to do goes on after
    PAUSE_SECONDS, so that others get their turn.
    """

    def __init__(self, heap: Heap, period: float | None) -> None:
        self._heap = heap
        self._period = period
        self._due: float | None = None

    def next(self, now: float) -> float | None:
        """Return when `tick` has something to do, None while there is nothing."""
        if self._period is None or not self._heap.decays:
            self._due = None
        elif self._due is None:
            self._due = now + self._period
        return self._due

    def tick(self, now: float) -> None:
        """Give back what is due."""
        if self._period is None or self._due is None or now < self._due:
            return
        self._due = now + (PAUSE_SECONDS if self._heap.decay() else self._period)
