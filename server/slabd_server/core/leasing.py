"""Leases: granting, waiting, and serving those who wait.

The rules of waiting: a request that cannot be served waits until its timeout; a request that finds others waiting waits
behind them; after whatever may have given memory back, the head of the queue is tried, and the next, until one fails.
"""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Final

from slabd_server.core.deadlines import Deadlines
from slabd_server.core.errors import Draining, NoMemory, OutOfMemory, TooLarge, UnknownSession, WaitTimeout
from slabd_server.core.in_the_way import who_holds
from slabd_server.core.records import Block, Effects, Leased, Notice, PressureEvent, Ticket, Waiting, Woken
from slabd_server.core.tallies import count_up, rejected_as
from slabd_server.core.waiters import Waiter

if TYPE_CHECKING:
    from slabd_server.core.chores import Chores
    from slabd_server.core.errors import CoreError
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
        self.deadlines: Deadlines[tuple[str, Ticket]] = Deadlines(self._is_waiting)

    def lease(self, served: ServedHeap, request: LeaseRequest, *, timeout: float, now: float) -> Leased | Waiting:
        """Grant a request, or let it wait.

        Raises:
            TooLarge, QueueFull, LedgerFull: however long the timeout.
            OutOfMemory, Fragmented: without a timeout.
        """
        served.books.tallies.lease_requests += 1
        try:
            try:
                return Leased(self._grant_in_turn(served, request, now))
            except OutOfMemory:
                if timeout > 0:
                    return self._enqueue(served, request, timeout=timeout, now=now)
                return Leased(self._grant_at_last(served, request, now))
        except NoMemory as error:
            count_up(served.books.tallies.rejections, rejected_as(error))
            raise

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

    def _grant_at_last(self, served: ServedHeap, request: LeaseRequest, now: float) -> tuple[Block, ...]:
        """Grant a request that will not wait, when what was on its way back is there, and those who wait have it."""
        if self._chores:
            self._chores.finish(now)
            self._chores.owe(self.serve(served, now=now))
        try:
            return self._grant_in_turn(served, request, now)
        except OutOfMemory as error:
            raise type(error)(f"{error}; {who_holds(served.books, now)}") from None

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
        woken = []
        while (head := served.waiters.head) is not None:
            try:
                blocks = _grant(served, head.request, now)
            except NoMemory:
                break
            served.waiters.remove(head.ticket)
            woken.append(Woken(head.ticket, blocks))
        return Effects(tuple(woken))

    def refuse(self, served: ServedHeap, session: Session, why: str) -> Effects:
        """Take a session's requests out of the queue, because it can no longer be talked to."""
        error = UnknownSession(f"session {session.id}: {why}")
        return _refused(served, tuple(session.tickets), error)

    def refuse_all(self) -> Effects:
        """Take everybody's requests out of the queues, because the daemon drains."""
        error = Draining("the daemon drains and grants no new lease")
        woken: list[Woken] = []
        for served in self._heaps.values():
            woken += _refused(served, tuple(waiter.ticket for waiter in served.waiters), error).woken
        return Effects(tuple(woken))

    def expire(self, now: float) -> Effects:
        """Refuse requests whose timeout has passed, when not even what is on its way back would have served them."""
        woken: list[Woken] = []
        for heap, ticket in self.deadlines.due(now):
            served = self._heaps[heap]
            if self._chores:
                self._chores.finish(now)
                woken += self.serve(served, now=now).woken
            waiter = served.waiters.remove(ticket)
            if waiter is not None:
                count_up(served.books.tallies.rejections, "timeout")
                woken.append(Woken(ticket, self._timeout(served, waiter, now)))
        return Effects(tuple(woken))

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
    blocks = served.books.grant(session, request.items, request.purpose, sequence=request.sequence, now=now)
    session.remember(request.sequence, request.fingerprint, Leased(blocks))
    return blocks


def _refused(served: ServedHeap, tickets: tuple[Ticket, ...], error: CoreError) -> Effects:
    for ticket in tickets:
        served.waiters.remove(ticket)
    return Effects(tuple(Woken(ticket, error) for ticket in tickets))
