"""Metrics for Prometheus: one atomic snapshot of the books, taken on the event loop and rendered in a thread.

The core keeps plain integers; a custom collector reads them when Prometheus asks. No label has unbounded values:
sessions, pids and leases are slabctl's business.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from prometheus_client import (
    GC_COLLECTOR,
    PLATFORM_COLLECTOR,
    CollectorRegistry,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from slabd_server import __version__
from slabd_server.core import inspection
from slabd_server.core.records import EndCause

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from prometheus_client.core import Metric

    from slabd_server.core.stats import HeapStats
    from slabd_server.dispatch import Dispatcher
    from slabd_server.segments import HeapSegment

# A snapshot takes tens of microseconds; a loop that is stuck for this long has worse problems than a failed scrape.
SNAPSHOT_SECONDS: Final = 10.0

_GAUGES: Final[tuple[tuple[str, str, Callable[[HeapStats], float]], ...]] = (
    ("slabd_heap_size_bytes", "Size of the heap.", lambda s: s.total_bytes),
    ("slabd_used_bytes", "Bytes of blocks in use: leased, shared or quarantined.", lambda s: s.used_bytes),
    (
        "slabd_available_bytes",
        "Bytes not in use: free, or idle in caches and recallable. used + available == size.",
        lambda s: s.available_bytes,
    ),
    (
        "slabd_requested_bytes",
        "Bytes the granted blocks were asked for; the rest is rounding.",
        lambda s: s.requested_bytes,
    ),
    (
        "slabd_largest_free_block_bytes",
        "The largest single block that could be leased.",
        lambda s: s.largest_free_block_bytes,
    ),
    ("slabd_used_peak_bytes", "The most bytes that have been in use at once.", lambda s: s.used_peak_bytes),
    ("slabd_leases", "Leases held.", lambda s: s.leases),
    ("slabd_waiters", "Requests that wait for memory.", lambda s: s.waiters),
    (
        "slabd_oldest_waiter_age_seconds",
        "How long the first request in the queue has waited.",
        lambda s: s.oldest_waiter_age,
    ),
)
_STATES: Final[tuple[tuple[str, Callable[[HeapStats], float]], ...]] = (
    ("leased", lambda s: s.leased_bytes),
    ("cached", lambda s: s.cached_bytes),
    ("shared", lambda s: s.shared_bytes),
    ("quarantined", lambda s: s.quarantined_bytes),
    ("free", lambda s: s.free_bytes),
    ("slab_free", lambda s: s.slab_free_bytes),
)
_REASONS: Final = ("no_memory", "fragmented", "too_large", "queue_full", "timeout")
_SESSION_CAUSES: Final = tuple(cause.value for cause in EndCause)
_LEASE_CAUSES: Final = ("released", "transferred", *_SESSION_CAUSES)

_COUNTERS: Final[tuple[tuple[str, str, Callable[[HeapStats], int]], ...]] = (
    ("slabd_lease_requests", "Requests for leases, batches counted once.", lambda s: s.lease_requests),
    ("slabd_leases_granted", "Leases granted.", lambda s: s.leases_granted),
    ("slabd_sessions_started", "Sessions opened.", lambda s: s.sessions_started),
    ("slabd_shares", "Handles made.", lambda s: s.shares),
    ("slabd_handles_expired", "Handles that expired before all their opens had come.", lambda s: s.handles_expired),
)
_COUNTER_FAMILIES: Final[
    tuple[tuple[str, str, str, Callable[[HeapStats], Mapping[str, int]], tuple[str, ...]], ...]
] = (
    ("slabd_lease_rejections", "Requests refused.", "reason", lambda s: s.rejections, _REASONS),
    ("slabd_leases_ended", "Leases that ended.", "cause", lambda s: s.leases_ended, _LEASE_CAUSES),
    (
        "slabd_reclaimed_bytes",
        "Bytes that became free.",
        "cause",
        lambda s: s.reclaimed_bytes,
        ("released", *_SESSION_CAUSES),
    ),
    ("slabd_sessions_ended", "Sessions that ended.", "cause", lambda s: s.sessions_ended, _SESSION_CAUSES),
    ("slabd_opens", "Opens of handles.", "result", lambda s: {"ok": s.opens_ok, "stale": s.opens_stale}, ()),
)


class HeapCollector(Collector):
    """Turns snapshots of the books into metrics. `snapshot` may be called from any thread."""

    def __init__(self, snapshot: Callable[[], tuple[HeapStats, ...]], segments: Mapping[str, HeapSegment]) -> None:
        self._snapshot = snapshot
        self._segments = segments

    def describe(self) -> list[Metric]:
        """Return nothing, so that registering does not take a snapshot before there is a loop."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield every metric family of one snapshot."""
        heaps = self._snapshot()
        yield from _gauges(heaps)
        yield from _counters(heaps)
        resident = GaugeMetricFamily(
            "slabd_resident_bytes", "Bytes of the heap that have memory behind them.", labels=["heap"]
        )
        for name, segment in self._segments.items():
            resident.add_metric([name], segment.resident_bytes())
        yield resident
        yield InfoMetricFamily("slabd_build", "The daemon's version.", {"version": __version__})


def _gauges(heaps: tuple[HeapStats, ...]) -> Iterator[Metric]:
    for name, text, value in _GAUGES:
        family = GaugeMetricFamily(name, text, labels=["heap"])
        for stats in heaps:
            family.add_metric([stats.name], value(stats))
        yield family
    states = GaugeMetricFamily(
        "slabd_heap_state_bytes", "Bytes by state; disjoint, they add up to the heap's size.", labels=["heap", "state"]
    )
    sessions = GaugeMetricFamily("slabd_sessions", "Sessions by state.", labels=["heap", "state"])
    for stats in heaps:
        for state, bytes_in in _STATES:
            states.add_metric([stats.name, state], bytes_in(stats))
        for session_state, number in stats.sessions.items():
            sessions.add_metric([stats.name, session_state], number)
    yield states
    yield sessions


def _counters(heaps: tuple[HeapStats, ...]) -> Iterator[Metric]:
    for name, text, value in _COUNTERS:
        family = CounterMetricFamily(name, text, labels=["heap"])
        for stats in heaps:
            family.add_metric([stats.name], value(stats))
        yield family
    for name, text, label, values, known in _COUNTER_FAMILIES:
        family = CounterMetricFamily(name, text, labels=["heap", label])
        for stats in heaps:
            # Every known value is there from the start, so that the first event shows in rate().
            for key, number in (dict.fromkeys(known, 0) | dict(values(stats))).items():
                family.add_metric([stats.name, key], number)
        yield family


def make_registry(dispatcher: Dispatcher, segments: Mapping[str, HeapSegment]) -> CollectorRegistry:
    """Return a registry with the heap's, the process's and Python's metrics. Call on the event loop."""
    disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    registry.register(GC_COLLECTOR)
    registry.register(PLATFORM_COLLECTOR)
    loop = asyncio.get_running_loop()

    async def take() -> tuple[HeapStats, ...]:
        now = dispatcher.now()
        return tuple(inspection.heap_stats(served, now) for served in dispatcher.engine.heaps.values())

    def snapshot() -> tuple[HeapStats, ...]:
        return asyncio.run_coroutine_threadsafe(take(), loop).result(SNAPSHOT_SECONDS)

    registry.register(HeapCollector(snapshot, segments))
    return registry
