"""From samples to the numbers of a row: medians, p99, ratios and how far they spread. Pure.

Samples are nanoseconds, one for each round, in as many repeats as the peers took turns. Medians and p99 are of all
rounds together; the spread of a ratio is that of the repeats, each of which is a comparison of its own.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slabd.ctl.bench.model import Value

_MICROSECOND: Final = 1000
_P99: Final = 0.99


@dataclass(frozen=True, slots=True)
class Summary:
    """What many rounds took. Times are in microseconds."""

    median_us: float
    p99_us: float
    rounds: int
    repeat_medians_us: tuple[float, ...]

    def values(self) -> dict[str, Value]:
        """Return the values of a row."""
        return {"median_us": round(self.median_us, 3), "p99_us": round(self.p99_us, 3), "rounds": self.rounds}


def summarize(repeats: Sequence[Sequence[int]], clock_ns: float = 0) -> Summary | None:
    """Return the summary of the repeats, `clock_ns` taken off each round; None when no round was made."""
    with_rounds = [each for each in repeats if len(each)]
    every = sorted(sample for each in with_rounds for sample in each)
    if not every:
        return None
    return Summary(
        _microseconds(statistics.median(every), clock_ns),
        _microseconds(percentile(every, _P99), clock_ns),
        len(every),
        tuple(_microseconds(statistics.median(each), clock_ns) for each in with_rounds),
    )


def percentile(ordered: Sequence[int], part: float) -> int:
    """Return the value that `part` of the ordered samples do not exceed: the nearest rank, so the largest of a few."""
    rank = -(-len(ordered) * round(part * 1000) // 1000)
    return ordered[max(rank, 1) - 1]


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Value]:
    """Return what the medians of the repeats of two peers make: the ratio, and the least and largest of one repeat."""
    pairs = [(mine, other) for mine, other in zip(ours, theirs, strict=False) if other > 0]
    if not pairs:
        return {"ratio": None, "ratio_range": None}
    single = [mine / other for mine, other in pairs]
    whole = statistics.median(mine for mine, _ in pairs) / statistics.median(other for _, other in pairs)
    # The quotient of two medians may lie outside the quotients of the pairs.
    low, high = min(*single, whole), max(*single, whole)
    return {"ratio": _rounded(whole), "ratio_range": (_rounded(low), _rounded(high))}


def rate(counts: Sequence[int], seconds: Sequence[float]) -> float:
    """Return how many a second, the median of the repeats; 0 when there was no time."""
    rates = [count / time for count, time in zip(counts, seconds, strict=True) if time > 0]
    return statistics.median(rates) if rates else 0.0


def per_thousand(seconds: float, count: int) -> float | None:
    """Return the seconds for each 1000 of a count."""
    return round(1000 * seconds / count, 6) if count else None


def _microseconds(nanoseconds: float, clock_ns: float) -> float:
    return max(nanoseconds - clock_ns, 0.0) / _MICROSECOND


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
