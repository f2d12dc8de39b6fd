"""Hand-off: how a block passes from its owner to those it was promised to.

    share(opens=n)      pending += n, the handle's deadline moves out; the owner keeps its lease
    share(transfer)     the lease ends for its owner; one pending open will take it over
    open(handle)        pending -= 1 and a hold, or for a transfer a new owner
    close               the hold ends
    expiry              pending = 0: opens that have not come by the deadline never succeed
    join                an open that comes without asking, over a lane: through the gate, which is shut at pending = 0

A handle names a block by slot and generation. It opens the block it was made for or nothing: a slot that was re-issued
has another generation, and an open that nobody promised is refused. A transferred block has no other readers, so its
new owner is the only one who may touch it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from slabd_server.core.deadlines import Deadlines
from slabd_server.core.errors import InvalidArgument, InvariantBroken, ReadOnly, StaleHandle, UnknownBlock
from slabd_server.core.ledger import Flag, Kind
from slabd_server.core.records import (
    Access,
    Block,
    BlockRef,
    Handle,
    HandleExpiredEvent,
    Notice,
    Opened,
    SessionId,
    ShareItem,
    SlotId,
)

if TYPE_CHECKING:
    from slabd_server.core.books import Books
    from slabd_server.core.ledger import Record
    from slabd_server.core.sessions import Session

OPENS_MAX: Final = 65_535
# A handle that outlives its sharer by more than this is a leak by another name.
TTL_MAX_SECONDS: Final = 7 * 24 * 3600.0


class Shares:
    """The handles of one heap, and when they expire."""

    def __init__(self, books: Books, *, handle_ttl: float) -> None:
        self._books = books
        self._handle_ttl = handle_ttl
        self._sharers: dict[SlotId, tuple[SessionId, int, float]] = {}
        self.deadlines: Deadlines[SlotId] = Deadlines(self._is_current)

    def __len__(self) -> int:
        return len(self._sharers)

    def share(
        self, session: Session, item: ShareItem, *, sequence: int, now: float, requested_size: int | None = None
    ) -> Handle:
        """Promise a block, or as many bytes of it as are said, to those who will open it.

        Raises:
            ReadOnly: the session may only open.
            InvalidArgument: the opens or the TTL are out of bounds, or a transfer of a block that others have.
            UnknownBlock: the session does not own the block's lease.
        """
        session.may_write()
        ttl = self._handle_ttl if item.ttl is None else item.ttl
        if not 0 < ttl <= TTL_MAX_SECONDS:
            raise InvalidArgument(f"a handle's TTL is above 0 and at most {TTL_MAX_SECONDS:.0f} seconds, not {ttl}")
        if item.opens < 1:
            raise InvalidArgument(f"a handle promises at least one open, not {item.opens}")
        record = self._books.owned(session, item.ref)
        if record.pending + item.opens > OPENS_MAX:
            raise InvalidArgument(f"{record.pending} + {item.opens} opens of one block are more than {OPENS_MAX}")
        if item.transfer:
            self._may_transfer(item, record)
        slot = item.ref.slot
        _, _, before = self._sharers.get(slot, (None, None, 0.0))
        deadline = max(before, now + ttl)
        self._sharers[slot] = (session.id, item.ref.generation, deadline)
        if deadline > before:
            self.deadlines.set(deadline, slot)
        flags = record.flags | (Flag.TRANSFER | Flag.SHARED if item.transfer else Flag.SHARED)
        if not item.transfer:
            self._books.gates.open(slot, item.ref.generation)
        opens = record.pending + item.opens
        self._books.set_pending(slot, opens, flags=flags, sequence=sequence, requested_size=requested_size)
        if item.transfer:
            self._books.tallies.hold_seconds.observe(now - record.time)
            self._books.disown(session, slot, sequence=sequence, cause="transferred")
        self._books.tallies.shares += 1
        return Handle(self._books.heap_id, item.ref, record.a, record.c, item.transfer, record.b)

    def _may_transfer(self, item: ShareItem, record: Record) -> None:
        if item.opens != 1:
            raise InvalidArgument(f"a transfer is opened once, not {item.opens} times")
        holders = len(self._books.holds.get(item.ref.slot, ()))
        if record.pending or holders:
            raise InvalidArgument(
                f"block {item.ref.slot}.{item.ref.generation} cannot be transferred: "
                f"{record.pending} opens are promised and {holders} sessions have it open"
            )

    def open(self, session: Session, handle: Handle, *, sequence: int, now: float) -> Opened:
        """Redeem one promised open.

        Raises:
            StaleHandle: the block was re-issued, its opens are used up or expired, or the handle is another heap's.
            ReadOnly: the handle would make a read-only session the owner.
        """
        try:
            record = self._promised(handle)
        except StaleHandle:
            self._books.tallies.opens_stale += 1
            raise
        if handle.transfer and session.access is Access.READ_ONLY:
            raise ReadOnly(f"session {session.id} is read-only and cannot take a lease over")
        slot = handle.ref.slot
        if handle.transfer:
            self._books.take_over(session, slot, sequence=sequence, now=now)
        else:
            self._books.ledger.reserve(1)
            self._books.hold(session, slot, sequence=sequence, now=now)
            self._books.set_pending(slot, record.pending - 1, flags=record.flags, sequence=sequence)
        self._came(slot, record)
        return Opened(Block(handle.ref, record.a, record.b, record.c), handle.transfer)

    def join(self, session: Session, ref: BlockRef, *, sequence: int, now: float) -> None:
        """Note that a session has opened a block without asking, because it found its gate open.

        A block that was given back before stays so: then the session has found the gate closed when it looked again.
        Several who come at once for the last promised open all have it, and so has who comes with a made-up handle:
        what it can touch is not given to anybody else.

        Raises:
            LedgerFull: there is no memory to record it; nothing has changed.
        """
        slot = ref.slot
        record = self._books.ledger.get(slot)
        if record.kind is not Kind.BLOCK or record.generation != ref.generation:
            return
        self._books.ledger.reserve(1)
        self._books.hold(session, slot, sequence=sequence, now=now)
        pending, flags = max(record.pending - 1, 0), record.flags | Flag.SHARED
        if record.flags & Flag.TRANSFER:
            pending = record.pending  # that is the new owner's
        self._books.set_pending(slot, pending, flags=flags, sequence=sequence)
        if pending < record.pending:
            self._came(slot, record)

    def _came(self, slot: SlotId, record: Record) -> None:
        """Count an open; with the last one promised, the gate is shut. `record` is from before."""
        if record.pending == 1:
            del self._sharers[slot]
            if not record.flags & Flag.TRANSFER:  # whose gate is closed, and stays so: the new owner is alone
                self._books.gates.shut(slot, record.generation)
        self._books.tallies.opens_ok += 1

    def _promised(self, handle: Handle) -> Record:
        where = f"handle of block {handle.ref.slot}.{handle.ref.generation}"
        if handle.heap_id != self._books.heap_id:
            raise StaleHandle(
                f"{where}: it was made for heap {handle.heap_id:016x}, this is {self._books.heap_id:016x}"
            )
        record = self._books.ledger.get(handle.ref.slot)
        if record.kind is not Kind.BLOCK or record.generation != handle.ref.generation:
            raise StaleHandle(f"{where}: the block has been given back")
        if record.pending == 0:
            raise StaleHandle(f"{where}: all its opens have been used, or it has expired")
        if bool(record.flags & Flag.TRANSFER) != handle.transfer:
            raise StaleHandle(f"{where}: it was not made by {'transfer' if handle.transfer else 'share'}")
        return record

    def close(self, session: Session, ref: BlockRef, *, sequence: int) -> int:
        """End one open of a block by a session; return how many bytes became free by it.

        Raises:
            UnknownBlock: the session does not have it open.
        """
        self._books.find(ref)
        if session.id not in self._books.holds.get(ref.slot, {}):
            raise UnknownBlock(f"block {ref.slot}.{ref.generation} is not open in session {session.id}")
        return self._books.unhold(session, ref.slot, sequence=sequence)

    def expire(self, now: float) -> list[Notice]:
        """Take back the opens that have not come in time; return who has to be told."""
        notices = []
        for slot in self.deadlines.due(now):
            sharer, generation, _ = self._sharers.pop(slot)
            record = self._books.ledger.get(slot)
            event = HandleExpiredEvent(BlockRef(slot, generation), record.pending)
            notices.append(Notice(self._books.name, sharer, event))
            self._books.tallies.handles_expired += 1
            self._books.gates.shut(slot, generation)
            self._books.set_pending(slot, 0, flags=record.flags, sequence=0)
            self._books.settle(slot, actor=sharer, sequence=0)
        return notices

    def _is_current(self, when: float, slot: SlotId) -> bool:
        entry = self._sharers.get(slot)
        return entry is not None and entry[2] == when

    def check(self) -> int:
        """Raise InvariantBroken when a promise and its deadline do not belong together; return how many there are."""
        promised = {
            slot for slot, record in self._books.ledger.records() if record.kind is Kind.BLOCK and record.pending
        }
        if promised != set(self._sharers):
            raise InvariantBroken(
                f"slots {promised ^ set(self._sharers)} have a promise without a deadline, or the reverse"
            )
        entries = set(self.deadlines)
        for slot, (_, generation, deadline) in self._sharers.items():
            if (current := self._books.ledger.get(slot).generation) != generation:
                raise InvariantBroken(f"slot {slot} is at generation {current}, its promise is for {generation}")
            if (deadline, slot) not in entries:
                raise InvariantBroken(f"the promise of slot {slot} ends at {deadline}, but no deadline is set")
        return len(promised)
