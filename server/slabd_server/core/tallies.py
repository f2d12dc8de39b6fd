"""What has happened to a heap so far, as plain counters that only grow: the books of Prometheus."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from slabd_server.core.histogram import BYTES, HOLD_SECONDS, SECONDS, Histogram
from slabd_server.core.sizes import MAX_CLASS

if TYPE_CHECKING:
    from slabd_server.core.errors import NoMemory

NO_CLASS: Final = 0


class Tallies:
    """The counters of one heap. The dicts count by cause or reason, `granted_sizes` by the size of the block.

    `acquire_seconds` is kept by the adapters, which know when a request came and when it was answered, and so is
    `reclaim_seconds`: what the core does takes no time by its own clock.
    """

    def __init__(self) -> None:
        self.lease_requests = 0
        self.leases_granted = 0
        self.rejections: dict[str, int] = {}
        self.leases_ended: dict[str, int] = {}
        self.reclaimed_bytes: dict[str, int] = {}
        self.sessions_started = 0
        self.sessions_ended: dict[str, int] = {}
        self.shares = 0
        self.opens_ok = 0
        self.opens_stale = 0
        self.handles_expired = 0
        self.granted_sizes: dict[int, int] = {}
        self.request_sizes = Histogram(BYTES)
        self.acquire_seconds = Histogram(SECONDS)
        self.wait_seconds = Histogram(SECONDS)
        self.hold_seconds = Histogram(HOLD_SECONDS)
        self.reclaim_seconds = Histogram(SECONDS)
        # Of lanes and caches: empty or None as long as nobody counts them.
        self.lane_operations: dict[str, int] = {}
        self.lane_doorbells = 0
        self.cache_hits: int | None = None
        self.cache_misses: int | None = None
        self.cached_class_blocks: dict[int, int] | None = None

    def count_grant(self, size: int) -> None:
        """Count a granted block under its size, or as one of no class: few keys, whatever sizes there are."""
        key = size if size <= MAX_CLASS else NO_CLASS
        self.granted_sizes[key] = self.granted_sizes.get(key, 0) + 1


def count_up(counters: dict[str, int], key: str, by: int = 1) -> None:
    """Add to one counter of a family."""
    counters[key] = counters.get(key, 0) + by


def rejected_as(error: NoMemory) -> str:
    """Return the name under which a refused request is counted."""
    return _REJECTIONS.get(type(error).__name__, "no_memory")


_REJECTIONS: Final = {
    "TooLarge": "too_large",
    "Fragmented": "fragmented",
    "QueueFull": "queue_full",
    "WaitTimeout": "timeout",
}
