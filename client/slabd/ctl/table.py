"""Aligned tables. Nothing is ever cut: a long value makes its column wide. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from slabd.ctl.terminal import PLAIN, Style, printable, width

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

Row = TypeVar("Row")
_GAP: Final = "  "


@dataclass(frozen=True, slots=True)
class Column(Generic[Row]):
    """A column: its title and what it shows of a row. Numbers stand `right`."""

    title: str
    value: Callable[[Row], str]
    right: bool = False
    paint: Callable[[Style, Row, str], str] | None = None


def table(columns: Sequence[Column[Row]], rows: Iterable[Row], style: Style = PLAIN) -> list[str]:
    """Return the lines of a table, its titles first."""
    shown = [(row, [printable(column.value(row)) for column in columns]) for row in rows]
    widths = [
        max(width(column.title), *(width(cells[at]) for _, cells in shown), 0) for at, column in enumerate(columns)
    ]
    titles = [_pad(column.title, wide, right=column.right) for column, wide in zip(columns, widths, strict=True)]
    lines = [style.dim(_GAP.join(titles).rstrip())]
    for row, cells in shown:
        padded = (
            _paint(column, style, row, _pad(cell, wide, right=column.right))
            for column, cell, wide in zip(columns, cells, widths, strict=True)
        )
        lines.append(_GAP.join(padded).rstrip())
    return lines


def facts(pairs: Iterable[tuple[str, str]], style: Style = PLAIN) -> list[str]:
    """Return lines of a name and a value each, the values below each other."""
    pairs = list(pairs)
    wide = max((width(name) for name, _ in pairs), default=0)
    return [f"{style.dim(_pad(name, wide, right=False))}{_GAP}{value}".rstrip() for name, value in pairs]


def _pad(text: str, wide: int, *, right: bool) -> str:
    blank = " " * (wide - width(text))
    return blank + text if right else text + blank


def _paint(column: Column[Row], style: Style, row: Row, text: str) -> str:
    return text if column.paint is None else column.paint(style, row, text)
