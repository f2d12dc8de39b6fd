"""From samples to medians, p99 and ratios."""

from __future__ import annotations

import pytest

from slabd.ctl.bench.statistics import Measured, per_thousand, percentile, ratio, summarize


@pytest.mark.parametrize(
    ("count", "p99"),
    [(1, 1), (2, 2), (99, 99), (100, 99), (101, 100), (200, 198), (1000, 990)],
)
def test_p99_is_the_nearest_rank(count: int, p99: int) -> None:
    """Of fewer than 100 it is the largest."""
    assert percentile(list(range(1, count + 1)), 0.99) == p99


def test_a_summary_is_of_all_rounds_and_of_each_repeat() -> None:
    """In microseconds, from nanoseconds."""
    summary = summarize([[3000, 1000, 2000], [9000]])
    assert summary is not None
    assert (summary.median_us, summary.p99_us, summary.rounds) == (2.5, 9.0, 4)
    assert summary.repeat_medians_us == (2.0, 9.0)
    assert summary.values() == {"median_us": 2.5, "p99_us": 9.0, "rounds": 4}


def test_the_clock_is_taken_off_and_nothing_takes_less_than_no_time() -> None:
    """An empty round may be faster than the median empty round."""
    summary = summarize([[50, 1050]], 100)
    assert summary is not None
    assert (summary.median_us, summary.p99_us, summary.repeat_medians_us) == (0.45, 0.95, (0.45,))
    nothing = summarize([[50]], 100)
    assert nothing is not None
    assert nothing.median_us == 0.0


def test_without_rounds_there_is_no_summary() -> None:
    """A repeat without rounds is passed over, too."""
    assert summarize([]) is None
    assert summarize([[], []]) is None
    some = summarize([[], [1000]])
    assert some is not None
    assert some.repeat_medians_us == (1.0,)


def test_a_ratio_has_the_range_of_its_repeats() -> None:
    """Each repeat is a comparison of its own."""
    found = ratio(Measured(20.0, (20.0, 30.0, 10.0)), Measured(10.0, (10.0, 10.0, 10.0)))
    assert found == {"ratio": 2.0, "ratio_range": (1.0, 3.0)}


def test_the_range_of_a_ratio_contains_it() -> None:
    """Even when the medians are of other repeats."""
    found = ratio(Measured(40.0, (20.0,)), Measured(10.0, (10.0,)))
    assert found == {"ratio": 4.0, "ratio_range": (2.0, 4.0)}


def test_no_ratio_to_nothing() -> None:
    """A floor may be too fast for the clock."""
    assert ratio(Measured(5.0, (5.0,)), Measured(0.0, (0.0,))) == {"ratio": None, "ratio_range": None}
    assert ratio(Measured(5.0, (5.0,)), Measured(5.0, (0.0,))) == {"ratio": 1.0, "ratio_range": (1.0, 1.0)}


def test_what_is_measured_in_repeats_has_their_median() -> None:
    """For rates, which are one number each repeat."""
    assert Measured.of_repeats([1.0, 9.0, 2.0]) == Measured(2.0, (1.0, 9.0, 2.0))


def test_seconds_for_a_thousand() -> None:
    """None of nothing."""
    assert per_thousand(0.5, 250) == 2.0
    assert per_thousand(0.5, 0) is None
