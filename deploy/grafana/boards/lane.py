"""The row of the Overview about lanes: what clients post without asking."""

from __future__ import annotations

from typing import Final

from deploy.grafana.boards.layout import Row
from deploy.grafana.boards.panels import graph
from deploy.grafana.boards.queries import Query

_RATE: Final = "[$__rate_interval]"

LANE: Final = Row(
    "Lane",
    [
        graph(
            "Posted",
            "Entries that the daemon read from lanes, by what they say: a lease is a miss of the client's own cache.",
            "ops",
            [Query(f"sum by (op) (rate(slabd_lane_operations_total{{HEAP}}{_RATE}))", "{{op}}")],
        ),
        graph(
            "Doorbells",
            "Times that clients had to wake the daemon. Many for each entry is a daemon that sleeps between them.",
            "ops",
            [Query(f"sum(rate(slabd_lane_doorbells_total{{HEAP}}{_RATE}))", "doorbells")],
        ),
        graph(
            "Cached",
            "The share of each heap that lies idle in clients' caches. It counts as available, for it can be recalled.",
            "percentunit",
            [Query('slabd_heap_state_bytes{HEAP,state="cached"} / ignoring (state) slabd_heap_size_bytes{HEAP}')],
            defaults={"max": 1},
        ),
    ],
)
