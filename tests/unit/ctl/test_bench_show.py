"""Tables and JSON of the benchmark, and what one sees meanwhile."""

from __future__ import annotations

import io
import json
import re

import pytest

from slabd.ctl.bench.catalogue import figures
from slabd.ctl.bench.model import OURS, Case, Figure, LeftOut, Outcome, Peer, Quantity, Report, Row, Unit, Value
from slabd.ctl.bench.options import choose
from slabd.ctl.bench.progress import Lines, Region, nothing, region_of
from slabd.ctl.bench.show import cell, legend, number, outcome_lines, outcome_plain, report_plain
from slabd.ctl.plain import to_json
from slabd.ctl.terminal import PLAIN, width

SMALL, LARGE = Case("64 B", 64), Case("1 MiB", 1 << 20)
FIGURE = Figure(
    name="untouched",
    title="Lease and release",
    what="A block.",
    case_title="SIZE",
    case_key="bytes",
    cases=(SMALL, LARGE),
    peers=(Peer(OURS, "lease(), release()"), Peer("other", "the same " * 20), Peer("absent", "nothing")),
    quantities=(
        Quantity("median_us", "MEDIAN", Unit.MICROSECONDS),
        Quantity("calls_per_round", "CALLS", Unit.COUNT),
        Quantity("ratio", "SLABD/PEER", Unit.TIMES),
        Quantity("ratio_range", "RANGE", Unit.RANGE),
        Quantity("never", "NEVER", Unit.COUNT),
    ),
    steps=4,
)
OUTCOME = Outcome(
    FIGURE,
    (
        Row(SMALL, OURS, {"median_us": 1234.5, "calls_per_round": 2.0, "ratio": None, "ratio_range": None}),
        Row(SMALL, "other", {"median_us": 0.5, "ratio": 2469.0, "ratio_range": (2000.0, 2600.5), "rounds": 7}),
        Row(LARGE, OURS, {"median_us": 40.25, "calls_per_round": 0.0}),
    ),
    (LeftOut("absent", "not installed: pip install it"), LeftOut("other", "no room", "1 MiB")),
    1.5,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (2.0, "2"), (0.0214, "0.021"), (0.5, "0.50"), (9.5, "9.50"), (40.25, "40.2"), (134500.0, "134,500")],
)
def test_numbers_have_the_digits_that_matter(value: float, text: str) -> None:
    """And whole ones none behind the point."""
    assert number(value) == text


def test_values_have_their_units_and_what_is_absent_is_a_dash() -> None:
    """One form for each unit."""
    assert [cell(unit, 2.5) for unit in Unit if unit is not Unit.RANGE] == [
        "2.50 us",
        "2.500 s",
        "2",
        "2.50",
        "2.50",
        "2.50 %",
        "2 B",
    ]
    assert (cell(Unit.TIMES, None), cell(Unit.RANGE, (0.5, 12.0))) == ("-", "0.50-12.0")


def test_a_table_says_who_did_what_and_who_did_not() -> None:
    """A case stands once, and a quantity that nobody has is no column."""
    lines = outcome_lines(OUTCOME)
    assert lines[1:6] == [
        "Lease and release (untouched)",
        "A block.",
        "",
        " SIZE  PEER     MEDIAN  CALLS  SLABD/PEER        RANGE",
        " 64 B  slabd  1,234 us      2           -            -",
    ]
    assert lines[6].split() == ["other", "0.50", "us", "-", "2,469", "2,000-2,600"]
    text = "\n".join(lines)
    assert "NEVER" not in text
    assert "slabd   lease(), release()" in text
    assert "absent  left out: not installed: pip install it" in text
    assert "other   left out (size 1 MiB): no room" in text
    assert "absent  nothing" not in text
    assert "gRPC calls in each round of slabd, by its daemon's own counters: 0 to 2" in lines


def test_lines_fit_the_terminal() -> None:
    """What peers do is wrapped; it is a sentence, not a number."""
    assert max(width(line) for line in [*outcome_lines(OUTCOME, PLAIN, 80), *legend(PLAIN, 80)]) < 80


@pytest.mark.parametrize("figure", figures(choose()), ids=lambda figure: str(figure.name))
def test_every_figure_fits_into_80_columns(figure: Figure) -> None:
    """With numbers as large as they get."""
    large: dict[Unit, Value] = {
        Unit.RANGE: (10_000.0, 20_000.0),
        Unit.SECONDS: 99.9,
        Unit.PERCENT: 99.9,
        Unit.BYTES: 9_999.0,
    }
    values: dict[str, Value] = {quantity.key: large.get(quantity.unit, 99_999.0) for quantity in figure.quantities}
    rows = tuple(Row(case, peer.name, values) for case in figure.cases for peer in figure.peers)
    assert max(width(line) for line in outcome_lines(Outcome(figure, rows), PLAIN, 80)) <= 80


def test_every_row_of_the_json_has_every_quantity() -> None:
    """Null where there is none, and what has no column beside them."""
    plain = json.loads(to_json(outcome_plain(OUTCOME)))
    assert plain["rows"][1] == {
        "bytes": 64,
        "peer": "other",
        "median_us": 0.5,
        "calls_per_round": None,
        "ratio": 2469.0,
        "ratio_range": [2000.0, 2600.5],
        "never": None,
        "rounds": 7,
    }
    assert plain["units"]["median_us"] == "microseconds"
    assert plain["left_out"][1] == {"peer": "other", "reason": "no room", "case": "1 MiB"}
    assert [peer["name"] for peer in plain["peers"]] == [OURS, "other", "absent"]


def test_the_json_says_where_and_how_it_was_measured() -> None:
    """One object."""
    report = Report(outcomes=(OUTCOME,), machine={"cpus": 2}, quick=True, repeats=3, seconds=1.23456)
    plain = report_plain(report)
    assert {key: plain[key] for key in ("quick", "repeats", "seconds", "machine")} == {
        "quick": True,
        "repeats": 3,
        "seconds": 1.235,
        "machine": {"cpus": 2},
    }
    assert list(plain) == ["quick", "repeats", "seconds", "machine", "figures"]


def test_a_region_shows_progress_and_leaves_the_tables() -> None:
    """And the cursor is back at the end."""
    stream = io.StringIO()
    region = Region(stream, PLAIN, [FIGURE], outcome_lines)
    region.begin(FIGURE)
    assert "1 of 1: Lease and release" in stream.getvalue()
    assert "0 %" in stream.getvalue()
    for _ in range(FIGURE.steps + 1):
        region.step("size 64 B: slabd")
    region.finish(OUTCOME)
    region.close()
    assert "Lease and release (untouched)\n" in stream.getvalue()
    assert stream.getvalue().endswith("\x1b[?25h")


def test_a_region_says_what_is_going_on() -> None:
    """How far, how long, what, who."""
    text = "\n".join(region_of("3 of 8: Write", "size 64 B: slabd", (1, 4), 12.3, PLAIN))
    for part in ("25 %", "12 s", "3 of 8: Write", "size 64 B: slabd"):
        assert part in text


def test_a_pipe_gets_the_tables_alone_and_json_not_even_those() -> None:
    """No escape sequences, no progress."""
    for show, expected in ((outcome_lines, outcome_lines(OUTCOME, PLAIN, 100)), (nothing, [])):
        stream = io.StringIO()
        lines = Lines(stream, show)
        lines.begin(FIGURE)
        lines.step("x")
        lines.finish(OUTCOME)
        lines.close()
        assert stream.getvalue() == "".join(f"{line}\n" for line in expected)
        assert not re.search("\x1b", stream.getvalue())
