"""The core's histogram: every observation is in exactly one bucket."""

from __future__ import annotations

import pytest

from slabd_server.core.histogram import BYTES, HOLD_SECONDS, SECONDS, Histogram


def test_observations_are_counted_up_to_their_edge() -> None:
    """An edge belongs to the bucket below it, as Prometheus has it."""
    histogram = Histogram((1.0, 2.0))
    for value in (0.0, 1.0, 1.5, 2.0, 2.5):
        histogram.observe(value)
    assert histogram.copy().cumulative == [(1.0, 2), (2.0, 4), (float("inf"), 5)]
    assert histogram.copy().sum == 7.0


def test_a_copy_does_not_change() -> None:
    """What happens afterwards is not in it."""
    histogram = Histogram((1.0,))
    before = histogram.copy()
    histogram.observe(0.5)
    assert before.counts == (0, 0)
    assert histogram.copy().counts == (1, 0)


@pytest.mark.parametrize("edges", [SECONDS, HOLD_SECONDS, BYTES])
def test_edges_ascend(edges: tuple[float, ...]) -> None:
    """Buckets that do not ascend would count wrongly."""
    assert list(edges) == sorted(set(edges))


@pytest.mark.parametrize("objective", [0.01, 30.0])
def test_objectives_are_edges(objective: float) -> None:
    """What an alert compares with is an edge, so no quantile is guessed across it."""
    assert objective in SECONDS
