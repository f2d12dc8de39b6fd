"""The collector of everything the daemon itself knows. It asks for one snapshot a scrape, and renders that alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from slabd_server.metrics.daemon import families as daemon_families
from slabd_server.metrics.families import COUNTERS, GAUGES, HISTOGRAMS, Many, One
from slabd_server.metrics.snapshot import buckets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from prometheus_client.core import Metric

    from slabd_server.core.figures import HeapFigures
    from slabd_server.metrics.snapshot import Snapshot
    from slabd_server.segments import HeapSegment


class HeapCollector(Collector):
    """Turns snapshots into metrics. `snapshot` may be called from any thread."""

    def __init__(self, snapshot: Callable[[], Snapshot], segments: Mapping[str, HeapSegment]) -> None:
        self._snapshot = snapshot
        self._segments = segments

    def describe(self) -> list[Metric]:
        """Return nothing, so that registering does not take a snapshot before there is a loop."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield every metric family of one snapshot."""
        snapshot = self._snapshot()
        yield from _filled(GaugeMetricFamily, GAUGES, snapshot.heaps)
        yield self._resident()
        yield from _filled(CounterMetricFamily, COUNTERS, snapshot.heaps)
        yield from _histograms(snapshot.heaps)
        yield from daemon_families(snapshot)

    def _resident(self) -> Metric:
        text = "Bytes of the heap that have memory behind them."
        resident = GaugeMetricFamily("slabd_resident_bytes", text, labels=["heap"])
        for name, segment in self._segments.items():
            resident.add_metric([name], segment.resident_bytes())
        return resident


def _filled(
    make: type[GaugeMetricFamily | CounterMetricFamily], declared: Iterable[One | Many], heaps: tuple[HeapFigures, ...]
) -> Iterator[Metric]:
    for each in declared:
        labels = ["heap"] if isinstance(each, One) else ["heap", each.label]
        family = make(each.name, each.help, labels=labels)
        for heap in heaps:
            for key, number in _values(each, heap):
                family.add_metric([heap.stats.name, *key], number)
        if family.samples:
            yield family


def _values(each: One | Many, heap: HeapFigures) -> Iterable[tuple[tuple[str, ...], float]]:
    """Return what there is to say of a heap, by the labels after its own; nothing if that is not counted."""
    if isinstance(each, One):
        value = each.value(heap)
        return () if value is None else (((), value),)
    values = each.values(heap)
    if values is None:
        return ()
    return (((key,), number) for key, number in {**dict.fromkeys(each.known, 0), **values}.items())


def _histograms(heaps: tuple[HeapFigures, ...]) -> Iterator[Metric]:
    for each in HISTOGRAMS:
        family = HistogramMetricFamily(each.name, each.help, labels=["heap"])
        for heap in heaps:
            observed = each.observed(heap)
            family.add_metric([heap.stats.name], buckets(observed), observed.sum)
        yield family
