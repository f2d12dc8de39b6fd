"""What the benchmark is told to do, in one frozen record, and how long it takes for it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from slabd.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Sequence

NAMES: Final = ("untouched", "miss", "grpc", "write", "handoff", "clients", "calls", "idle", "live")
UNTOUCHED_SIZES: Final = (64, 4 << 10, 64 << 10, 1 << 20, 16 << 20)
QUICK_SIZES: Final = (64, 64 << 10, 16 << 20)
WRITE_SIZES: Final = (1 << 20, 16 << 20)
LARGEST_SIZE: Final = 64 << 20
# The largest block, the frames on their way, and the many small blocks of `live` have room at the same time.
HEAP_BYTES: Final = 128 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long each thing takes. Times are in seconds; a turn is the time that one peer has before the next comes."""

    repeats: int
    turn_seconds: float
    write_seconds: float
    handoff_seconds: float
    crowd_seconds: float
    warm_up_seconds: float
    steady_leases: int
    steady_seconds: float
    idle_seconds: float
    settle_seconds: float
    live_blocks: tuple[int, int]


FULL: Final = Pace(
    repeats=7,
    turn_seconds=0.05,
    write_seconds=0.1,
    handoff_seconds=0.12,
    crowd_seconds=0.12,
    warm_up_seconds=0.1,
    steady_leases=10_000,
    steady_seconds=2.5,
    idle_seconds=4.0,
    settle_seconds=1.0,
    live_blocks=(1_000, 100_000),
)
QUICK: Final = Pace(
    repeats=3,
    turn_seconds=0.012,
    write_seconds=0.03,
    handoff_seconds=0.02,
    crowd_seconds=0.04,
    warm_up_seconds=0.02,
    steady_leases=500,
    steady_seconds=0.5,
    idle_seconds=1.0,
    settle_seconds=0.2,
    live_blocks=(1_000, 20_000),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """The options of one run."""

    names: tuple[str, ...] = NAMES
    untouched_sizes: tuple[int, ...] = UNTOUCHED_SIZES
    write_sizes: tuple[int, ...] = WRITE_SIZES
    quick: bool = False
    pace: Pace = field(default=FULL)


def choose(
    only: Sequence[str] | None = None,
    sizes: Sequence[int] | None = None,
    repeats: int | None = None,
    *,
    quick: bool = False,
) -> BenchOptions:
    """Return the options that the command line means: figures in their own order, sizes from small to large.

    Raises:
        InvalidArgument: there is no such figure.
    """
    if unknown := set(only or ()) - set(NAMES):
        raise InvalidArgument(f"there is no figure {', '.join(sorted(unknown))}: choose from {', '.join(NAMES)}")
    pace = QUICK if quick else FULL
    chosen = tuple(sorted(set(sizes or ())))
    return BenchOptions(
        names=tuple(name for name in NAMES if not only or name in only),
        untouched_sizes=chosen or (QUICK_SIZES if quick else UNTOUCHED_SIZES),
        write_sizes=chosen or WRITE_SIZES,
        quick=quick,
        pace=pace if repeats is None else replace(pace, repeats=repeats),
    )
