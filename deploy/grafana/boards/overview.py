"""Overview: is it up, is there memory, are leases quick, does anything go wrong."""

from __future__ import annotations

from typing import Final

from deploy.grafana.boards import thresholds
from deploy.grafana.boards.lane import LANE
from deploy.grafana.boards.layout import Dashboard, Row
from deploy.grafana.boards.panels import graph, heatmap, memory_by_state, stat
from deploy.grafana.boards.queries import Query, heat, instant, quantiles

_RATE: Final = "[$__rate_interval]"

GLANCE: Final = Row(
    "At a glance",
    [
        stat(
            "Up",
            "Daemons that answered the last scrape, of those that should.",
            "percentunit",
            instant("avg(up{DAEMON})", "up"),
            thresholds=thresholds.below_one(),
            defaults={"max": 1, "min": 0},
        ),
        stat(
            "In use",
            "The fullest of the heaps shown: the share of it that is leased, shared or in quarantine.",
            "percentunit",
            Query("max(slabd_used_bytes{HEAP} / slabd_heap_size_bytes{HEAP})", "used"),
            thresholds=thresholds.above("SlabdHeapFull"),
            defaults={"max": 1, "min": 0},
        ),
        stat(
            "Available",
            "Bytes that could be leased, in all the heaps shown.",
            "bytes",
            Query("sum(slabd_available_bytes{HEAP})", "available"),
        ),
        stat(
            "Largest block",
            "The largest single block that could be leased now, in the heap where that is smallest.",
            "bytes",
            Query("min(slabd_largest_free_block_bytes{HEAP})", "largest"),
        ),
        stat("Leases", "Leases held.", "short", Query("sum(slabd_leases{HEAP})", "leases")),
        stat(
            "Waiting",
            "How long the request that has waited longest has been in the queue; 0 when nobody waits.",
            "s",
            Query("max(slabd_oldest_waiter_age_seconds{HEAP})", "wait"),
            thresholds=thresholds.above("SlabdWaitersStuck"),
        ),
        stat(
            "Lease, p99",
            "How long the slowest hundredth of leases takes inside the daemon, of those that had not to queue.",
            "s",
            Query(
                "histogram_quantile(0.99, sum by (le) (rate(slabd_lease_acquire_duration_seconds_bucket{HEAP}"
                "[$__rate_interval])))",
                "p99",
            ),
            thresholds=thresholds.above("SlabdLeaseLatencyHigh"),
        ),
        stat(
            "Version",
            "The version that most of the daemons shown run.",
            "short",
            instant("topk(1, count by (version) (slabd_build_info{DAEMON}))", "{{version}}"),
            text="name",
        ),
    ],
)

MEMORY: Final = Row(
    "Memory",
    [
        memory_by_state(),
        graph(
            "Fragmentation",
            "The share of the available memory that no single block can have. It matters when the heap is nearly full.",
            "percentunit",
            [
                Query(
                    "1 - slabd_largest_free_block_bytes{HEAP} / (slabd_available_bytes{HEAP} > 0)",
                )
            ],
            thresholds=thresholds.above("SlabdHeapFragmented"),
            defaults={"max": 1},
            width=6,
            height=9,
        ),
        graph(
            "Used by size class",
            "Bytes of granted blocks. Blocks above the largest class are in page ranges of their own: large.",
            "bytes",
            [Query("sum by (size_class) (slabd_class_used_bytes{HEAP})", "{{size_class}}")],
            drawn="stack",
            width=6,
            height=9,
        ),
    ],
)

LEASES: Final = Row(
    "Leases",
    [
        heatmap(
            "How long leases take",
            "From a request's arrival at the daemon to its leases, for those that had not to queue.",
            "s",
            heat("slabd_lease_acquire_duration_seconds"),
        ),
        graph(
            "How long leases take: percentiles",
            "The same, as percentiles. The line is where an alert fires.",
            "s",
            quantiles("slabd_lease_acquire_duration_seconds"),
            thresholds=thresholds.above("SlabdLeaseLatencyHigh"),
        ),
        graph(
            "Leases granted and ended",
            "Granted, and ended by cause. client_died is a process that was gone without a word.",
            "ops",
            [
                Query(f"sum(rate(slabd_leases_granted_total{{HEAP}}{_RATE}))", "granted"),
                Query(f"sum by (cause) (rate(slabd_leases_ended_total{{HEAP}}{_RATE}))", "{{cause}}"),
            ],
        ),
        graph(
            "Requests refused",
            "By reason, as a share of all requests. The alert is about the sum, those of a draining daemon apart.",
            "percentunit",
            [
                Query(
                    f"sum by (reason) (rate(slabd_lease_rejections_total{{HEAP}}{_RATE}))"
                    f" / ignoring (reason) group_left () (sum(rate(slabd_lease_requests_total{{HEAP}}{_RATE})) > 0)",
                    "{{reason}}",
                )
            ],
            drawn="stack",
            thresholds=thresholds.above("SlabdLeasesRejected"),
        ),
        graph(
            "Queue",
            "Requests that wait for memory. Nobody overtakes the first one.",
            "short",
            [Query("slabd_waiters{HEAP}")],
            top=5,
        ),
        graph(
            "Longest wait",
            "How long the first request in the queue has waited.",
            "s",
            [Query("slabd_oldest_waiter_age_seconds{HEAP}")],
            thresholds=thresholds.above("SlabdWaitersStuck"),
        ),
    ],
)

CALLS: Final = Row(
    "Calls",
    [
        graph(
            "Calls",
            "gRPC calls that ended, by method.",
            "reqps",
            [
                Query(
                    f"sum by (grpc_method) (rate(grpc_server_handled_total{{DAEMON}}{_RATE})) > 0",
                    "{{grpc_method}}",
                )
            ],
        ),
        graph(
            "Calls that failed",
            "By status. ResourceExhausted and DeadlineExceeded are refusals for want of memory; Internal is a defect.",
            "reqps",
            [
                Query(
                    f'sum by (grpc_code) (rate(grpc_server_handled_total{{DAEMON,grpc_code!="OK"}}{_RATE}))',
                    "{{grpc_code}}",
                )
            ],
        ),
        graph(
            "How long calls take, p99",
            "Leases that wait in the queue included, and watches, which last as long as their session, left out.",
            "s",
            [
                Query(
                    "histogram_quantile(0.99, sum by (le, grpc_method) (rate(grpc_server_handling_seconds_bucket"
                    f'{{DAEMON,grpc_type="unary"}}{_RATE})))',
                    "{{grpc_method}}",
                )
            ],
        ),
    ],
)

PROCESS: Final = Row(
    "The daemon",
    [
        graph(
            "Processor",
            "Cores that the daemon keeps busy. It has one event loop, so one is its limit.",
            "short",
            [Query(f"rate(process_cpu_seconds_total{{DAEMON}}{_RATE})", "{{instance}}")],
            width=6,
        ),
        graph(
            "Resident memory",
            "Of the process. It grows with the heap's pages that the daemon itself has touched.",
            "bytes",
            [Query("process_resident_memory_bytes{DAEMON}", "{{instance}}")],
            width=6,
        ),
        graph(
            "File descriptors",
            "In use, as a share of what the process may have. Each session takes six.",
            "percentunit",
            [Query("process_open_fds{DAEMON} / process_max_fds{DAEMON}", "{{instance}}")],
            thresholds=thresholds.above("SlabdFileDescriptors"),
            defaults={"max": 1},
            width=6,
        ),
        graph(
            "Lag of the event loop",
            "How late the loop comes to a timer. That holds up everybody. An idle loop is up to 1 ms late.",
            "s",
            quantiles("slabd_event_loop_lag_seconds", selector="DAEMON"),
            thresholds=thresholds.above("SlabdEventLoopStalled"),
            width=6,
        ),
        graph(
            "Messages logged",
            "By level, a minute. Warnings are mostly clients that died.",
            "short",
            [
                Query(
                    f'sum by (level) (rate(slabd_log_messages_total{{DAEMON,level!="debug"}}{_RATE})) * 60',
                    "{{level}}",
                )
            ],
            width=12,
            height=7,
        ),
        graph(
            "What scraping costs",
            "How long taking the snapshot held the event loop. Rendering is done beside it.",
            "s",
            [Query("slabd_collector_duration_seconds{DAEMON}", "{{instance}}")],
            width=12,
            height=7,
        ),
    ],
)

OVERVIEW: Final = Dashboard(
    uid="slabd-overview",
    title="slabd / Overview",
    description="Is it up, is there memory, are leases quick, does anything go wrong.",
    rows=[GLANCE, MEMORY, LEASES, LANE, CALLS, PROCESS],
)
