"""The books of one heap: its allocator and its ledger, kept in step, and every byte in exactly one state.

What keeps a granted block, its *keepers*, is written in its ledger record and in `holds`:

    owner      the session whose lease it is (record.session), none once it is released
    pending    opens that a handle still promises (record.pending)
    holds      the sessions that have it open

and from them alone follows its state:

    no keeper                                             not granted: the block is free, unless it is CLOSING
    CLOSING                                               SHARED
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
    only slots of B that have no owner are closing
    0 <= account.cached_bytes <= account.owned_bytes, and `cached_bytes` is at most their sum
    a session whose states lag behind is in quarantine

CLOSING: where clients open blocks without asking (`gates`), a block that was shared and has lost its last keeper is not
free yet. Its gate is closed, and it is in `closing` until the adapter has made sure (a barrier, and a look at all
lanes) that nobody came through the gate before; then `sweep` frees it, or somebody keeps it after all, or `reissue`
grants it to its last owner again, with the next generation, which leaves the allocator out of it.

CACHED: of the blocks that a session leases it may use only some and keep the others for later, without telling. How
many bytes that are is a claim of the session's (`claim`), bounded by what it leases. They can be recalled, so they
count as available.

Nothing here decides who may do what; `engine` and `shares` do. No method fails once it has begun to change something.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Final

from slabd_server.core.chains import Chain, Links
from slabd_server.core.errors import InvariantBroken, LedgerFull, OutOfMemory, UnknownBlock
from slabd_server.core.gates import NoGates
from slabd_server.core.holders import Holders
from slabd_server.core.ledger import Flag, Kind, Ledger, Record
from slabd_server.core.memory import FixedMemory
from slabd_server.core.preparing import Preparer, Reservation
from slabd_server.core.purposes import Purposes
from slabd_server.core.records import NO_SESSION, Block, BlockRef, BlockState, SlotId
from slabd_server.core.sizes import PAGE
from slabd_server.core.tallies import Tallies, count_up

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from collections.abc import Set as AbstractSet

    from slabd_server.core.accounts import Account
    from slabd_server.core.cleaner import Cleaner
    from slabd_server.core.gates import Gates
    from slabd_server.core.heap import Extent, Heap
    from slabd_server.core.purposes import Purpose
    from slabd_server.core.records import LeaseItem, Range, SessionId
    from slabd_server.core.store import Store

_UNGRANTED: Final = 255


@dataclass(slots=True)
class Hold:
    """A session's opens of one block: how many, and the ledger slot that records them."""

    opens: int
    ledger_slot: SlotId


class Books:
    """One heap: who has which block."""

    def __init__(
        self,
        name: str,
        heap_id: int,
        allocator: Heap,
        store: Store,
        cleaner: Cleaner,
        gates: Gates | None = None,
        preparer: Preparer | None = None,
    ) -> None:
        self.name: Final = name
        self.heap_id: Final = heap_id
        self.allocator: Final = allocator
        self.ledger: Final = Ledger(store)
        self.cleaner: Final = cleaner
        self.gates: Final[Gates] = gates or NoGates()
        self.preparer: Final = preparer or Preparer(FixedMemory())
        self.prepared_bytes = 0
        self.closing: Final[dict[SlotId, None]] = {}
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
        self.claimed_bytes = 0
        self.claimed_blocks = 0
        self.told: Callable[[SessionId, SlotId], Purpose | None] = _tells_nothing
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
        return self.allocator.used_bytes - self.cached_bytes

    @property
    def available_bytes(self) -> int:
        """Bytes that are free, or can be recalled."""
        return self.allocator.available_bytes + self.cached_bytes

    @property
    def cached_bytes(self) -> int:
        """Bytes of blocks that sessions lease and do not use, as they said when they were asked last."""
        return min(self.claimed_bytes, self.state_bytes[BlockState.LEASED])

    @property
    def requested_in_use_bytes(self) -> int:
        """Bytes that were asked for, of blocks that somebody uses; of cached ones, as much is left out as they are."""
        granted = self.allocator.used_bytes
        return self.requested_bytes * self.used_bytes // granted if granted else 0

    def claim(self, account: Account, cached_bytes: int, cached_blocks: int) -> None:
        """Note what a session says it does not use of its leases. It is bounded by what it has."""
        cached_bytes, cached_blocks = min(cached_bytes, account.owned_bytes), min(cached_blocks, len(account.owned))
        self.claimed_bytes += cached_bytes - account.cached_bytes
        self.claimed_blocks += cached_blocks - account.cached_blocks
        account.cached_bytes, account.cached_blocks = cached_bytes, cached_blocks

    # -- granting and ending leases

    def grant(
        self,
        account: Account,
        items: Sequence[LeaseItem],
        purpose: Purpose,
        *,
        sequence: int,
        now: float,
        flags: int = Flag.NONE,
    ) -> tuple[Block, ...]:
        """Grant a block for each item to a session, in one step: all, or none. `flags` are for their records.

        Raises:
            NoMemory: one of them cannot be had, or not in one step; nothing has changed.
            InvalidSize, InvalidAlignment: one of them never can; nothing has changed.
        """
        reservation = self.reserve(account, items)
        if not reservation.is_ready:
            self.take_back(reservation)
            raise OutOfMemory(f"{reservation.size} bytes have to be prepared before they can be granted")
        return self.enter(account, items, reservation, purpose, sequence=sequence, now=now, flags=flags)

    def reserve(self, account: Account, items: Sequence[LeaseItem]) -> Reservation:
        """Take a block for each item from the allocator, all or none, and prepare them as far as that takes no time.

        Raises:
            NoMemory, InvalidSize, InvalidAlignment: as `grant`; nothing has changed.
        """
        self.ledger.reserve(len(items))
        self.allocator.begin(len(items))
        self.preparer.begin()
        extents = self._allocate(items)
        commits, _ = self.preparer.take()
        # Pages that it shares with other blocks must exist before these are granted.
        if commits and any((offset | size) % PAGE for offset, size in extents):
            self._commit_now(extents, commits)
            commits = ()
        for offset, size in extents:
            self.cleaner.prepare(offset, size, session=account.id, uid=account.uid)
        return Reservation(tuple(extents), commits, self.preparer.take()[1])

    def _commit_now(self, extents: Sequence[Extent], commits: tuple[Range, ...]) -> None:
        try:
            for offset, size in commits:
                self.preparer.memory.commit(offset, size)
        except OutOfMemory:
            self.take_back(Reservation(tuple(extents), commits, ()))
            raise

    def set_aside(self, reservation: Reservation) -> None:
        """Count blocks that are being prepared, until `enter` or `take_back` is told of them; `resume` ends it."""
        self.prepared_bytes += reservation.size
        self.state_bytes[BlockState.LEASED] += reservation.size

    def resume(self, reservation: Reservation) -> None:
        """Note that blocks are prepared, or will not be."""
        self.prepared_bytes -= reservation.size
        self.state_bytes[BlockState.LEASED] -= reservation.size

    def take_back(self, reservation: Reservation, *, prepared: bool = False) -> None:
        """Free blocks that were reserved; unless they are prepared, what was to be committed may not exist."""
        for extent in reservation.extents:
            self.allocator.free(extent.offset)
        if not prepared:
            for offset, _ in reservation.commits:
                self.allocator.lack(offset)

    def enter(
        self,
        account: Account,
        items: Sequence[LeaseItem],
        reservation: Reservation,
        purpose: Purpose,
        *,
        sequence: int,
        now: float,
        flags: int = Flag.NONE,
    ) -> tuple[Block, ...]:
        """Make reserved blocks, which are prepared, a session's.

        Raises:
            LedgerFull: there is no room to record them; they are free again.
        """
        try:
            self.ledger.reserve(len(items))
        except LedgerFull:
            self.take_back(reservation, prepared=True)
            raise
        blocks = []
        for item, (offset, size) in zip(items, reservation.extents, strict=True):
            record = Record(Kind.BLOCK, flags, 0, 0, offset, size, item.size, account.id, sequence, now)
            slot, record = self.ledger.add(record)
            self.gates.open(slot, record.generation)
            self._adopt(account, slot, size)
            self._purposes.put(slot, purpose)
            self.blocks += 1
            self.requested_bytes += item.size
            self.tallies.count_grant(size)
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
            self.take_back(Reservation(tuple(placed.values()), self.preparer.take()[0], ()))
            raise
        return placed

    def disown(self, account: Account, slot: SlotId, *, sequence: int, cause: str, record: Record | None = None) -> int:
        """End a session's lease of a block it owns; return how many bytes became free by it.

        `record` is the block's, for who has it at hand.
        """
        record = record or self.ledger.get(slot)
        account.owned.remove(slot)
        account.owned_bytes -= record.b
        if account.cached_blocks:
            self.claim(account, account.cached_bytes, account.cached_blocks)
        self.holders.rank(account)
        self.leases -= 1
        count_up(self.tallies.leases_ended, cause)
        if not (record.pending or slot in self.holds or (record.flags & Flag.SHARED and self.gates.watched)):
            self.gates.close(slot, record.generation)
            return self._free(slot, record, actor=account.id, sequence=sequence)
        self.orphans.append(slot)
        record = self.ledger.update(slot, record._replace(session=NO_SESSION, sequence=sequence))
        return self._settle(slot, record, actor=account.id, sequence=sequence)

    def take_over(self, account: Account, slot: SlotId, *, sequence: int, now: float) -> None:
        """Make a session the owner of a block that has none, using up the pending open that promised it.

        Its lease begins now, so that a chain stays in the order of its leases' beginnings.
        """
        record = self.ledger.get(slot)
        self.orphans.remove(slot)
        self._adopt(account, slot, record.b)
        flags = record.flags & ~(Flag.TRANSFER | Flag.LANE)  # no cache of the new owner's knows it
        changed = record._replace(session=account.id, flags=flags, pending=0, sequence=sequence, time=now)
        self._restate(slot, self.ledger.update(slot, changed))

    def _adopt(self, account: Account, slot: SlotId, size: int) -> None:
        account.owned.append(slot)
        account.owned_bytes += size
        self.holders.rank(account)
        self.leases += 1

    def let_keep(self, slot: SlotId) -> None:
        """Note that the owner of a block may keep it in its cache."""
        record = self.ledger.get(slot)
        self.ledger.update(slot, record._replace(flags=record.flags | Flag.LANE))

    def resize(self, slot: SlotId, requested_size: int) -> None:
        """Note how many bytes of a granted block its owner asks for now; bounded by what the block has."""
        self.ledger.update(slot, self._resized(self.ledger.get(slot), requested_size))

    def _resized(self, record: Record, requested_size: int) -> Record:
        changed = record._replace(c=min(max(requested_size, 1), record.b))
        self.requested_bytes += changed.c - record.c
        return changed

    # -- pending opens and holds

    def set_pending(
        self, slot: SlotId, opens: int, *, flags: int, sequence: int, requested_size: int | None = None
    ) -> None:
        """Set how many opens a block's handles still promise, and how many bytes of it, if that is said.

        Call `settle` when that may have been the last keeper.
        """
        record = self.ledger.get(slot)
        if requested_size is not None:
            record = self._resized(record, requested_size)
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
        """Free a block that has lost its last keeper, else bring its state up to date; return the bytes freed.

        Those of a block that is CLOSING are counted as freed.
        """
        return self._settle(slot, self.ledger.get(slot), actor=actor, sequence=sequence)

    def _settle(self, slot: SlotId, record: Record, *, actor: SessionId, sequence: int) -> int:
        if self._is_kept(slot, record):
            self._restate(slot, record)
            return 0
        self.gates.close(slot, record.generation)
        if record.flags & Flag.SHARED and self.gates.watched:
            self.closing[slot] = None
            self._restate(slot, record)
            return record.b
        self.orphans.remove(slot)
        return self._free(slot, record, actor=actor, sequence=sequence)

    def _is_kept(self, slot: SlotId, record: Record) -> bool:
        return bool(record.session or record.pending or slot in self.holds)

    def sweep(self, slots: Iterable[SlotId]) -> None:
        """Free those of these CLOSING blocks that nobody keeps, now that nobody else can come."""
        for slot in slots:
            if slot in self.closing:
                del self.closing[slot]
                record = self.ledger.get(slot)
                if self._is_kept(slot, record):
                    self._restate(slot, record)
                else:
                    self.orphans.remove(slot)
                    self._free(slot, record, actor=NO_SESSION, sequence=record.sequence)

    def reissue(self, account: Account, ref: BlockRef, *, sequence: int, now: float) -> Block | None:
        """Grant a CLOSING block that nobody keeps anew, in one step, to the session that had it; None if it is not one.

        The caller has made sure, as for `sweep`, that nobody else can come.

        Raises:
            LedgerFull: its slot cannot be taken once more; nothing has changed.
        """
        slot = ref.slot
        record = self.ledger.get(slot)
        if slot not in self.closing or record.generation != ref.generation or self._is_kept(slot, record):
            return None
        record = self.ledger.reissue(
            slot, Record(Kind.BLOCK, Flag.LANE, 0, 0, record.a, record.b, record.c, account.id, sequence, now)
        )
        del self.closing[slot]
        self.orphans.remove(slot)
        self._purposes.drop(slot)
        self.gates.open(slot, record.generation)
        self._adopt(account, slot, record.b)
        self.tallies.count_grant(record.b)
        self.tallies.leases_granted += 1
        self._restate(slot, record)
        return Block(BlockRef(slot, record.generation), record.a, record.b, record.c)

    def _free(self, slot: SlotId, record: Record, *, actor: SessionId, sequence: int) -> int:
        """Free a block that is in no chain any more."""
        self._purposes.drop(slot)
        self.blocks -= 1
        self.requested_bytes -= record.c
        self.state_bytes[self._states[slot]] -= record.b
        self._states[slot] = _UNGRANTED
        self.ledger.drop(slot, record.generation, session=actor, sequence=sequence)
        self.allocator.free(record.a)
        return record.b

    def close_gate(self, account: Account, ref: BlockRef) -> bool:
        """Close the gate of a block that its owner is about to transfer; return whether there is anything to close.

        There is not when nobody ever had a handle of it, nor when the transfer will be refused.
        """
        record = self.ledger.get(ref.slot)
        mine = (record.kind, record.generation, record.session) == (Kind.BLOCK, ref.generation, account.id)
        if not mine or record.pending or ref.slot in self.holds or not record.flags & Flag.SHARED:
            return False
        self.gates.close(ref.slot, ref.generation)
        return True

    def restore_gate(self, ref: BlockRef) -> None:
        """Set the gate of a block as its handles want it: of one that is being transferred it stays closed."""
        record = self.ledger.get(ref.slot)
        if record.kind is not Kind.BLOCK or record.generation != ref.generation or record.flags & Flag.TRANSFER:
            return
        if record.pending or not record.flags & Flag.SHARED:
            self.gates.open(ref.slot, ref.generation)
        elif ref.slot not in self.closing:
            self.gates.shut(ref.slot, ref.generation)

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
        """Return what a block is for: as its session tells where it is asked, else as it said when it was granted."""
        return self.told(self.ledger.get(slot).session, slot) or self._purposes.get(slot)

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
        self.claim(account, 0, 0)
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
        self.claim(account, 0, 0)

    def _derive(self, slot: SlotId, record: Record) -> BlockState:
        if slot in self.closing:
            return BlockState.SHARED
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
        states[BlockState.LEASED] += self.prepared_bytes
        _no_overlap(extents, self.total_bytes)
        for what, found, counted in (
            ("blocks", len(extents), self.blocks),
            ("blocks with a state", len(extents), len(self._states) - self._states.count(_UNGRANTED)),
            ("blocks without an owner", unowned, len(self.orphans)),
            ("holds", holds, sum(map(len, self.holds.values()))),
            ("bytes granted", sum(size for _, size in extents) + self.prepared_bytes, self.allocator.used_bytes),
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
        if not (record.session or record.pending or self.holds.get(slot) or slot in self.closing):
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
            ("closing", self.closing),
        ):
            for slot in slots:
                if self._counted_as(slot) == _UNGRANTED:
                    raise InvariantBroken(f"slot {slot} is {what} and not granted")
        if owned := set(self.closing) - set(self.orphans):
            raise InvariantBroken(f"slots {sorted(owned)} are closing and have an owner")
        for slot in self.orphans:
            if owner := self.ledger.get(slot).session:
                raise InvariantBroken(f"slot {slot} is an orphan and owned by session {owner}")
        for slot, holders in self.holds.items():
            if not holders:
                raise InvariantBroken(f"slot {slot} is open and nobody has it open")
        if strays := self._lagging - self._quarantined:
            raise InvariantBroken(f"sessions {sorted(strays)} lag and are not in quarantine")


def _tells_nothing(_session: SessionId, _slot: SlotId) -> None:
    """Stand for sessions that say everything in their requests."""


def _no_overlap(extents: list[tuple[int, int]], total: int) -> None:
    end = 0
    for offset, size in sorted(extents):
        if offset < end or offset + size > total:
            raise InvariantBroken(
                f"block [{offset}, {offset + size}) overlaps one that ends at {end}, or leaves the heap"
            )
        end = offset + size
