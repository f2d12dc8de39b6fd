"""A histogram as plain integers: what a Prometheus histogram is made of, at the price of a list index.

Invariant: `sum(counts) == number of observations`, and `counts[i]` has those above `edges[i - 1]` and not above
`edges[i]`; the last one has those above every edge.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Final

# Every objective of the alerts is an edge, so that a quantile at it is no guess: 10 ms, 30 s.
SECONDS: Final = (
    25e-6, 50e-6, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip
# Leases live from a millisecond to days; what they cost is of no interest here.
HOLD_SECONDS: Final = (1e-3, 5e-3, 0.025, 0.1, 0.5, 1.0, 5.0, 30.0, 60.0, 300.0, 1800.0, 7200.0, 43200.0, 259200.0)
BYTES: Final = tuple(float(64 << 2 * step) for step in range(13))  # 64 bytes to 1 GiB


@dataclass(frozen=True, slots=True)
class Observed:
    """A copy of a histogram."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float

    @property
    def cumulative(self) -> list[tuple[float, int]]:
        """Return, for each edge and for infinity, how many observations are not above it."""
        pairs, total = [], 0
        for edge, count in zip((*self.edges, float("inf")), self.counts, strict=True):
            total += count
            pairs.append((edge, total))
        return pairs


class Histogram:
    """Counts observations by size."""

    __slots__ = ("_counts", "_edges", "_sum")

    def __init__(self, edges: tuple[float, ...]) -> None:
        self._edges = edges
        self._counts = [0] * (len(edges) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one observation."""
        self._counts[bisect_left(self._edges, value)] += 1
        self._sum += value

    def copy(self) -> Observed:
        """Return what has been observed so far."""
        return Observed(self._edges, tuple(self._counts), self._sum)
