"""What has happened to a heap so far, as plain counters that only grow: the books of Prometheus."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from slabd_server.core.errors import NoMemory


class Tallies:
    """The counters of one heap. The dicts count by cause or reason."""

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
