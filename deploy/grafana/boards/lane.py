"""The row of the Overview about lanes: what clients have at hand, and what they post without asking."""

from __future__ import annotations

from typing import Final

from deploy.grafana.boards.layout import Row
from deploy.grafana.boards.panels import graph
from deploy.grafana.boards.queries import Query

_RATE: Final = "[$__rate_interval]"
_HITS: Final = f"sum(rate(slabd_cache_hits_total{{HEAP}}{_RATE}))"
_MISSES: Final = f"sum(rate(slabd_cache_misses_total{{HEAP}}{_RATE}))"

LANE: Final = Row(
    "Lane",
    [
        graph(
            "Hit ratio of caches",
            "The share of leases that clients had at hand, and so took without asking the daemon. Clients count it.",
            "percentunit",
            [Query(f"{_HITS} / ({_HITS} + {_MISSES} > 0)", "hits")],
            defaults={"max": 1},
        ),
        graph(
            "Leases from caches",
            "Leases that clients had at hand (hits), and those for which they had to ask the daemon (misses).",
            "ops",
            [Query(_HITS, "hits"), Query(_MISSES, "misses")],
        ),
        graph(
            "Cached",
            "The share of each heap that lies idle in clients' caches. It counts as available, for it can be recalled.",
            "percentunit",
            [Query('slabd_heap_state_bytes{HEAP,state="cached"} / ignoring (state) slabd_heap_size_bytes{HEAP}')],
            defaults={"max": 1},
        ),
        graph(
            "Posted",
            "Entries that the daemon read from lanes, by what they say. A lease is one of the misses.",
            "ops",
            [Query(f"sum by (op) (rate(slabd_lane_operations_total{{HEAP}}{_RATE}))", "{{op}}")],
            width=12,
        ),
        graph(
            "Doorbells",
            "Times that clients woke the daemon, which sleeps when it has nothing to do, beside what they posted.",
            "ops",
            [
                Query(f"sum(rate(slabd_lane_doorbells_total{{HEAP}}{_RATE}))", "doorbells"),
                Query(f"sum(rate(slabd_lane_operations_total{{HEAP}}{_RATE}))", "entries"),
            ],
            width=12,
        ),
    ],
)
