"""What is true of the daemon as a whole, whatever heaps it has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily

from slabd_server import __version__, logs
from slabd_server.metrics.snapshot import buckets

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric

    from slabd_server.metrics.snapshot import Snapshot


def families(snapshot: Snapshot) -> Iterator[Metric]:
    """Yield every metric of the daemon itself."""
    yield GaugeMetricFamily(
        "slabd_serving", "1 while the daemon takes new work, 0 while it drains.", float(snapshot.serving)
    )
    lag = HistogramMetricFamily("slabd_event_loop_lag_seconds", "How late the event loop came to a timer.", labels=[])
    lag.add_metric([], buckets(snapshot.lag), snapshot.lag.sum)
    yield lag
    yield GaugeMetricFamily(
        "slabd_collector_duration_seconds", "How long this scrape's snapshot held the event loop.", snapshot.seconds
    )
    messages = CounterMetricFamily("slabd_log_messages", "Messages logged.", labels=["level"])
    for level, number in logs.written().items():
        messages.add_metric([level], number)
    yield messages
    yield InfoMetricFamily("slabd_build", "The daemon's version.", {"version": __version__})
