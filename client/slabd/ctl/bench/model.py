"""What a benchmark says: figures, their cases and peers, and the rows that came of them. Pure, plain, frozen.

A figure is one table. Each of its rows belongs to a case (a size, a number of clients) and to a peer; its values stand
under the keys of the figure's quantities, None where there is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final, TypeAlias

OURS: Final = "slabd"
Value: TypeAlias = "float | tuple[float, float] | None"
Values: TypeAlias = Mapping[str, Value]


class Unit(Enum):
    """What a number is, and so how it is written."""

    MICROSECONDS = "microseconds"
    SECONDS = "seconds"
    PER_SECOND = "a second"
    COUNT = "a count"
    TIMES = "a ratio"
    RANGE = "two ratios"
    PERCENT = "percent of a core"
    BYTES = "bytes"


@dataclass(frozen=True, slots=True)
class Quantity:
    """A column: its key in JSON, its title, its unit."""

    key: str
    title: str
    unit: Unit


@dataclass(frozen=True, slots=True)
class Case:
    """What is varied: as text, and as the number it is."""

    label: str
    number: int


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is measured, and what exactly it does in one round."""

    name: str
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One table to be."""

    name: str
    title: str
    what: str
    case_title: str
    case_key: str
    cases: tuple[Case, ...]
    peers: tuple[Peer, ...]
    quantities: tuple[Quantity, ...]
    steps: int


@dataclass(frozen=True, slots=True)
class Row:
    """What came of one case and peer."""

    case: Case
    peer: str
    values: Values


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A peer that could not take part, in the case of that label or in all, and why."""

    peer: str
    reason: str
    case: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One table."""

    figure: Figure
    rows: tuple[Row, ...]
    left_out: tuple[LeftOut, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One run."""

    outcomes: tuple[Outcome, ...]
    machine: Mapping[str, str | int]
    quick: bool
    repeats: int
    seconds: float
