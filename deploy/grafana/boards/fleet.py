"""Fleet: every daemon there is, a line each."""

from __future__ import annotations

from typing import Final

from deploy.grafana.boards import thresholds
from deploy.grafana.boards.layout import Dashboard, Row
from deploy.grafana.boards.panels import bars, graph, limit, stat
from deploy.grafana.boards.queries import Query, instant
from deploy.grafana.boards.tables import Column, table

_BY: Final = "sum by (instance, heap)"

GLANCE: Final = Row(
    "At a glance",
    [
        stat(
            "Daemons up",
            "Those that answered the last scrape.",
            "short",
            instant("sum(up{DAEMON})", "up"),
            thresholds=thresholds.below_one(),
            width=4,
        ),
        stat(
            "Daemons down",
            "Those that did not.",
            "short",
            instant("count(up{DAEMON}) - sum(up{DAEMON})", "down"),
            thresholds={"mode": "absolute", "steps": [thresholds.GREEN, {"color": "red", "value": 1}]},
            width=4,
        ),
        stat("Memory", "Of all heaps together.", "bytes", instant("sum(slabd_heap_size_bytes{HEAP})", "size"), width=4),
        stat(
            "In use",
            "Of all heaps together.",
            "percentunit",
            Query("sum(slabd_used_bytes{HEAP}) / sum(slabd_heap_size_bytes{HEAP})", "used"),
            thresholds=thresholds.above("SlabdHeapFull"),
            defaults={"max": 1, "min": 0},
            width=4,
        ),
        stat("Sessions", "Of all heaps together.", "short", instant("sum(slabd_sessions{HEAP})", "sessions"), width=4),
        stat(
            "Alerts firing",
            "Of slabd's own alerts.",
            "short",
            instant('count(ALERTS{alertstate="firing",alertname=~"Slabd.+",job=~"$job"}) or vector(0)', "firing"),
            thresholds={"mode": "absolute", "steps": [thresholds.GREEN, {"color": "red", "value": 1}]},
            width=4,
        ),
    ],
)

NODES: Final = Row(
    "Nodes",
    [
        table(
            "Heaps",
            "Every heap of every daemon, the fullest first.",
            {"instance": "Instance", "heap": "Heap"},
            [
                Column(
                    "In use",
                    f"{_BY} (slabd_used_bytes{{HEAP}}) / {_BY} (slabd_heap_size_bytes{{HEAP}})",
                    "percentunit",
                    thresholds.above("SlabdHeapFull"),
                    gauge=True,
                ),
                Column("Size", f"{_BY} (slabd_heap_size_bytes{{HEAP}})", "bytes"),
                Column("Available", f"{_BY} (slabd_available_bytes{{HEAP}})", "bytes"),
                Column("Largest block", f"{_BY} (slabd_largest_free_block_bytes{{HEAP}})", "bytes"),
                Column("Sessions", f"{_BY} (slabd_sessions{{HEAP}})"),
                Column("Leases", f"{_BY} (slabd_leases{{HEAP}})"),
                Column(
                    "Longest wait",
                    f"{_BY} (slabd_oldest_waiter_age_seconds{{HEAP}})",
                    "s",
                    thresholds.above("SlabdWaitersStuck"),
                ),
                Column(
                    "Lease, p99",
                    "histogram_quantile(0.99, sum by (instance, heap, le) "
                    "(rate(slabd_lease_acquire_duration_seconds_bucket{HEAP}[$__rate_interval]))) >= 0",
                    "s",
                    thresholds.above("SlabdLeaseLatencyHigh"),
                ),
                Column(
                    "Refused",
                    f'{_BY} (rate(slabd_lease_rejections_total{{HEAP,reason!="draining"}}[$__rate_interval])) / '
                    f"clamp_min({_BY} (rate(slabd_lease_requests_total{{HEAP}}[$__rate_interval])), 1e-9)",
                    "percentunit",
                    thresholds.above("SlabdLeasesRejected"),
                ),
            ],
            sort="In use",
            width=24,
            height=11,
        ),
        bars(
            "The fullest ten",
            "The share of each heap that is in use.",
            "percentunit",
            [
                instant(
                    "sort_desc(topk(10, slabd_used_bytes{HEAP} / slabd_heap_size_bytes{HEAP}))", "{{instance}} {{heap}}"
                )
            ],
            thresholds=thresholds.above("SlabdHeapFull"),
            defaults={"max": 1},
            width=12,
            height=9,
        ),
        bars(
            "Versions",
            "How many daemons run which version. More than one for long is a rollout that has stopped.",
            "short",
            [instant("count by (version) (slabd_build_info{DAEMON})", "{{version}}")],
            width=12,
            height=9,
        ),
    ],
)

TRENDS: Final = Row(
    "Trends",
    [
        graph(
            "Memory in use",
            "Of all heaps together, and by daemon.",
            "bytes",
            [
                Query("sum by (instance) (slabd_used_bytes{HEAP})", "{{instance}}"),
                Query("sum(slabd_heap_size_bytes{HEAP})", "size"),
            ],
            drawn="stack",
            overrides=[limit("size")],
            width=12,
            height=9,
        ),
        graph(
            "Blocks granted",
            "By daemon.",
            "ops",
            [Query("sum by (instance) (rate(slabd_leases_granted_total{HEAP}[$__rate_interval]))", "{{instance}}")],
            width=12,
            height=9,
        ),
    ],
)

FLEET: Final = Dashboard(
    uid="slabd-fleet",
    title="slabd / Fleet",
    description="Every daemon there is, a line each.",
    rows=[GLANCE, NODES, TRENDS],
    since="now-6h",
)
