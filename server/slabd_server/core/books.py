"""The books of one heap: its allocator and its ledger, kept in step, and every byte in exactly one state.

What keeps a granted block, its *keepers*, is written in its ledger record and in `holds`:

    owner      the session whose lease it is (record.session), none once it is released
    pending    opens that a handle still promises (record.pending)
    holds      the sessions that have it open

and from them alone follows its state:

    no keeper                                             not granted: the block is free
    every keeper is a quarantined session, pending == 0   QUARANTINED
    pending > 0 or any hold                               SHARED
    otherwise                                             LEASED

Invariants, with B the set of granted blocks:

    used_bytes + available_bytes == total_bytes
    sum(state_bytes) + free_bytes + slab_free_bytes == total_bytes
    sum(size of b in B) == allocator.used_bytes,   and no two blocks of B overlap
    a slot of B is in its owner's chain, or in `orphans` when it has none
    `holds` and the ledger's HOLD records say the same
    only slots of B have holds, a state or a purpose, and each of them has a state
    a session whose states lag behind is in quarantine

Nothing here decides who may do what; `engine` and `shares` do. No method fails once it has begun to change something.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Final

from slabd_server.core.chains import Chain, Links
from slabd_server.core.errors import InvariantBroken, OutOfMemory, UnknownBlock
from slabd_server.core.holders import Holders
from slabd_server.core.ledger import Flag, Kind, Ledger, Record
from slabd_server.core.purposes import Purposes
from slabd_server.core.records import NO_SESSION, Block, BlockRef, BlockState, SlotId
from slabd_server.core.tallies import Tallies, count_up

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from collections.abc import Set as AbstractSet

    from slabd_server.core.accounts import Account
    from slabd_server.core.cleaner import Cleaner
    from slabd_server.core.heap import Extent, Heap
    from slabd_server.core.purposes import Purpose
    from slabd_server.core.records import LeaseItem, SessionId
    from slabd_server.core.store import Store

_UNGRANTED: Final = 255


@dataclass(slots=True)
class Hold:
    """A session's opens of one block: how many, and the ledger slot that records them."""

    opens: int
    ledger_slot: SlotId


class Books:
    """One heap: who has which block."""

    def __init__(self, name: str, heap_id: int, allocator: Heap, store: Store, cleaner: Cleaner) -> None:
        self.name: Final = name
        self.heap_id: Final = heap_id
        self.allocator: Final = allocator
        self.ledger: Final = Ledger(store)
        self.cleaner: Final = cleaner
        self.links: Final = Links()
        self.orphans: Final = Chain(self.links)
        self.holds: Final[dict[SlotId, dict[SessionId, Hold]]] = {}
        self.holders: Final = Holders()
        self.tallies: Final = Tallies()
        self.state_bytes = [0] * len(BlockState)
        self.requested_bytes = 0
        self.used_peak_bytes = 0
        self.blocks = 0
        self.leases = 0
        self._states = bytearray()
        self._purposes = Purposes()
        self._quarantined: set[SessionId] = set()
        self._lagging: set[SessionId] = set()

    def __repr__(self) -> str:
        return f"<Books {self.name!r}: {self.blocks} blocks, {self.used_bytes} of {self.total_bytes} bytes used>"

    @property
    def total_bytes(self) -> int:
        """The heap's size."""
        return self.allocator.total_bytes

    @property
    def used_bytes(self) -> int:
        """Bytes of blocks that somebody uses."""
        return self.allocator.used_bytes - self.state_bytes[BlockState.CACHED]

    @property
    def available_bytes(self) -> int:
        """Bytes that are free, or can be recalled."""
        return self.allocator.available_bytes + self.state_bytes[BlockState.CACHED]

    # -- granting and ending leases

    def grant(
        self, account: Account, items: Sequence[LeaseItem], purpose: Purpose, *, sequence: int, now: float
    ) -> tuple[Block, ...]:
        """Grant a block for each item to a session: all, or none.

        Raises:
            NoMemory: one of them cannot be had; nothing has changed.
            InvalidSize, InvalidAlignment: one of them never can; nothing has changed.
        """
        self.ledger.reserve(len(items))
        extents = self._allocate(items)
        blocks = []
        for item, (offset, size) in zip(items, extents, strict=True):
            record = Record(Kind.BLOCK, Flag.NONE, 0, 0, offset, size, item.size, account.id, sequence, now)
            self.cleaner.prepare(offset, size, session=account.id, uid=account.uid)
            slot, record = self.ledger.add(record)
            self._adopt(account, slot, size)
            self._purposes.put(slot, purpose)
            self.blocks += 1
            self.requested_bytes += item.size
            self._restate(slot, record)
            blocks.append(Block(BlockRef(slot, record.generation), offset, size, item.size))
        self.tallies.leases_granted += len(blocks)
        self.used_peak_bytes = max(self.used_peak_bytes, self.used_bytes)
        return tuple(blocks)

    def _allocate(self, items: Sequence[LeaseItem]) -> list[Extent]:
        """Find a place for each item: for all, or none."""
        if len(items) == 1:
            return [self.allocator.grant(items[0].size, items[0].alignment)]
        # The largest first, while there is most room. When that fails, idle slabs were given back too late to make room
        # for those that came before: once more, without them.
        order = sorted(range(len(items)), key=lambda index: -items[index].size)
        try:
            placed = self._place(items, order)
        except OutOfMemory:
            placed = self._place(items, order)
        return [placed[index] for index in range(len(items))]

    def _place(self, items: Sequence[LeaseItem], order: Sequence[int]) -> dict[int, Extent]:
        placed: dict[int, Extent] = {}
        try:
            for index in order:
                placed[index] = self.allocator.grant(items[index].size, items[index].alignment)
        except Exception:
            for extent in placed.values():
                self.allocator.free(extent.offset)
            raise
        return placed

    def disown(self, account: Account, slot: SlotId, *, sequence: int, cause: str) -> int:
        """End a session's lease of a block it owns; return how many bytes became free by it."""
        record = self.ledger.get(slot)
        account.owned.remove(slot)
        account.owned_bytes -= record.b
        self.holders.rank(account)
        self.orphans.append(slot)
        self.leases -= 1
        count_up(self.tallies.leases_ended, cause)
        record = self.ledger.update(slot, record._replace(session=NO_SESSION, sequence=sequence))
        return self._settle(slot, record, actor=account.id, sequence=sequence)

    def take_over(self, account: Account, slot: SlotId, *, sequence: int, now: float) -> None:
        """Make a session the owner of a block that has none, using up the pending open that promised it.

        Its lease begins now, so that a chain stays in the order of its leases' beginnings.
        """
        record = self.ledger.get(slot)
        self.orphans.remove(slot)
        self._adopt(account, slot, record.b)
        flags = record.flags & ~Flag.TRANSFER
        changed = record._replace(session=account.id, flags=flags, pending=0, sequence=sequence, time=now)
        self._restate(slot, self.ledger.update(slot, changed))

    def _adopt(self, account: Account, slot: SlotId, size: int) -> None:
        account.owned.append(slot)
        account.owned_bytes += size
        self.holders.rank(account)
        self.leases += 1

    # -- pending opens and holds

    def set_pending(self, slot: SlotId, opens: int, *, flags: int, sequence: int) -> None:
        """Set how many opens a block's handles still promise. Call `settle` when that may have been the last keeper."""
        record = self.ledger.get(slot)
        record = self.ledger.update(slot, record._replace(pending=opens, flags=flags, sequence=sequence))
        self._restate(slot, record)

    def hold(self, account: Account, slot: SlotId, *, sequence: int, now: float) -> None:
        """Record one more open of a block by a account. Call `ledger.reserve(1)` before anything is changed."""
        holders = self.holds.setdefault(slot, {})
        if (hold := holders.get(account.id)) is None:
            record = Record(Kind.HOLD, Flag.NONE, 0, 0, slot, 1, 0, account.id, sequence, now)
            holders[account.id] = Hold(1, self.ledger.add(record)[0])
            account.held[slot] = None
        else:
            hold.opens += 1
            record = self.ledger.get(hold.ledger_slot)
            self.ledger.update(hold.ledger_slot, record._replace(b=hold.opens, sequence=sequence))
        self._restate(slot, self.ledger.get(slot))

    def unhold(self, account: Account, slot: SlotId, *, sequence: int, opens: int | None = 1) -> int:
        """Take back one open, or all (None), of a block by a session; return how many bytes became free by it."""
        hold = self.holds[slot][account.id]
        if opens is not None and hold.opens > opens:
            hold.opens -= opens
            record = self.ledger.get(hold.ledger_slot)
            self.ledger.update(hold.ledger_slot, record._replace(b=hold.opens, sequence=sequence))
            return 0
        generation = self.ledger.get(hold.ledger_slot).generation
        self.ledger.drop(hold.ledger_slot, generation, session=account.id, sequence=sequence)
        del self.holds[slot][account.id]
        if not self.holds[slot]:
            del self.holds[slot]
        del account.held[slot]
        return self.settle(slot, actor=account.id, sequence=sequence)

    def settle(self, slot: SlotId, *, actor: SessionId, sequence: int) -> int:
        """Free a block that has lost its last keeper, else bring its state up to date; return the bytes freed."""
        return self._settle(slot, self.ledger.get(slot), actor=actor, sequence=sequence)

    def _settle(self, slot: SlotId, record: Record, *, actor: SessionId, sequence: int) -> int:
        if record.session or record.pending or slot in self.holds:
            self._restate(slot, record)
            return 0
        self.orphans.remove(slot)
        self._purposes.drop(slot)
        self.blocks -= 1
        self.requested_bytes -= record.c
        self.state_bytes[self._states[slot]] -= record.b
        self._states[slot] = _UNGRANTED
        self.ledger.drop(slot, record.generation, session=actor, sequence=sequence)
        self.allocator.free(record.a)
        return record.b

    # -- looking up

    def find(self, ref: BlockRef) -> Record:
        """Return a granted block's record.

        Raises:
            UnknownBlock: the slot is not granted, or has been re-issued since.
        """
        record = self.ledger.get(ref.slot)
        if record.kind is not Kind.BLOCK:
            raise UnknownBlock(f"block {ref.slot}.{ref.generation} is not granted: released already, or never leased")
        if record.generation != ref.generation:
            raise UnknownBlock(
                f"block {ref.slot}.{ref.generation} has been released; its slot is at generation {record.generation}"
            )
        return record

    def owned(self, account: Account, ref: BlockRef) -> Record:
        """Return the record of a block whose lease a session owns.

        Raises:
            UnknownBlock: it is not granted, or not this session's.
        """
        record = self.find(ref)
        if record.session != account.id:
            raise UnknownBlock(f"block {ref.slot}.{ref.generation} is not leased by session {account.id}")
        return record

    def purpose(self, slot: SlotId) -> Purpose:
        """Return what a block is for."""
        return self._purposes.get(slot)

    def state(self, slot: SlotId) -> BlockState:
        """Return a granted block's state."""
        return BlockState(self._states[slot])

    # -- quarantine

    @property
    def quarantined(self) -> AbstractSet[SessionId]:
        """The sessions in quarantine, and those that were when they began to end."""
        return self._quarantined

    @property
    def lagging(self) -> AbstractSet[SessionId]:
        """Those of them whose blocks' states lag behind."""
        return self._lagging

    def quarantine(self, account: Account) -> Iterator[None]:
        """Put a session into quarantine; each step of what is returned brings the state of one block up to date.

        Until the last step the states lag behind, as `check` knows. The steps may be left undone when the session ends.
        """
        self._quarantined.add(account.id)
        self._lagging.add(account.id)
        return self._restate_all(account)

    def _restate_all(self, account: Account) -> Iterator[None]:
        # Nobody changes these while a session is in quarantine: only its own calls could.
        for slot in chain(account.owned, account.held):
            self._restate(slot, self.ledger.get(slot))
            yield
        self._lagging.discard(account.id)

    def forget(self, account: Account) -> None:
        """Forget a session that has nothing any more."""
        self._quarantined.discard(account.id)
        self._lagging.discard(account.id)

    def _derive(self, slot: SlotId, record: Record) -> BlockState:
        holders = self.holds.get(slot)
        if not self._quarantined or record.pending:
            return BlockState.SHARED if record.pending or holders else BlockState.LEASED
        keepers = set(holders or ())
        if record.session:
            keepers.add(record.session)
        if keepers <= self._quarantined:
            return BlockState.QUARANTINED
        return BlockState.SHARED if holders else BlockState.LEASED

    def _restate(self, slot: SlotId, record: Record) -> None:
        if slot >= len(self._states):
            self._states.extend(bytes([_UNGRANTED]) * (max(slot + 1 - len(self._states), 64)))
        state = self._derive(slot, record)
        if (before := self._states[slot]) == state:
            return
        if before != _UNGRANTED:
            self.state_bytes[before] -= record.b
        self.state_bytes[state] += record.b
        self._states[slot] = state

    def _lags(self, slot: SlotId, record: Record) -> bool:
        return not self._lagging.isdisjoint((record.session, *self.holds.get(slot, ())))

    # -- proof

    def check(self) -> int:
        """Raise InvariantBroken when an invariant does not hold; return how many blocks there are. Linear in them.

        The two sums of the module's docstring follow from these rows: what the allocator does not use, it has free.
        """
        self.allocator.check()
        self.ledger.check()
        self.orphans.check()
        self._purposes.check()
        extents: list[tuple[int, int]] = []
        states = [0] * len(BlockState)
        requested = unowned = holds = 0
        for slot, record in self.ledger.records():
            if record.kind is Kind.HOLD:
                self._check_hold(slot, record)
                holds += 1
            elif record.kind is Kind.BLOCK:
                states[self._checked_state(slot, record)] += record.b
                extents.append((record.a, record.b))
                requested += record.c
                unowned += not record.session
        _no_overlap(extents, self.total_bytes)
        for what, found, counted in (
            ("blocks", len(extents), self.blocks),
            ("blocks with a state", len(extents), len(self._states) - self._states.count(_UNGRANTED)),
            ("blocks without an owner", unowned, len(self.orphans)),
            ("holds", holds, sum(map(len, self.holds.values()))),
            ("bytes granted", sum(size for _, size in extents), self.allocator.used_bytes),
            ("bytes requested", requested, self.requested_bytes),
            ("bytes by state", states, self.state_bytes),
        ):
            if found != counted:
                raise InvariantBroken(f"heap {self.name}: {what}: {found} found, {counted} counted")
        self._check_strays()
        return len(extents)

    def _checked_state(self, slot: SlotId, record: Record) -> int:
        counted, derived = self._counted_as(slot), self._derive(slot, record)
        if counted == _UNGRANTED or (counted != derived and not self._lags(slot, record)):
            raise InvariantBroken(f"slot {slot} is counted as {counted}, its keepers say {derived.name}")
        if not (record.session or record.pending or self.holds.get(slot)):
            raise InvariantBroken(f"slot {slot} is granted and has no keeper")
        return counted

    def _counted_as(self, slot: int) -> int:
        return self._states[slot] if slot < len(self._states) else _UNGRANTED

    def _check_hold(self, slot: SlotId, record: Record) -> None:
        hold = self.holds.get(SlotId(record.a), {}).get(record.session)
        if hold != Hold(record.b, slot):
            raise InvariantBroken(
                f"slot {slot} records {record.b} opens of slot {record.a} by session {record.session}, "
                f"the books have {hold}"
            )

    def _check_strays(self) -> None:
        """Raise InvariantBroken when something is known of what is not granted, as the states tell."""
        for what, slots in (
            ("open", self.holds),
            ("an orphan", self.orphans),
            ("for a purpose", self._purposes.slots()),
        ):
            for slot in slots:
                if self._counted_as(slot) == _UNGRANTED:
                    raise InvariantBroken(f"slot {slot} is {what} and not granted")
        for slot in self.orphans:
            if owner := self.ledger.get(slot).session:
                raise InvariantBroken(f"slot {slot} is an orphan and owned by session {owner}")
        for slot, holders in self.holds.items():
            if not holders:
                raise InvariantBroken(f"slot {slot} is open and nobody has it open")
        if strays := self._lagging - self._quarantined:
            raise InvariantBroken(f"sessions {sorted(strays)} lag and are not in quarantine")


def _no_overlap(extents: list[tuple[int, int]], total: int) -> None:
    end = 0
    for offset, size in sorted(extents):
        if offset < end or offset + size > total:
            raise InvariantBroken(
                f"block [{offset}, {offset + size}) overlaps one that ends at {end}, or leaves the heap"
            )
        end = offset + size
