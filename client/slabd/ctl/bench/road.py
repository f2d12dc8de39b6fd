"""The road between a producer and a consumer, and what each side of a peer has to do on it. Knows no peer.

Answers and ends come through the pipe for all: an empty message ends a turn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from multiprocessing.connection import Connection
    from multiprocessing.queues import Queue

    from slabd.ctl.bench.messages import Place

NUMBER_BYTES: Final = 8
END: Final = b""
ANSWER: Final = b"."


@dataclass(frozen=True, slots=True)
class Road:
    """One side's end of the pipe, the queue, and the name of the memory of the ideal pool."""

    pipe: Connection
    queue: Queue[bytes]
    memory: str


class Producer(Protocol):
    """The sending side."""

    def send(self, number: int) -> None:
        """Send a frame."""

    def take_answer(self) -> None:
        """Wait for an answer, and take back what it frees."""

    def end(self) -> None:
        """End the turn."""


class Consumer(Protocol):
    """The receiving side."""

    def receive(self) -> int | None:
        """Wait for a frame, give it back, answer, and return its number; None when the turn has ended."""


@dataclass(frozen=True, slots=True)
class Carrier:
    """How both sides of a peer are opened."""

    producer: Callable[[Place, Road], AbstractContextManager[Producer]]
    consumer: Callable[[Place, Road], AbstractContextManager[Consumer]]


def number_to_bytes(number: int) -> bytes:
    """Return what a producer writes into a frame."""
    return number.to_bytes(NUMBER_BYTES, "little")


def number_from(data: bytes | bytearray | memoryview) -> int:
    """Return what a consumer reads there."""
    return int.from_bytes(data[:NUMBER_BYTES], "little")


class OnPipe:
    """What all sides have in common; the last two are the producer's."""

    def __init__(self, road: Road) -> None:
        self.road = road
        self.pipe = road.pipe

    def take_answer(self) -> None:
        """See Producer."""
        self.pipe.recv_bytes()

    def end(self) -> None:
        """See Producer."""
        self.pipe.send_bytes(END)
