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
class Measured:
    """A time, and what it was in each repeat; in whatever unit, as it goes into ratios only."""

    time: float
    repeats: tuple[float, ...]

    @classmethod
    def of_repeats(cls, times: Sequence[float]) -> Measured:
        """Return the median of the repeats."""
        return cls(statistics.median(times), tuple(times))


@dataclass(frozen=True, slots=True)
class Summary:
    """What many rounds took. Times are in microseconds."""

    median_us: float
    p99_us: float
    rounds: int
    repeat_medians_us: tuple[float, ...]

    @property
    def measured(self) -> Measured:
        """What goes into a ratio."""
        return Measured(self.median_us, self.repeat_medians_us)

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


def ratio(ours: Measured, theirs: Measured) -> dict[str, Value]:
    """Return the ratio of two times, and the least and the largest that it was in one repeat."""
    if theirs.time <= 0:
        return {"ratio": None, "ratio_range": None}
    single = [mine / other for mine, other in zip(ours.repeats, theirs.repeats, strict=False) if other > 0]
    whole = ours.time / theirs.time
    # A ratio of medians may lie outside the ratios of the repeats.
    return {"ratio": _rounded(whole), "ratio_range": (_rounded(min([*single, whole])), _rounded(max([*single, whole])))}


def per_thousand(seconds: float, count: int) -> float | None:
    """Return the seconds for each 1000 of a count."""
    return round(1000 * seconds / count, 6) if count else None


def _microseconds(nanoseconds: float, clock_ns: float) -> float:
    return max(nanoseconds - clock_ns, 0.0) / _MICROSECOND


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
