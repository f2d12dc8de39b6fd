"""How a benchmark is shown: a table for each figure with what its peers do, or one JSON object. Pure."""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from slabd.ctl.bench.model import OURS, Unit
from slabd.ctl.table import Column, table
from slabd.ctl.terminal import PLAIN
from slabd.ctl.units import human_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from slabd.ctl.bench.model import Figure, Outcome, Quantity, Report, Row, Value
    from slabd.ctl.plain import Json
    from slabd.ctl.terminal import Style

LEGEND: Final = (
    "SLABD/PEER is slabd's time over the peer's, in the same run: below 1, slabd is faster. RANGE is the least and the "
    "largest of one repeat. CALLS are the gRPC calls of one round, by the daemon's own counters. P99 of fewer than 100 "
    "rounds is the longest of them. The clock, and the empty call that is timed with it, are taken off."
)
_NONE: Final = "-"
_FINE: Final = 0.1
_SMALL: Final = 10
_MIDDLE: Final = 100
_INDENT: Final = "  "


def number(value: float) -> str:
    """Return a number with three digits that matter, thousands apart."""
    if value == int(value) and value < _SMALL:
        return str(int(value))
    if value < _FINE:
        return f"{value:.3f}"
    if value < _SMALL:
        return f"{value:.2f}"
    return f"{value:.1f}" if value < _MIDDLE else f"{value:,.0f}"


def cell(unit: Unit, value: Value) -> str:
    """Return a value as it stands in a table."""
    if value is None:
        return _NONE
    if isinstance(value, tuple):
        return "-".join(number(each) for each in value)
    return _FORMS[unit](value)


_FORMS: Final[dict[Unit, Callable[[float], str]]] = {
    Unit.MICROSECONDS: lambda value: f"{number(value)} us",
    Unit.SECONDS: lambda value: f"{value:.3f} s",
    Unit.PER_SECOND: lambda value: f"{value:,.0f}",
    Unit.COUNT: number,
    Unit.TIMES: number,
    Unit.RANGE: number,
    Unit.PERCENT: lambda value: f"{value:.2f} %",
    Unit.BYTES: lambda value: human_bytes(round(value)),
}


def outcome_lines(outcome: Outcome, style: Style = PLAIN, columns: int = 80) -> list[str]:
    """Return a figure as lines: title, table, who did what, who did not take part and why."""
    figure = outcome.figure
    lines = ["", style.bold(f"{figure.title} ({figure.name})"), *_wrapped(figure.what, "", columns)]
    lines += ["", *table(_columns(figure, outcome.rows), outcome.rows, style), ""]
    lines += _calls(outcome)
    wide = max(len(peer.name) for peer in figure.peers) + len(_INDENT)
    present = {row.peer for row in outcome.rows}
    for peer in figure.peers:
        if peer.name in present:
            lines += _wrapped(peer.what, peer.name.ljust(wide), columns)
    for each in outcome.left_out:
        where = f" ({figure.case_title.lower()} {each.case})" if each.case else ""
        warning = _wrapped(f"left out{where}: {each.reason}", each.peer.ljust(wide), columns)
        lines += [style.warn(line) for line in warning]
    return lines


def report_plain(report: Report) -> dict[str, Json]:
    """Return a run for `-o json`."""
    return {
        "quick": report.quick,
        "repeats": report.repeats,
        "seconds": round(report.seconds, 3),
        "machine": dict(report.machine),
        "figures": [outcome_plain(each) for each in report.outcomes],
    }


def outcome_plain(outcome: Outcome) -> dict[str, Json]:
    """Return a figure for `-o json`: each row has the case's number, the peer, and every quantity of the figure."""
    figure = outcome.figure
    return {
        "name": figure.name,
        "title": figure.title,
        "what": figure.what,
        "seconds": round(outcome.seconds, 3),
        "units": {quantity.key: quantity.unit.value for quantity in figure.quantities},
        "peers": [{"name": peer.name, "what": peer.what} for peer in figure.peers],
        "rows": [_row_plain(figure, row) for row in outcome.rows],
        "left_out": [asdict(each) for each in outcome.left_out],
    }


def legend(style: Style = PLAIN, columns: int = 80) -> list[str]:
    """Return the lines that say how to read the tables."""
    return ["", *(style.dim(line) for line in _wrapped(LEGEND, "", columns))]


def _calls(outcome: Outcome) -> Iterator[str]:
    """Say what the counters said of slabd's rounds; nothing where nobody counted."""
    counts = [row.values.get("calls_per_round") for row in outcome.rows if row.peer == OURS]
    known = [count for count in counts if isinstance(count, int | float)]
    if known:
        shown = " to ".join(dict.fromkeys((number(min(known)), number(max(known)))))
        yield f"gRPC calls in each round of slabd, by its daemon's own counters: {shown}"
        yield ""


def _row_plain(figure: Figure, row: Row) -> dict[str, Json]:
    values = {quantity.key: _plain(row.values.get(quantity.key)) for quantity in figure.quantities}
    extra = {key: _plain(value) for key, value in row.values.items()}
    return {figure.case_key: row.case.number, "peer": row.peer, **values, **extra}


def _plain(value: Value) -> Json:
    return list(value) if isinstance(value, tuple) else value


def _columns(figure: Figure, rows: tuple[Row, ...]) -> list[Column[Row]]:
    first = {id(row) for at, row in enumerate(rows) if not at or rows[at - 1].case != row.case}
    shown = [
        quantity for quantity in figure.quantities if any(row.values.get(quantity.key) is not None for row in rows)
    ]
    return [
        Column(figure.case_title, lambda row: row.case.label if id(row) in first else "", right=True),
        Column("PEER", lambda row: row.peer, paint=_paint),
        *(_column(quantity) for quantity in shown),
    ]


def _column(quantity: Quantity) -> Column[Row]:
    return Column(
        quantity.title, lambda row: cell(quantity.unit, row.values.get(quantity.key)), right=True, paint=_paint
    )


def _paint(style: Style, row: Row, text: str) -> str:
    return style.bold(text) if row.peer == OURS else text


def _wrapped(text: str, head: str, columns: int) -> Iterator[str]:
    room = max(columns - 1, 40)
    yield from textwrap.wrap(
        text,
        room,
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_long_words=False,
        break_on_hyphens=False,
    )
