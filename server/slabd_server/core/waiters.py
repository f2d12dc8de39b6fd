"""The queue in front of a full heap: first come, first served, and nobody overtakes.

A request that finds others waiting queues up behind them even if it would fit, so a large request is not starved by
small ones. Only the head is ever tried. The queue grants nothing itself; `engine` tries the head whenever memory came
back.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slabd_server.core.errors import InvariantBroken, QueueFull

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slabd_server.core.purposes import Purpose
    from slabd_server.core.records import LeaseItem, Ticket
    from slabd_server.core.sessions import Session


@dataclass(frozen=True, slots=True)
class LeaseRequest:
    """A request for blocks, all or none. What identifies it to a repeated call is `fingerprint`."""

    session: Session
    items: tuple[LeaseItem, ...]
    purpose: Purpose
    sequence: int

    @property
    def fingerprint(self) -> tuple[str, tuple[LeaseItem, ...], Purpose]:
        """What a repetition has in common with the first call; how long it is willing to wait is not."""
        return ("lease", self.items, self.purpose)


@dataclass(frozen=True, slots=True)
class Waiter:
    """A request that waits. `deadline` is when it gives up."""

    ticket: Ticket
    request: LeaseRequest
    since: float
    deadline: float

    @property
    def impatient(self) -> bool:
        """Whether it has no time to wait, and is here only until a search has ended."""
        return self.deadline <= self.since

    @property
    def wanted_bytes(self) -> int:
        """What it asks for in all."""
        return sum(item.size for item in self.request.items)


class Waiters:
    """The queue of one heap."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._queue: OrderedDict[Ticket, Waiter] = OrderedDict()
        self.wanted_bytes = 0

    def __len__(self) -> int:
        return len(self._queue)

    def __contains__(self, ticket: object) -> bool:
        return ticket in self._queue

    def __iter__(self) -> Iterator[Waiter]:
        return iter(tuple(self._queue.values()))

    @property
    def head(self) -> Waiter | None:
        """The request whose turn it is, None when nobody waits."""
        return next(iter(self._queue.values()), None)

    def find(self, ticket: Ticket) -> Waiter | None:
        """Return a request that waits; None when it does not."""
        return self._queue.get(ticket)

    def admit(self) -> None:
        """Raise QueueFull when the queue takes no further request."""
        if len(self._queue) >= self._limit:
            raise QueueFull(f"{len(self._queue)} requests wait for memory already; the queue takes no more")

    def add(self, waiter: Waiter) -> None:
        """Put a request at the end. Call `admit` first."""
        self._queue[waiter.ticket] = waiter
        self.wanted_bytes += waiter.wanted_bytes
        waiter.request.session.tickets[waiter.ticket] = None
        if waiter.request.sequence:
            waiter.request.session.in_flight[waiter.request.sequence] = waiter.ticket

    def remove(self, ticket: Ticket) -> Waiter | None:
        """Take a request out, wherever it stands; None when it is not there."""
        waiter = self._queue.pop(ticket, None)
        if waiter is not None:
            self.wanted_bytes -= waiter.wanted_bytes
            del waiter.request.session.tickets[ticket]
            waiter.request.session.in_flight.pop(waiter.request.sequence, None)
        return waiter

    def check(self) -> None:
        """Raise InvariantBroken when the queue contradicts itself or its sessions."""
        if (found := sum(waiter.wanted_bytes for waiter in self)) != self.wanted_bytes:
            raise InvariantBroken(f"waiters want {found} bytes, {self.wanted_bytes} counted")
        for waiter in self:
            session = waiter.request.session
            if waiter.ticket not in session.tickets:
                raise InvariantBroken(f"ticket {waiter.ticket} waits, session {session.id} does not know")
            if (number := waiter.request.sequence) and session.in_flight.get(number) != waiter.ticket:
                raise InvariantBroken(
                    f"ticket {waiter.ticket} waits for call {number}, session {session.id} has it as that of "
                    f"ticket {session.in_flight.get(number)}"
                )
        tickets = list(self._queue)
        if tickets != sorted(tickets):
            raise InvariantBroken(f"the queue is out of order: {tickets}")
