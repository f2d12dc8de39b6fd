"""Heap: one heap of one daemon, from the inside."""

from __future__ import annotations

from typing import Final

from deploy.grafana.boards import thresholds
from deploy.grafana.boards.layout import Dashboard, Row
from deploy.grafana.boards.panels import graph, heatmap, limit, memory_by_state, stat
from deploy.grafana.boards.queries import Query, heat, instant
from deploy.grafana.boards.tables import Column, table

_RATE: Final = "[$__rate_interval]"

GLANCE: Final = Row(
    "At a glance",
    [
        stat("Size", "Size of the heap.", "bytes", instant("slabd_heap_size_bytes{HEAP}", "size"), width=4),
        stat(
            "In use",
            "The share of the heap that is leased, shared or in quarantine.",
            "percentunit",
            Query("slabd_used_bytes{HEAP} / slabd_heap_size_bytes{HEAP}", "used"),
            thresholds=thresholds.above("SlabdHeapFull"),
            defaults={"max": 1, "min": 0},
            width=4,
        ),
        stat(
            "Peak",
            "The most that has been in use at once since the daemon started, as a share of the heap.",
            "percentunit",
            instant("slabd_used_peak_bytes{HEAP} / slabd_heap_size_bytes{HEAP}", "peak"),
            thresholds=thresholds.above("SlabdHeapFull"),
            defaults={"max": 1, "min": 0},
            width=4,
        ),
        stat(
            "Largest block",
            "The largest single block that could be leased now.",
            "bytes",
            Query("slabd_largest_free_block_bytes{HEAP}", "largest"),
            width=4,
        ),
        stat(
            "Rounding",
            "The share of the granted memory that nobody asked for: blocks are as large as their class.",
            "percentunit",
            Query(
                "1 - slabd_requested_bytes{HEAP} / (sum without (state) "
                '(slabd_heap_state_bytes{HEAP,state=~"leased|cached|shared|quarantined"}) > 0)',
                "waste",
            ),
            width=4,
        ),
        stat(
            "In quarantine",
            "The share of the heap that a process still has mapped which can no longer be talked to.",
            "percentunit",
            Query(
                'sum without (state) (slabd_heap_state_bytes{HEAP,state="quarantined"}) / slabd_heap_size_bytes{HEAP}',
                "quarantined",
            ),
            thresholds=thresholds.above("SlabdQuarantineStuck"),
            width=4,
        ),
    ],
)

MEMORY: Final = Row(
    "Memory",
    [
        memory_by_state(),
        graph(
            "Resident against size",
            "Bytes of the heap with memory behind them, beside what is in use and its peak. With give_back_seconds the "
            "resident line follows the used one down.",
            "bytes",
            [
                Query("slabd_resident_bytes{HEAP}", "resident"),
                Query("slabd_used_bytes{HEAP}", "used"),
                Query("slabd_used_peak_bytes{HEAP}", "peak"),
                Query("slabd_heap_size_bytes{HEAP}", "size"),
            ],
            overrides=[limit("size")],
            width=12,
            height=9,
        ),
    ],
)

CLASSES: Final = Row(
    "Size classes",
    [
        table(
            "Classes now",
            "What each size class has; cached are blocks idle in clients' caches. Large is everything above the "
            "largest class, which has no slabs.",
            {"size_class": "Class"},
            [
                Column("Blocks", "sum by (size_class) (slabd_class_used_blocks{HEAP})"),
                Column("Bytes", "sum by (size_class) (slabd_class_used_bytes{HEAP})", "bytes"),
                Column("Slabs", "sum by (size_class) (slabd_class_slabs{HEAP})"),
                Column("Cached", "sum by (size_class) (slabd_class_cached_blocks{HEAP})"),
                Column("Granted / s", f"sum by (size_class) (rate(slabd_leases_granted_total{{HEAP}}{_RATE}))", "ops"),
                Column(
                    "Share",
                    "sum by (size_class) (slabd_class_used_bytes{HEAP}) / ignoring (size_class) group_left () "
                    "(sum(slabd_class_used_bytes{HEAP}) > 0)",
                    "percentunit",
                    gauge=True,
                ),
            ],
            sort="Bytes",
            width=12,
            height=10,
        ),
        graph(
            "Used by size class",
            "Bytes of granted blocks.",
            "bytes",
            [Query("sum by (size_class) (slabd_class_used_bytes{HEAP})", "{{size_class}}")],
            drawn="stack",
            width=12,
            height=10,
        ),
        graph(
            "Slabs that move",
            "Slabs that classes got, and runs of pages that came back from them. Many of both for long is thrashing.",
            "ops",
            [Query(f"sum by (direction) (rate(slabd_slab_moves_total{{HEAP}}{_RATE}))", "{{direction}}")],
        ),
        heatmap(
            "Sizes that are asked for",
            "Block by block. What is far from every class is what rounding is lost on.",
            "bytes",
            heat("slabd_lease_request_size_bytes"),
        ),
        graph(
            "Fragmentation and rounding",
            "The share of the available memory that no single block can have, and of the granted memory that nobody "
            "asked for.",
            "percentunit",
            [
                Query(
                    "1 - slabd_largest_free_block_bytes{HEAP} / (slabd_available_bytes{HEAP} > 0)",
                    "fragmentation",
                ),
                Query(
                    "1 - slabd_requested_bytes{HEAP} / (sum without (state) "
                    '(slabd_heap_state_bytes{HEAP,state=~"leased|cached|shared|quarantined"}) > 0)',
                    "rounding",
                ),
            ],
            thresholds=thresholds.above("SlabdHeapFragmented"),
            defaults={"max": 1},
        ),
    ],
)

QUARANTINE: Final = Row(
    "Quarantine",
    [
        graph(
            "Memory in quarantine",
            "Bytes that may not be leased again because a living process may still touch them.",
            "bytes",
            [Query('slabd_heap_state_bytes{HEAP,state="quarantined"}', "quarantined")],
            width=12,
        ),
        graph(
            "Oldest quarantine",
            "How long the oldest session in quarantine has been there. It ends when its process does.",
            "s",
            [Query("slabd_quarantine_oldest_age_seconds{HEAP}", "oldest")],
            width=12,
        ),
    ],
)

HEAP_BOARD: Final = Dashboard(
    uid="slabd-heap",
    title="slabd / Heap",
    description="One heap of one daemon, from the inside.",
    rows=[GLANCE, MEMORY, CLASSES, QUARANTINE],
    many=False,
)
