"""Sessions and leases: who comes and goes, for how long, and how what they leave is taken back."""

from __future__ import annotations

from typing import Final

from deploy.grafana.boards.layout import Dashboard, Row
from deploy.grafana.boards.panels import graph, heatmap
from deploy.grafana.boards.queries import Query, heat, quantiles

_RATE: Final = "[$__rate_interval]"

SESSIONS: Final = Row(
    "Sessions",
    [
        graph(
            "Sessions",
            "By state: active, in quarantine (a living process may still touch its memory), or being taken apart.",
            "short",
            [Query("sum by (state) (slabd_sessions{HEAP})", "{{state}}")],
            drawn="stack",
        ),
        graph(
            "Sessions that begin and end",
            "Begun, and ended by cause, a minute. client_died is a process that was gone without a word.",
            "short",
            [
                Query(f"sum(rate(slabd_sessions_started_total{{HEAP}}{_RATE})) * 60", "started"),
                Query(f"sum by (cause) (rate(slabd_sessions_ended_total{{HEAP}}{_RATE})) * 60", "{{cause}}"),
            ],
        ),
        graph(
            "Largest session",
            "The share of the heap that the session with most has leased. slabctl sessions says who it is.",
            "percentunit",
            [Query("slabd_session_max_used_bytes{HEAP} / slabd_heap_size_bytes{HEAP}")],
            defaults={"max": 1},
        ),
    ],
)

LEASES: Final = Row(
    "Leases",
    [
        graph("Leases held", "Leases that somebody has now.", "short", [Query("slabd_leases{HEAP}")]),
        graph(
            "Leases that end",
            "By cause.",
            "ops",
            [Query(f"sum by (cause) (rate(slabd_leases_ended_total{{HEAP}}{_RATE}))", "{{cause}}")],
            drawn="stack",
        ),
        graph(
            "Requests",
            "Requests that came to the daemon, and blocks granted: one may be for many. What caches serve never comes.",
            "ops",
            [
                Query(f"sum(rate(slabd_lease_requests_total{{HEAP}}{_RATE}))", "requests"),
                Query(f"sum(rate(slabd_leases_granted_total{{HEAP}}{_RATE}))", "blocks granted"),
            ],
        ),
        heatmap(
            "How long leases are held",
            "From grant to end, by any cause. What is held for hours among what is held for seconds may be a leak.",
            "s",
            heat("slabd_lease_hold_duration_seconds"),
            width=12,
        ),
        graph(
            "How long requests queue",
            "Of those that had to: until they were granted, or timed out.",
            "s",
            quantiles("slabd_lease_wait_duration_seconds"),
            width=12,
        ),
    ],
)

RECLAIM: Final = Row(
    "Taking back",
    [
        graph(
            "Bytes that come back",
            "By what ended the lease, or the session, that had them.",
            "Bps",
            [Query(f"sum by (cause) (rate(slabd_reclaimed_bytes_total{{HEAP}}{_RATE}))", "{{cause}}")],
            drawn="stack",
            width=12,
        ),
        graph(
            "How long taking back takes",
            "From a session's end until everything it had is free again.",
            "s",
            quantiles("slabd_reclaim_duration_seconds"),
            width=12,
        ),
    ],
)

HANDOFF: Final = Row(
    "Hand-off",
    [
        graph(
            "Handles made and opened",
            "Stale opens came too late, or twice: their block has been given back, or all its opens were used.",
            "ops",
            [
                Query(f"sum(rate(slabd_shares_total{{HEAP}}{_RATE}))", "made"),
                Query(f"sum by (result) (rate(slabd_opens_total{{HEAP}}{_RATE}))", "opened, {{result}}"),
            ],
            width=12,
        ),
        graph(
            "Handles that expired",
            "A minute: handles that were not opened as often as promised in their time to live.",
            "short",
            [Query(f"sum(rate(slabd_handles_expired_total{{HEAP}}{_RATE})) * 60", "expired")],
            width=12,
        ),
    ],
)

SESSIONS_BOARD: Final = Dashboard(
    uid="slabd-sessions",
    title="slabd / Sessions and leases",
    description="Who comes and goes, for how long, and how what they leave is taken back.",
    rows=[SESSIONS, LEASES, RECLAIM, HANDOFF],
)
