"""Leases: granting, waiting, and serving those who wait.

The rules of waiting: a request that cannot be served waits until its timeout; a request that finds others waiting waits
behind them; after whatever may have given memory back, the head of the queue is tried, and the next, until one fails.

Whether there is room can take a search that is too long for one step. Then the request waits for the end of the search,
however long its timeout, and so does who comes meanwhile: nobody is refused before it is known that there is no room.
"""

from __future__ import annotations

import contextlib
import math
from itertools import count
from typing import TYPE_CHECKING, Final

from slabd_server.core.deadlines import Deadlines
from slabd_server.core.errors import (
    Draining,
    NoMemory,
    OutOfMemory,
    Searching,
    TooLarge,
    UnknownSession,
    WaitTimeout,
)
from slabd_server.core.in_the_way import who_holds
from slabd_server.core.preparing import Unprepared
from slabd_server.core.reclaim import NoReclaimer
from slabd_server.core.records import (
    Block,
    Effects,
    Leased,
    Notice,
    Preparation,
    PressureEvent,
    Ticket,
    Waiting,
    Woken,
    merged,
)
from slabd_server.core.tallies import count_up, rejected_as
from slabd_server.core.waiters import Waiter

if TYPE_CHECKING:
    from slabd_server.core.chores import Chores
    from slabd_server.core.errors import CoreError
    from slabd_server.core.preparing import Job, Reservation
    from slabd_server.core.reclaim import Reclaimer
    from slabd_server.core.served import ServedHeap
    from slabd_server.core.sessions import Session
    from slabd_server.core.waiters import LeaseRequest

# Longer than any process lives, and short enough for every clock and timer to represent.
TIMEOUT_MAX_SECONDS: Final = 10 * 365 * 24 * 3600.0


class Leasing:
    """Grants and queues requests on every heap. `chores` may have memory that is on its way back."""

    def __init__(self, heaps: dict[str, ServedHeap], chores: Chores) -> None:
        self._heaps = heaps
        self._chores = chores
        self._tickets = count(1)
        self.reclaimer: Reclaimer = NoReclaimer()
        self.deadlines: Deadlines[tuple[str, Ticket]] = Deadlines(self._is_waiting)

    def lease(self, served: ServedHeap, request: LeaseRequest, *, timeout: float, now: float) -> Leased | Waiting:
        """Grant a request, or let it wait.

        Raises:
            TooLarge, QueueFull, LedgerFull: however long the timeout.
            OutOfMemory, Fragmented: without a timeout.
        """
        served.books.tallies.lease_requests += 1
        for item in request.items:
            served.books.tallies.request_sizes.observe(item.size)
        try:
            try:
                return Leased(self._grant_in_turn(served, request, now))
            except OutOfMemory:
                if (blocks := self._grant_after_reclaiming(served, request, now)) is not None:
                    return Leased(blocks)
                if timeout <= 0 and (blocks := self._grant_at_last(served, request, now)) is not None:
                    return Leased(blocks)
                return self._enqueue(served, request, timeout=timeout, now=now)
        except Unprepared as unprepared:
            ticket = Ticket(next(self._tickets))
            return Waiting(ticket, _prepare(served, ticket, request, unprepared.reservation))
        except NoMemory as error:
            count_up(served.books.tallies.rejections, rejected_as(error))
            raise

    def count_drained(self, session: Session) -> None:
        """Count a request that is refused because the daemon drains."""
        session.books.tallies.lease_requests += 1
        count_up(session.books.tallies.rejections, "draining")

    def _grant_in_turn(self, served: ServedHeap, request: LeaseRequest, now: float) -> tuple[Block, ...]:
        sizes = [served.books.allocator.usable_size(item.size, item.alignment)[1] for item in request.items]
        wanted = sum(sizes)
        if wanted > served.books.total_bytes:
            raise TooLarge(
                f"asked {wanted} bytes in {len(sizes)} blocks, the whole heap has {served.books.total_bytes}"
            )
        if served.waiters:
            raise OutOfMemory(
                f"asked {wanted} bytes; {len(served.waiters)} earlier requests wait for {served.waiters.wanted_bytes}"
            )
        return _grant(served, request, now)

    def _grant_after_reclaiming(
        self, served: ServedHeap, request: LeaseRequest, now: float
    ) -> tuple[Block, ...] | None:
        """Grant a request from what clients keep and do not use: from as much as it needs, or from more and more of it.

        Those who wait have had their share of that: the adapter recalls for them as long as there are any.
        """
        wanted_bytes = sum(item.size for item in request.items)
        while not served.waiters and self.reclaimer.reclaim(served.books.name, wanted_bytes):
            with contextlib.suppress(OutOfMemory):
                return self._grant_in_turn(served, request, now)
            wanted_bytes *= 4  # what has become free does not join
        return None

    def _grant_at_last(self, served: ServedHeap, request: LeaseRequest, now: float) -> tuple[Block, ...] | None:
        """Grant a request that will not wait, when what was on its way back is there, and those who wait have it.

        None means that it is not known yet whether it can be granted.
        """
        if self._chores:
            self._chores.finish(now)
            self._chores.owe(self.serve(served, now=now))
        try:
            return self._grant_in_turn(served, request, now)
        except OutOfMemory as error:
            if isinstance(error, Searching) or (served.waiters and served.books.allocator.searching):
                return None
            raise type(error)(f"{error}; {who_holds(served.books, now)}") from None

    @property
    def next_search(self) -> float | None:
        """When `search` has something to do, the same each time, so that no timer is put off; None while it has not."""
        return -math.inf if any(served.books.allocator.searching for served in self._heaps.values()) else None

    def search(self) -> None:
        """Go on for a step with each search there is; when it is over, the head of the queue is to be tried again."""
        for served in self._heaps.values():
            if served.books.allocator.searching:
                served.books.allocator.search()

    def _enqueue(self, served: ServedHeap, request: LeaseRequest, *, timeout: float, now: float) -> Waiting:
        served.waiters.admit()
        ticket = Ticket(next(self._tickets))
        deadline = now + min(timeout, TIMEOUT_MAX_SECONDS)
        served.waiters.add(Waiter(ticket, request, now, deadline))
        self.deadlines.set(deadline, (served.books.name, ticket))
        event = PressureEvent(len(served.waiters), served.waiters.wanted_bytes)
        return Waiting(ticket, Effects(notices=(Notice(served.books.name, None, event),)))

    def serve(self, served: ServedHeap, *, now: float) -> Effects:
        """Grant what can be granted to those who wait, in their order."""
        effects: list[Effects] = []
        while (head := served.waiters.head) is not None:
            try:
                effects.append(Effects((Woken(head.ticket, _grant(served, head.request, now)),)))
            except NoMemory:
                break
            except Unprepared as unprepared:
                served.waiters.remove(head.ticket)
                effects.append(_prepare(served, head.ticket, head.request, unprepared.reservation))
            served.waiters.remove(head.ticket)
            served.books.tallies.wait_seconds.observe(now - head.since)
        return merged(*effects)

    def prepared(self, served: ServedHeap, ticket: Ticket, error: OutOfMemory | None, *, now: float) -> Effects:
        """Grant blocks that have been prepared, if they are still wanted; if not, or after an error, free them."""
        job, wanted = served.jobs.end(ticket)
        served.books.resume(job.reservation)
        woken: tuple[Woken, ...] = ()
        if error is None and wanted:
            woken = (Woken(ticket, _entered(served, job, now)),)
        else:
            served.books.take_back(job.reservation, prepared=error is None)
            if wanted and error is not None:
                count_up(served.books.tallies.rejections, rejected_as(error))
                woken = (Woken(ticket, error),)
        return merged(Effects(woken), self.serve(served, now=now))

    def abandon(self, served: ServedHeap, ticket: Ticket, *, now: float) -> Effects:
        """Let nobody wait for a request any more, whether it is in the queue or its blocks are being prepared."""
        if served.jobs.disclaim(ticket) or served.waiters.remove(ticket) is None:
            return Effects()
        return self.serve(served, now=now)

    def refuse(self, served: ServedHeap, session: Session, why: str) -> Effects:
        """Take a session's requests out of the queue, because it can no longer be talked to."""
        error = UnknownSession(f"session {session.id}: {why}")
        return _refused(served, tuple(session.tickets), error)

    def refuse_all(self) -> Effects:
        """Take everybody's requests out of the queues, because the daemon drains."""
        error = Draining("the daemon drains and grants no new lease")
        woken: list[Woken] = []
        for served in self._heaps.values():
            count_up(served.books.tallies.rejections, "draining", len(served.waiters))
            woken += _refused(served, tuple(waiter.ticket for waiter in served.waiters), error).woken
        return Effects(tuple(woken))

    def expire(self, now: float) -> Effects:
        """Refuse requests whose timeout has passed, when not even what is on its way back would have served them."""
        effects: list[Effects] = []
        for heap, ticket in tuple(self.deadlines.due(now)):
            served = self._heaps[heap]
            waiter = served.waiters.find(ticket)
            if self._chores or (waiter is not None and waiter.impatient):
                self._chores.finish(now)
                effects.append(self.serve(served, now=now))
            if ticket in served.waiters and served.books.allocator.searching:
                self.deadlines.set(now, (heap, ticket))
            elif (waiter := served.waiters.find(ticket)) is not None:
                effects.append(self._last_word(served, waiter, now))
                served.waiters.remove(ticket)
                served.books.tallies.wait_seconds.observe(now - waiter.since)
        return merged(*effects)

    def _last_word(self, served: ServedHeap, waiter: Waiter, now: float) -> Effects:
        """Answer a request whose time is over, and which is to leave the queue."""
        rejections = served.books.tallies.rejections
        if not waiter.impatient:
            count_up(rejections, "timeout")
            return Effects((Woken(waiter.ticket, self._timeout(served, waiter, now)),))
        try:
            if (head := served.waiters.head) is not None and head is not waiter:
                raise OutOfMemory(
                    f"asked {waiter.wanted_bytes} bytes; an earlier request waits for {head.wanted_bytes}"
                )
            return Effects((Woken(waiter.ticket, _grant(served, waiter.request, now)),))
        except Unprepared as unprepared:
            served.waiters.remove(waiter.ticket)
            return _prepare(served, waiter.ticket, waiter.request, unprepared.reservation)
        except NoMemory as error:
            count_up(rejections, rejected_as(error))
            refusal = type(error)(f"{error}; {who_holds(served.books, now)}")
            return Effects((Woken(waiter.ticket, refusal),))

    def _timeout(self, served: ServedHeap, waiter: Waiter, now: float) -> WaitTimeout:
        return WaitTimeout(
            f"asked {waiter.wanted_bytes} bytes in {len(waiter.request.items)} blocks and waited "
            f"{now - waiter.since:.3f} s; free {served.books.available_bytes}, largest free block "
            f"{served.books.allocator.largest_free_block_bytes}; {who_holds(served.books, now)}"
        )

    def _is_waiting(self, _when: float, key: tuple[str, Ticket]) -> bool:
        heap, ticket = key
        return ticket in self._heaps[heap].waiters


def _grant(served: ServedHeap, request: LeaseRequest, now: float) -> tuple[Block, ...]:
    session = request.session
    reservation = served.books.reserve(session, request.items)
    if not reservation.is_ready:
        raise Unprepared(reservation)
    return _enter(served, request, reservation, now)


def _enter(served: ServedHeap, request: LeaseRequest, reservation: Reservation, now: float) -> tuple[Block, ...]:
    session = request.session
    blocks = served.books.enter(
        session, request.items, reservation, request.purpose, sequence=request.sequence, now=now
    )
    session.remember(request.sequence, request.fingerprint, Leased(blocks))
    return blocks


def _entered(served: ServedHeap, job: Job, now: float) -> tuple[Block, ...] | NoMemory:
    try:
        return _enter(served, job.request, job.reservation, now)
    except NoMemory as error:
        count_up(served.books.tallies.rejections, rejected_as(error))
        return error


def _prepare(served: ServedHeap, ticket: Ticket, request: LeaseRequest, reservation: Reservation) -> Effects:
    """Set blocks aside for a request until they are prepared; whoever performs this calls `Leasing.prepared`."""
    served.books.set_aside(reservation)
    served.jobs.add(ticket, request, reservation)
    preparation = Preparation(ticket, served.books.name, reservation.commits, reservation.clears)
    return Effects(preparations=(preparation,))


def _refused(served: ServedHeap, tickets: tuple[Ticket, ...], error: CoreError) -> Effects:
    for ticket in tickets:
        if not served.jobs.disclaim(ticket):
            served.waiters.remove(ticket)
    return Effects(tuple(Woken(ticket, error) for ticket in tickets))
