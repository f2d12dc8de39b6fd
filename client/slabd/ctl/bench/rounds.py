"""A round, which is what is timed, and the timing itself. Runs in children; knows no peer."""

from __future__ import annotations

import statistics
import time
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from slabd.ctl.bench.messages import Timed

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from slabd.ctl.bench.messages import Place

_CALIBRATION_SECONDS: Final = 0.01
_NANO: Final = 1e-9


def nothing() -> None:
    """Do nothing: the empty round, and the settling of rounds that leave nothing."""


@dataclass(frozen=True, slots=True)
class Work:
    """A peer's work in one case, ready to be done again and again; `settle` comes after a turn and is not timed."""

    round: Callable[[], object]
    settle: Callable[[], object] = nothing


# Opens a peer in a case, which is its number: a size in bytes, a count.
Opening: TypeAlias = "Callable[[Place, int], AbstractContextManager[Work]]"


def time_rounds(work: Work, seconds: float, most: int | None = None) -> Timed:
    """Do the round for so many seconds, at least once and at most so many times, and time each."""
    samples = array("q")
    # The monotonic clock is the machine's: all processes see the same.
    note, clock, do = samples.append, time.monotonic_ns, work.round
    first = clock()
    until, left = first + round(seconds / _NANO), -1 if most is None else most
    while True:
        began = clock()
        do()
        ended = clock()
        note(ended - began)
        left -= 1
        if ended >= until or not left:
            break
    work.settle()
    return Timed(samples.tobytes(), first, ended)


def samples_of(timed: Timed) -> array[int]:
    """Return the nanoseconds of each round."""
    samples = array("q")
    samples.frombytes(timed.samples)
    return samples


def clock_ns() -> float:
    """Return what an empty round takes: the clock's own time, and the call."""
    return statistics.median(samples_of(time_rounds(Work(nothing), _CALIBRATION_SECONDS)))
