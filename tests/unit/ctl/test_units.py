"""Numbers as people read and write them."""

from __future__ import annotations

import pytest

from slabd.ctl import units

MIB = 1 << 20


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1025, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (64 * MIB, "64 MiB"),
        (64 * MIB + 1, "64.0 MiB"),
        (MIB - 1, "1.0 MiB"),
        (1 << 40, "1 TiB"),
        (2**64 - 1, "16.0 EiB"),
    ],
)
def test_sizes_are_exact_or_have_one_decimal(count: int, expected: str) -> None:
    """A size without decimals is exact."""
    assert units.human_bytes(count) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.0, "0 ms"),
        (0.0404, "40 ms"),
        (3.21, "3.2 s"),
        (45.9, "45 s"),
        (240, "4 min"),
        (7500, "2 h 5 min"),
        (7200, "2 h"),
        (4 * 3600 + 3 * 86400, "3 d 4 h"),
    ],
)
def test_ages_have_the_unit_that_fits(seconds: float, expected: str) -> None:
    """Nobody wants to read 7,500 s."""
    assert units.human_age(seconds) == expected


def test_plurals() -> None:
    """One file, two batches."""
    assert [units.plural(1, "file"), units.plural(2000, "file"), units.plural(2, "batch")] == [
        "1 file",
        "2,000 files",
        "2 batches",
    ]


def test_a_share_is_100_percent_only_when_it_is_all() -> None:
    """Rounding down keeps the last file visible."""
    assert [units.percent(999, 1000), units.percent(1000, 1000), units.percent(0, 0)] == ["99 %", "100 %", "-"]


def test_rates_are_in_gigabytes() -> None:
    """Small rates do not become 0.00."""
    assert [units.human_rate(10**9, 2), units.human_rate(10**6, 1), units.human_rate(1, 0)] == [
        "0.50 GB/s",
        "0.001 GB/s",
        "- GB/s",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4096", 4096), ("64MiB", 64 * MIB), ("64M", 64 * MIB), ("1 gib", 1 << 30), ("2TiB", 2 << 40), ("32kb", 32768)],
)
def test_sizes_can_be_written_with_units(text: str, expected: int) -> None:
    """The daemon's own way of writing them, and the short one."""
    assert units.parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "x", "-1", "1.5MiB", "64 MiB/s", "0x10"])
def test_what_is_no_size_is_refused(text: str) -> None:
    """With the text, and with what to write instead."""
    with pytest.raises(ValueError, match="is no size: write bytes"):
        units.parse_size(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("30", 30.0), ("30s", 30.0), ("500ms", 0.5), ("2min", 120.0), ("2m", 120.0), ("1.5h", 5400.0)],
)
def test_times_can_be_written_with_units(text: str, expected: float) -> None:
    """Seconds when there is no unit."""
    assert units.parse_seconds(text) == expected


@pytest.mark.parametrize("text", ["", "-1", "nan", "inf", "1d", "3 weeks"])
def test_what_is_no_time_is_refused(text: str) -> None:
    """With the text, and with what to write instead."""
    with pytest.raises(ValueError, match="is no time: write seconds"):
        units.parse_seconds(text)
