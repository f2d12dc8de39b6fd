"""Preparing blocks: what must be done to their bytes before they are granted, and would take too long in one step.

Owns what is short enough to be done at once, and the requests whose blocks are being prepared. Pages that were given
back have to exist again, and what somebody else left has to be cleared: about 0.3 s a GiB together. Promises that no
step does more than `AT_ONCE` bytes of it, pages of slabs apart; the rest is an effect of the request, which waits.
Whoever performs it says when it is done (`Leasing.prepared`). Must not touch the bytes that are being prepared.

Meanwhile the blocks belong to nobody: they are taken from the allocator, and in no ledger yet. So nothing that happens
to the session can free them under the hands of who prepares them, and a restart finds them free. When nobody wants them
any more they go back afterwards.

Invariants:

    sum of sizes of the reservations of jobs = books.prepared_bytes, which count as LEASED
    a job's ticket is among its session's tickets, as long as somebody wants its blocks
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from slabd_server.core.errors import InvariantBroken
from slabd_server.core.records import Range
from slabd_server.core.sizes import MAX_SLAB_PAGES, PAGE

if TYPE_CHECKING:
    from slabd_server.core.books import Books
    from slabd_server.core.heap import Extent
    from slabd_server.core.memory import Memory
    from slabd_server.core.records import Ticket
    from slabd_server.core.sessions import Session
    from slabd_server.core.waiters import LeaseRequest

# A millisecond or two.
AT_ONCE: Final = 4 << 20
# Pages that are never put off: what a slab takes is granted to others too, at once.
_SHORT: Final = MAX_SLAB_PAGES * PAGE


class Reservation(NamedTuple):
    """Blocks that are taken, and what is still to be done to them."""

    extents: tuple[Extent, ...]
    commits: tuple[Range, ...]
    clears: tuple[Range, ...]

    @property
    def is_ready(self) -> bool:
        """Whether they can be granted."""
        return not self.commits and not self.clears

    @property
    def size(self) -> int:
        """Their bytes."""
        return sum(extent.size for extent in self.extents)


class Unprepared(Exception):
    """The blocks for a request are there, and have to be prepared."""

    def __init__(self, reservation: Reservation) -> None:
        super().__init__(reservation)
        self.reservation = reservation


class Preparer:
    """A heap's memory, of which much is done later: a `Memory` for the allocator and the cleaner."""

    def __init__(self, memory: Memory) -> None:
        self.memory: Final = memory
        self._left = AT_ONCE
        self._commits: list[Range] = []
        self._clears: list[Range] = []

    def begin(self) -> None:
        """Begin a step."""
        self._left = AT_ONCE

    def take(self) -> tuple[tuple[Range, ...], tuple[Range, ...]]:
        """Return what has been put off since the last time: what is to be committed, and what to be cleared."""
        taken = tuple(self._commits), tuple(self._clears)
        self._commits.clear()
        self._clears.clear()
        return taken

    def afford(self, offset: int, size: int) -> None:
        """See Memory."""
        self.memory.afford(offset, size)

    def commit(self, offset: int, size: int) -> None:
        """Let pages exist, at once or later. See Memory for when that is refused."""
        if self._is_short(size) or size <= _SHORT:
            self.memory.commit(offset, size)
        else:
            self.memory.afford(offset, size)
            self._commits.append(Range(offset, size))

    def clear(self, offset: int, size: int) -> None:
        """Set bytes to zero, at once or later."""
        if self._is_short(size):
            self.memory.clear(offset, size)
        else:
            self._clears.append(Range(offset, size))

    def give_back(self, offset: int, size: int) -> None:
        """See Memory."""
        self.memory.give_back(offset, size)

    def _is_short(self, size: int) -> bool:
        if size > self._left:
            return False
        self._left -= size
        return True


@dataclass(slots=True)
class Job:
    """A request whose blocks are being prepared. `wanted` is whether anybody still waits for them."""

    request: LeaseRequest
    reservation: Reservation
    wanted: bool = True


@dataclass(slots=True)
class Jobs:
    """The jobs of one heap."""

    by_ticket: dict[Ticket, Job] = field(default_factory=dict)

    def add(self, ticket: Ticket, request: LeaseRequest, reservation: Reservation) -> None:
        """Begin one."""
        self.by_ticket[ticket] = Job(request, reservation)
        request.session.tickets[ticket] = None
        if request.sequence:
            request.session.in_flight[request.sequence] = ticket

    def want(self, ticket: Ticket, session: Session) -> bool:
        """Tell whether a ticket is this session's, which waits for blocks that are being prepared."""
        job = self.by_ticket.get(ticket)
        return job is not None and job.wanted and job.request.session is session

    def check(self, books: Books) -> None:
        """Raise InvariantBroken when the jobs contradict the books or their sessions."""
        size = sum(job.reservation.size for job in self.by_ticket.values())
        if size != books.prepared_bytes:
            raise InvariantBroken(f"{size} bytes are being prepared, {books.prepared_bytes} are counted")
        for ticket, job in self.by_ticket.items():
            if job.wanted != (ticket in job.request.session.tickets):
                raise InvariantBroken(f"ticket {ticket} is prepared, session {job.request.session.id} disagrees")

    def disclaim(self, ticket: Ticket) -> bool:
        """Note that nobody waits for a job's blocks any more; tell whether there is such a job."""
        job = self.by_ticket.get(ticket)
        if job is None:
            return False
        if job.wanted:
            job.wanted = False
            del job.request.session.tickets[ticket]
            job.request.session.in_flight.pop(job.request.sequence, None)
        return True

    def end(self, ticket: Ticket) -> tuple[Job, bool]:
        """Take a job out that is done; return it, and whether its blocks are still wanted."""
        job = self.by_ticket[ticket]
        wanted = job.wanted
        self.disclaim(ticket)
        del self.by_ticket[ticket]
        return job, wanted
