"""How late the event loop is: a timer that is due five times a second, and by how much it is missed.

Everything runs on one loop, so whatever holds it up holds up everybody. The loop's clock ticks in milliseconds, so an
idle loop is up to one late.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from slabd_server.core.histogram import Histogram

if TYPE_CHECKING:
    from slabd_server.core.histogram import Observed

PERIOD_SECONDS: Final = 0.2
EDGES: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class LoopLag:
    """Watches the event loop it is made on, until `stop`."""

    def __init__(self, period: float = PERIOD_SECONDS) -> None:
        self._loop = asyncio.get_running_loop()
        self._period = period
        self._histogram = Histogram(EDGES)
        self._schedule()

    def _schedule(self) -> None:
        self._due = self._loop.time() + self._period
        self._timer = self._loop.call_at(self._due, self._look)

    def _look(self) -> None:
        self._histogram.observe(max(0.0, self._loop.time() - self._due))
        self._schedule()

    def copy(self) -> Observed:
        """Return the lags so far, in seconds."""
        return self._histogram.copy()

    def stop(self) -> None:
        """Watch no more."""
        self._timer.cancel()
