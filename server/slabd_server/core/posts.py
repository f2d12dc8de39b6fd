"""Posts: what clients write into their lanes, and the daemon reads afterwards.

A post is no question. What a client has posted has happened: it returned the block, it made the handle, it opened the
block, and it goes on in that belief. So a post is done whatever the session's state, as long as it is not ENDING; one
that cannot be true is a `LaneViolation`, and the session has to be ended. Only a LEASE asks, and may be refused: then
the client asks again over gRPC, where it can wait and is told why.

Nothing here serves those who wait for memory: whoever reads the posts does, after the last of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from slabd_server.core.errors import CoreError, Draining, InvalidSize, LedgerFull, NoMemory, OutOfMemory
from slabd_server.core.ledger import Flag, Kind
from slabd_server.core.purposes import NO_PURPOSE
from slabd_server.core.records import Access, BlockRef, BlockState, SessionState, SlotId
from slabd_server.core.tallies import count_up

if TYPE_CHECKING:
    from collections.abc import Mapping

    from slabd_server.core.books import Books
    from slabd_server.core.records import Block, LeaseItem, ShareItem
    from slabd_server.core.served import ServedHeap
    from slabd_server.core.sessions import Session

# A batch is for the client's convenience: it gets no more than one block when less than this part of the heap is free.
_SPARE: Final = 8


class LaneViolation(Exception):
    """A client has posted what cannot be true."""


class Posts:
    """Does what was posted."""

    def __init__(self, heaps: Mapping[str, ServedHeap]) -> None:
        self._heaps = heaps
        self.draining = False

    def lease(self, session: Session, item: LeaseItem, *, sequence: int, now: float) -> Block:
        """Grant a block; who waits for memory comes first.

        Raises:
            NoMemory, Draining, InvalidSize, InvalidAlignment: none can be had now; nothing has changed.
            LaneViolation: the session may not lease.
        """
        served = self._served(session)
        if item.size < 1:
            raise InvalidSize(f"a block has at least one byte, not {item.size}")
        if session.access is Access.READ_ONLY:
            raise LaneViolation("it is read-only and asks for blocks")
        if self.draining or session.state is not SessionState.ACTIVE:
            raise Draining("the daemon drains and grants no new lease")
        if served.waiters:
            raise OutOfMemory(f"{len(served.waiters)} earlier requests wait")
        block = _grant(session, item, sequence, now)
        served.books.tallies.lease_requests += 1
        served.books.tallies.request_sizes.observe(item.size)
        return block

    def lease_more(self, session: Session, item: LeaseItem, *, sequence: int, now: float) -> Block | None:
        """Grant one more block like the last one, for later; None when there is not plenty."""
        if not _has_plenty(session.books):
            return None
        try:
            return _grant(session, item, sequence, now)
        except NoMemory:
            return None

    def give_back(self, session: Session, ref: BlockRef, *, sequence: int, now: float) -> bool:
        """End a lease; False for a block that is not this session's: it was recalled or transferred meanwhile."""
        books = session.books
        record = books.ledger.get(ref.slot)
        if record.kind is not Kind.BLOCK or record.generation != ref.generation or record.session != session.id:
            return False
        books.tallies.hold_seconds.observe(now - record.time)
        freed = books.disown(session, ref.slot, sequence=sequence, cause="released", record=record)
        count_up(books.tallies.reclaimed_bytes, "released", freed)
        return True

    def have_back(self, session: Session, ref: BlockRef, *, sequence: int, now: float) -> Block | None:
        """Grant a block anew to the session that returned it, now that nobody can have it open any more.

        None when it is not CLOSING, or others need the memory more, or the session may not lease now.
        """
        books = session.books
        if self.draining or session.state is not SessionState.ACTIVE or session.access is Access.READ_ONLY:
            return None
        if self._served(session).waiters or not _has_plenty(books):
            return None
        try:
            return books.reissue(session, ref, sequence=sequence, now=now)
        except LedgerFull:
            return None

    def keep(self, session: Session, ref: BlockRef) -> None:
        """Note that a client may keep a block in its cache though it came by gRPC, if it is its own."""
        if self._owns(session, ref):
            session.books.let_keep(ref.slot)

    def resize(self, session: Session, ref: BlockRef, requested_size: int) -> None:
        """Note how many bytes of its block a client uses this time, if it is its own."""
        if self._owns(session, ref):
            session.books.resize(ref.slot, requested_size)

    def share(self, session: Session, item: ShareItem, requested_size: int, *, sequence: int, now: float) -> None:
        """Promise so many bytes of a block to those who will open it, if it is this session's.

        Raises:
            LaneViolation: it cannot be promised.
        """
        if not self._owns(session, item.ref):
            return  # returned by another thread a moment before
        try:
            self._served(session).shares.share(session, item, sequence=sequence, now=now, requested_size=requested_size)
        except CoreError as error:
            raise LaneViolation(f"it shares block {item.ref.slot}.{item.ref.generation}: {error}") from error

    def is_promised(self, session: Session, ref: BlockRef) -> bool:
        """Whether an open of a block is expected; also when it is too late for any."""
        record = session.books.ledger.get(ref.slot)
        return record.kind is not Kind.BLOCK or record.generation != ref.generation or record.pending > 0

    def open(self, session: Session, ref: BlockRef, *, sequence: int, now: float) -> None:
        """Note that a block was opened. One who had no right to has it open all the same: it found the gate open.

        Raises:
            LedgerFull: there is no memory to note it; nothing has changed, and it has to be tried again.
        """
        self._served(session).shares.join(session, ref, sequence=sequence, now=now)

    def close(self, session: Session, ref: BlockRef, *, sequence: int) -> None:
        """Note that an open is over; or that it never was, because the client found the gate closed afterwards."""
        books = session.books
        record = books.ledger.get(ref.slot)
        same = record.kind is Kind.BLOCK and record.generation == ref.generation
        if same and session.id in books.holds.get(ref.slot, {}):
            books.unhold(session, ref.slot, sequence=sequence)

    def recall(self, session: Session, ref: BlockRef, *, now: float) -> int:
        """Take a block back that its session keeps in its cache; return how many bytes became free.

        The caller knows that the client does not use it, and will see that it is gone before it could.
        """
        books = session.books
        record = books.ledger.get(ref.slot)
        books.tallies.hold_seconds.observe(now - record.time)
        freed = books.disown(session, ref.slot, sequence=0, cause="recalled", record=record)
        count_up(books.tallies.reclaimed_bytes, "recalled", freed)
        return freed

    def may_be_cached(self, session: Session, slot: int) -> BlockRef | None:
        """Return the block in a slot if its session got it over the lane and nobody else has to do with it."""
        books = session.books
        record = books.ledger.get(slot)
        if record.kind is not Kind.BLOCK or record.session != session.id or not record.flags & Flag.LANE:
            return None
        ref = BlockRef(SlotId(slot), record.generation)
        return ref if books.state(ref.slot) is BlockState.LEASED else None

    def _owns(self, session: Session, ref: BlockRef) -> bool:
        record = session.books.ledger.get(ref.slot)
        return (record.kind, record.generation, record.session) == (Kind.BLOCK, ref.generation, session.id)

    def _served(self, session: Session) -> ServedHeap:
        return self._heaps[session.books.name]


def _has_plenty(books: Books) -> bool:
    return books.allocator.available_bytes * _SPARE >= books.total_bytes


def _grant(session: Session, item: LeaseItem, sequence: int, now: float) -> Block:
    (block,) = session.books.grant(session, [item], NO_PURPOSE, sequence=sequence, now=now, flags=Flag.LANE)
    return block
