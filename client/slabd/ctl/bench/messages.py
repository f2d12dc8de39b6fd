"""What parent and children of the benchmark say to each other. Plain frozen data, pickled through pipes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slabd.ctl.bench.model import LeftOut


@dataclass(frozen=True, slots=True)
class Place:
    """Where things are: the daemon, the echo server, and the directory and the prefix that iceoryx2 may use."""

    address: str
    echo_target: str
    scratch: str
    prefix: str


@dataclass(frozen=True, slots=True)
class Open:
    """Open these peers of a figure in a case, which is its number."""

    figure: str
    case: int
    peers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Opened:
    """The peers that are open, those that are not and why, and the nanoseconds that timing an empty round takes."""

    peers: tuple[str, ...]
    left_out: tuple[LeftOut, ...]
    clock_ns: float


@dataclass(frozen=True, slots=True)
class Time:
    """Do a peer's round for so many seconds, at most so many times; not before `start`, on the monotonic clock."""

    peer: str
    seconds: float
    most: int | None = None
    start: float = 0.0


@dataclass(frozen=True, slots=True)
class Timed:
    """The nanoseconds of each round, as array("q") packs them, and the first and last moment on the machine's clock."""

    samples: bytes
    began_ns: int
    ended_ns: int


@dataclass(frozen=True, slots=True)
class Shut:
    """Close the peers."""


@dataclass(frozen=True, slots=True)
class Carry:
    """Send frames for so many seconds, so many in flight; or, for the consumer, receive until the producer has done."""

    peer: str
    seconds: float = 0.0
    in_flight: int = 1


@dataclass(frozen=True, slots=True)
class Carried:
    """How many frames it was, and what it took, in seconds; CPU is that of the whole process."""

    frames: int
    seconds: float
    cpu_seconds: float


@dataclass(frozen=True, slots=True)
class Done:
    """It is done."""


@dataclass(frozen=True, slots=True)
class Failed:
    """It did not work; the child goes on."""

    reason: str
