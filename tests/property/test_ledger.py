"""The ledger against a dict, its records against damage, and the whole engine's records against its memory."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from slabd_server.core.errors import InvariantBroken, LedgerFull
from slabd_server.core.ledger import Kind, Ledger, Record, pack_record, unpack_record
from slabd_server.core.records import NO_SESSION, SessionId, SlotId
from slabd_server.core.store import RECORD_BYTES, MemoryStore

U64 = st.integers(0, 2**64 - 1)
RECORDS = st.builds(
    Record,
    kind=st.sampled_from([Kind.BLOCK, Kind.HOLD, Kind.SESSION]),
    flags=st.integers(0, 255),
    pending=st.integers(0, 2**16 - 1),
    generation=st.integers(1, 2**32 - 1),
    a=U64,
    b=U64,
    c=U64,
    session=U64.map(SessionId),
    sequence=U64,
    time=st.floats(allow_nan=False),
    extra=st.integers(0, 2**32 - 1),
)


@given(RECORDS)
def test_records_survive_packing(record: Record) -> None:
    """What is read is what was written."""
    packed = pack_record(record)
    assert len(packed) == RECORD_BYTES
    assert unpack_record(packed) == record


@given(RECORDS, st.integers(0, RECORD_BYTES * 8 - 1))
def test_a_flipped_bit_is_noticed(record: Record, bit: int) -> None:
    """No single bit of a record can change unnoticed."""
    packed = bytearray(pack_record(record))
    packed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(InvariantBroken):
        unpack_record(bytes(packed))


class LedgerMachine(RuleBasedStateMachine):
    """Takes, changes and frees slots; a second ledger's view of the same store is that of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.store = MemoryStore(8)
        self.ledger = Ledger(self.store)
        self.model: dict[SlotId, Record] = {}
        self.generations: dict[SlotId, int] = {}

    @rule(record=RECORDS, number=st.integers(1, 20))
    def add(self, record: Record, number: int) -> None:
        """Take slots."""
        self.ledger.reserve(number)
        capacity = self.store.capacity
        for _ in range(number):
            slot, written = self.ledger.add(record)
            assert slot not in self.model
            generation = self.generations.get(slot, 0) + 1
            self.model[slot] = record._replace(generation=generation)
            assert written == self.model[slot]
            self.generations[slot] = generation
        assert self.store.capacity == capacity

    @rule(data=st.data(), record=RECORDS)
    def update(self, data: st.DataObject, record: Record) -> None:
        """Change a record."""
        if self.model:
            slot = data.draw(st.sampled_from(sorted(self.model)))
            new = record._replace(kind=self.model[slot].kind, generation=self.model[slot].generation)
            self.ledger.update(slot, new)
            self.model[slot] = new

    @rule(data=st.data(), session=U64, sequence=U64)
    def drop(self, data: st.DataObject, session: int, sequence: int) -> None:
        """Free a slot; its tombstone remembers who did it."""
        if self.model:
            slot = data.draw(st.sampled_from(sorted(self.model)))
            self.ledger.drop(slot, self.generations[slot], session=SessionId(session), sequence=sequence)
            tombstone = self.ledger.get(slot)
            assert (tombstone.kind, tombstone.session, tombstone.sequence) == (Kind.FREE, session, sequence)
            assert tombstone.generation == self.model.pop(slot).generation

    @invariant()
    def the_store_tells_everything(self) -> None:
        """The records in the store are the model."""
        self.ledger.check()
        assert len(self.ledger) == len(self.model)
        assert dict(self.ledger.records()) == self.model
        stored = (unpack_record(self.store.read(slot)) for slot in range(self.store.capacity))
        assert {slot: record for slot, record in enumerate(stored) if record.kind is not Kind.FREE} == self.model


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)


class FullStore(MemoryStore):
    """A store on a machine without memory."""

    def grow(self, capacity: int) -> None:
        """Refuse."""
        raise LedgerFull(f"no memory for {capacity} records")


def test_reserving_in_vain_changes_nothing() -> None:
    """When the store cannot grow, nothing has changed."""
    ledger = Ledger(FullStore(2))
    ledger.reserve(2)
    with pytest.raises(LedgerFull):
        ledger.reserve(3)
    ledger.check()
    assert (len(ledger), ledger.high_water) == (0, 0)


def test_an_exhausted_slot_is_retired() -> None:
    """A slot whose generation cannot rise any more is never taken again."""
    store = MemoryStore(4)
    ledger = Ledger(store)
    record = Record(Kind.BLOCK, 0, 0, 0, 0, 64, 64, SessionId(1), 0, 0.0)
    slot, _ = ledger.add(record)
    store.write(slot, pack_record(record._replace(generation=2**32 - 1)))
    ledger.drop(slot, 2**32 - 1, session=NO_SESSION, sequence=0)
    assert ledger.add(record)[0] != slot
    ledger.check()
