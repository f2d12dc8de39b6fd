"""Where panels turn yellow and red: what the alerts say, held equal by tests/contract/test_dashboards.py."""

from __future__ import annotations

from typing import Any, Final

GREEN: Final = {"color": "green", "value": None}

# By the alert that fires above it.
RED_ABOVE: Final = {
    "SlabdHeapFull": 0.95,
    "SlabdHeapFragmented": 0.8,
    "SlabdLeasesRejected": 0.01,
    "SlabdWaitersStuck": 30,
    "SlabdLeaseLatencyHigh": 0.01,
    "SlabdRpcErrors": 0.01,
    "SlabdQuarantineStuck": 0.1,
    "SlabdEventLoopStalled": 0.1,
    "SlabdFileDescriptors": 0.8,
}
_YELLOW_SHARE: Final = 0.8


def above(alert: str) -> dict[str, Any]:
    """Be red above what fires an alert, and yellow on the way there."""
    red = RED_ABOVE[alert]
    steps = [GREEN, {"color": "yellow", "value": round(red * _YELLOW_SHARE, 6)}, {"color": "red", "value": red}]
    return {"mode": "absolute", "steps": steps}


def below_one() -> dict[str, Any]:
    """Be red at 0 and green from 1 on: for what has to be up."""
    return {"mode": "absolute", "steps": [{"color": "red", "value": None}, {"color": "green", "value": 1}]}


def none() -> dict[str, Any]:
    """Be nothing but blue: for figures that are neither good nor bad."""
    return {"mode": "absolute", "steps": [{"color": "blue", "value": None}]}
