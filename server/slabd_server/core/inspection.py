"""What operators ask the engine: who holds what, how full, is everything consistent. Nothing here changes anything."""

from __future__ import annotations

import heapq
from itertools import islice
from typing import TYPE_CHECKING

from slabd_server.core.errors import InvariantBroken, UnknownHeap
from slabd_server.core.ledger import Kind
from slabd_server.core.records import Block, BlockRef, BlockState, SessionState, SlotId
from slabd_server.core.stats import Checked, HeapInfo, HeapStats, LeaseInfo, SessionInfo, SizeClass

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from slabd_server.core.books import Books
    from slabd_server.core.engine import Engine
    from slabd_server.core.served import ServedHeap
    from slabd_server.core.sessions import Session


def heap_stats(served: ServedHeap, now: float) -> HeapStats:
    """Return the books of a heap. The cost does not depend on how many blocks there are."""
    books, allocator, tallies = served.books, served.books.allocator, served.books.tallies
    head = served.waiters.head
    return HeapStats(
        name=books.name,
        total_bytes=books.total_bytes,
        used_bytes=books.used_bytes,
        available_bytes=books.available_bytes,
        leased_bytes=books.state_bytes[BlockState.LEASED] - books.cached_bytes,
        cached_bytes=books.cached_bytes,
        shared_bytes=books.state_bytes[BlockState.SHARED],
        quarantined_bytes=books.state_bytes[BlockState.QUARANTINED],
        free_bytes=allocator.free_bytes,
        slab_free_bytes=allocator.slab_free_bytes,
        requested_bytes=books.requested_in_use_bytes,
        largest_free_block_bytes=allocator.largest_free_block_bytes,
        used_peak_bytes=books.used_peak_bytes,
        leases=books.leases - books.claimed_blocks,
        blocks=books.blocks,
        waiters=len(served.waiters),
        oldest_waiter_age=now - head.since if head else 0.0,
        sessions={state.value: number for state, number in served.session_counts.items()},
        lease_requests=tallies.lease_requests,
        leases_granted=tallies.leases_granted,
        rejections=dict(tallies.rejections),
        leases_ended=dict(tallies.leases_ended),
        reclaimed_bytes=dict(tallies.reclaimed_bytes),
        sessions_started=tallies.sessions_started,
        sessions_ended=dict(tallies.sessions_ended),
        shares=tallies.shares,
        opens_ok=tallies.opens_ok,
        opens_stale=tallies.opens_stale,
        handles_expired=tallies.handles_expired,
    )


def heap_info(served: ServedHeap, now: float) -> HeapInfo:
    """Return the books of a heap and of its size classes."""
    classes = tuple(
        SizeClass(each.size, each.slabs, each.used_blocks, each.free_blocks)
        for each in served.books.allocator.classes()
    )
    return HeapInfo(heap_stats(served, now), classes, served.books.allocator.free_ranges)


def sessions(engine: Engine, heap: str, now: float) -> list[SessionInfo]:
    """List the sessions of a heap, or of all; the one that holds most first.

    Raises:
        UnknownHeap: there is no such heap.
    """
    _check_heap(engine, heap)
    chosen = [session for session in engine.sessions if heap in ("", session.books.name)]
    chosen.sort(key=lambda session: (-session.owned_bytes, session.id))
    return [_session_info(session, now) for session in chosen]


def _session_info(session: Session, now: float) -> SessionInfo:
    oldest = session.owned.oldest if len(session.owned) > session.cached_blocks else None
    return SessionInfo(
        id=session.id,
        name=session.name,
        heap=session.books.name,
        pid=session.peer.pid,
        uid=session.peer.uid,
        access=session.access,
        attached=session.attached,
        state=session.state,
        age=now - session.opened_at,
        leases=len(session.owned) - session.cached_blocks,
        opens=len(session.held),
        used_bytes=session.owned_bytes - session.cached_bytes,
        cached_bytes=session.cached_bytes,
        waiters=len(session.tickets),
        oldest_lease_age=None if oldest is None else now - session.books.ledger.get(oldest).time,
    )


def leases(engine: Engine, heap: str, session_id: int, limit: int, now: float) -> tuple[list[LeaseInfo], int]:
    """List at most `limit` granted blocks, the oldest first, and say how many there are in all.

    The cost grows with `limit`, not with how many blocks sessions own: their chains are in the order of their leases.

    Raises:
        UnknownHeap: there is no such heap.
    """
    _check_heap(engine, heap)
    found: list[LeaseInfo] = []
    total = 0
    for served in engine.heaps.values():
        if heap not in ("", served.books.name):
            continue
        mine = [s for s in engine.sessions if s.books is served.books and session_id in (0, s.id)]
        total += sum(len(s.owned) for s in mine)
        chains = [_aged(served, s.owned) for s in mine]
        if session_id == 0:
            total += len(served.books.orphans)
            # These are in the order in which they lost their owners. They are few: a handle's TTL bounds their lives.
            chains.append(iter(heapq.nsmallest(limit, _aged(served, served.books.orphans))))
        oldest = islice(heapq.merge(*chains), limit)
        found += [_lease_info(engine, served, slot, now) for _, slot in oldest]
    found.sort(key=lambda info: -info.age)
    return found[:limit], total


def _aged(served: ServedHeap, chain: object) -> Iterator[tuple[float, SlotId]]:
    return ((served.books.ledger.get(slot).time, slot) for slot in chain)  # type: ignore[attr-defined]


def _lease_info(engine: Engine, served: ServedHeap, slot: SlotId, now: float) -> LeaseInfo:
    record = served.books.ledger.get(slot)
    purpose = served.books.purpose(slot)
    owner = engine.sessions.find(record.session)
    return LeaseInfo(
        block=Block(BlockRef(slot, record.generation), record.a, record.b, record.c),
        heap=served.books.name,
        state=served.books.state(slot),
        session=owner.id if owner else None,
        pid=owner.peer.pid if owner else None,
        session_name=owner.name if owner else "",
        label=purpose.label,
        call_site=purpose.call_site,
        age=now - record.time,
        pending_opens=record.pending,
        opened_by=tuple(served.books.holds.get(slot, ())),
    )


def check(engine: Engine) -> Checked:
    """Check every structure of every heap; never raises. Linear in the blocks."""
    blocks, problems = 0, []
    for served in engine.heaps.values():
        try:
            blocks += _check_served(engine, served)
        except InvariantBroken as error:
            problems.append(f"heap {served.books.name}: {error}")
    return Checked(blocks, tuple(problems))


def _check_served(engine: Engine, served: ServedHeap) -> int:
    books = served.books
    blocks = books.check()
    served.shares.check()
    served.waiters.check()
    served.jobs.check(books)
    mine = [session for session in engine.sessions if session.books is books]
    for session in mine:
        session.check()
    books.holders.check(mine)
    _check_blocks(books, mine)
    _check_sessions(served, mine)
    for session in mine:
        _check_waits(served, session)
        _check_state(engine, session)
    if strays := books.quarantined - {session.id for session in mine}:
        raise InvariantBroken(f"sessions {sorted(strays)} are in quarantine for the books, and do not exist")
    return blocks


def _check_blocks(books: Books, mine: Sequence[Session]) -> None:
    owned = sum(len(session.owned) for session in mine)
    if owned != books.leases or owned + len(books.orphans) != books.blocks:
        raise InvariantBroken(
            f"{owned} leases in chains, {books.leases} counted; with {len(books.orphans)} orphans {books.blocks} blocks"
        )
    held = sum(len(session.held) for session in mine)
    if held != sum(len(holders) for holders in books.holds.values()):
        raise InvariantBroken(f"{held} opens known to sessions, the books have another number")


def _check_sessions(served: ServedHeap, mine: Sequence[Session]) -> None:
    ledger = served.books.ledger
    records = sum(1 for _, record in ledger.records() if record.kind is Kind.SESSION)
    if records != len(mine):
        raise InvariantBroken(f"{records} sessions in the ledger, {len(mine)} in the table")
    for state, number in served.session_counts.items():
        if number != sum(1 for session in mine if session.state is state):
            raise InvariantBroken(f"{number} sessions counted as {state.value}")
    for session in mine:
        record = ledger.get(session.ledger_slot)
        if (record.kind, record.session) != (Kind.SESSION, session.id):
            raise InvariantBroken(
                f"slot {session.ledger_slot} records session {session.id}, the ledger says it is a "
                f"{record.kind.name} of session {record.session}"
            )


def _check_waits(served: ServedHeap, session: Session) -> None:
    for ticket in session.tickets:
        if ticket not in served.waiters and not served.jobs.want(ticket, session):
            raise InvariantBroken(f"session {session.id} has ticket {ticket}, which does not wait")


def _check_state(engine: Engine, session: Session) -> None:
    """Compare a session's state with what the books and the chores know; while it is ENDING it may have been either."""
    quarantined, lags = session.id in session.books.quarantined, session.id in session.books.lagging
    ending = session.state is SessionState.ENDING
    if quarantined != session.quarantined and not ending:
        raise InvariantBroken(
            f"session {session.id} is {session.state.value}, the books have it "
            f"{'in quarantine' if quarantined else 'in no quarantine'}"
        )
    if (ending or lags) and not engine.is_busy_with(session):
        raise InvariantBroken(
            f"session {session.id} is {session.state.value}{' and lags' if lags else ''}, and no chore goes on with it"
        )


def _check_heap(engine: Engine, heap: str) -> None:
    if heap and heap not in engine.heaps:
        raise UnknownHeap(f"no heap {heap!r}; there are {', '.join(engine.heaps)}")
