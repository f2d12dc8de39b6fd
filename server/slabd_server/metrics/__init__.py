"""Metrics for Prometheus: one atomic snapshot of the books, taken on the event loop and rendered in a thread.

The core keeps plain integers; a custom collector reads them when Prometheus asks. No label has unbounded values:
sessions, pids and leases are slabctl's business. `families` declares what there is of a heap, `heaps` turns snapshots
into it, `daemon` has what is true of the daemon as a whole, `lag` watches the event loop, and `table` writes all of it
down for deploy/README.md.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from prometheus_client import (
    GC_COLLECTOR,
    PLATFORM_COLLECTOR,
    CollectorRegistry,
    ProcessCollector,
    disable_created_metrics,
)

from slabd_server.core.figures import figures
from slabd_server.metrics.heaps import HeapCollector
from slabd_server.metrics.lag import LoopLag
from slabd_server.metrics.snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Mapping

    from slabd_server.dispatch import Dispatcher
    from slabd_server.segments import HeapSegment

# A snapshot takes a fraction of a millisecond; a loop that is stuck for this long has worse problems than a scrape.
SNAPSHOT_SECONDS: Final = 10.0
# For sys.setswitchinterval: the rendering thread lets go of the interpreter when the loop has wanted it for so long.
# Python's own 5 ms would be how long every scrape can hold the loop up (tests/benchmarks/scrapes.py).
SWITCH_SECONDS: Final = 0.0002

__all__ = ["SWITCH_SECONDS", "LoopLag", "make_registry"]


def make_registry(dispatcher: Dispatcher, segments: Mapping[str, HeapSegment], lag: LoopLag) -> CollectorRegistry:
    """Return a registry with the heaps', the daemon's and Python's metrics. Call on the event loop."""
    disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    registry.register(GC_COLLECTOR)
    registry.register(PLATFORM_COLLECTOR)
    loop = asyncio.get_running_loop()

    async def take() -> Snapshot:
        longest, began = 0.0, time.perf_counter()
        for _ in dispatcher.before_looking():
            longest = max(longest, time.perf_counter() - began)
            await asyncio.sleep(0)
            began = time.perf_counter()
        now = dispatcher.now()
        heaps = tuple(figures(served, now) for served in dispatcher.engine.heaps.values())
        lags, serving = lag.copy(), not dispatcher.engine.draining
        return Snapshot(heaps, lags, serving=serving, seconds=max(longest, time.perf_counter() - began))

    def snapshot() -> Snapshot:
        return asyncio.run_coroutine_threadsafe(take(), loop).result(SNAPSHOT_SECONDS)

    registry.register(HeapCollector(snapshot, segments))
    return registry
