"""The ledger's slots: how it makes room for them, and what its `check` sees."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

import pytest

from slabd_server.core.errors import InvariantBroken, LedgerFull
from slabd_server.core.ledger import Flag, Kind, Ledger, Record, pack_record, unpack_record
from slabd_server.core.records import NO_SESSION, SessionId, SlotId
from slabd_server.core.store import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable

RECORD = Record(Kind.BLOCK, 0, 0, 0, 0, 64, 64, SessionId(1), 0, 0.0)
FREE = Record(Kind.FREE, 0, 0, 0, 0, 0, 0, NO_SESSION, 0, 0.0)


def ledger_of_four(capacity: int = 8) -> tuple[Ledger, MemoryStore]:
    """Return a ledger with slots 0 and 1 taken, 2 and 3 free again, and its store."""
    store = MemoryStore(capacity)
    ledger = Ledger(store)
    for _ in range(4):
        ledger.add(RECORD)
    for slot in (3, 2):
        ledger.drop(SlotId(slot), 1, session=NO_SESSION, sequence=0)
    return ledger, store


@pytest.mark.parametrize(
    ("before", "wanted", "after"),
    [
        (8, 6, 8),  # 4 never taken, and 2 free again
        (8, 7, 8 + 1024),
        (8, 8 + 1024, 8 + 1026),
        (16_384, 16_383, 16_384 + 2048),
        (16_384, 16_384 + 3000, 16_384 + 3002),
    ],
)
def test_the_store_grows_by_an_eighth(before: int, wanted: int, after: int) -> None:
    """It grows when there are too few slots, by an eighth, at least by 1024 and by what is missing."""
    ledger, store = ledger_of_four(before)
    ledger.reserve(wanted)
    assert store.capacity == after
    ledger.check()


def test_slots_are_used_again_first() -> None:
    """Free slots come before those that were never taken, and the high-water mark says how many ever were."""
    ledger, _ = ledger_of_four()
    assert [ledger.add(RECORD)[0] for _ in range(3)] == [2, 3, 4]
    assert (len(ledger), ledger.high_water) == (5, 5)


@pytest.mark.parametrize("slot", [-1, 4, 7, 10**6])
def test_a_slot_never_taken_is_free(slot: int) -> None:
    """Whatever number somebody makes up, there is a record for it: that of a free slot of generation 0."""
    ledger, store = ledger_of_four()
    for behind in (4, 7):
        store.write(behind, pack_record(RECORD))
    assert ledger.get(slot) == FREE


def test_only_known_kinds_are_read() -> None:
    """A record of a later version's kind is refused, though its checksum is right."""
    packed = pack_record(RECORD._replace(kind=4))  # type: ignore[arg-type]
    with pytest.raises(InvariantBroken, match="of an unknown kind, 4"):
        unpack_record(packed)


def test_the_layout_is_fixed() -> None:
    """A later version reads what this one wrote: each field is where it is, and kinds and flags are these numbers."""
    record = Record(Kind.HOLD, 5, 6, 7, 8, 9, 10, SessionId(11), 12, 1.5, 13)
    expected = struct.pack("<BBHIQQQQQdI", 2, 5, 6, 7, 8, 9, 10, 11, 12, 1.5, 13)
    assert pack_record(record) == expected + struct.pack("<I", zlib.crc32(expected))
    assert {kind.name: kind.value for kind in Kind} == {"FREE": 0, "BLOCK": 1, "HOLD": 2, "SESSION": 3}
    assert (Flag.NONE, Flag.TRANSFER, Flag.READ_ONLY, Flag.ATTACHED) == (0, 1, 2, 4)


@pytest.mark.parametrize(("generation", "again"), [(2**32 - 2, True), (2**32 - 1, False)])
def test_a_slot_serves_till_its_last_generation(generation: int, *, again: bool) -> None:
    """A slot is retired when its generation cannot rise any more, and not before."""
    ledger, store = ledger_of_four()
    store.write(1, pack_record(RECORD._replace(generation=generation)))
    ledger.drop(SlotId(1), generation, session=NO_SESSION, sequence=0)
    ledger.check()
    slot, record = ledger.add(RECORD)
    assert ((slot, record.generation) == (1, generation + 1)) is again


def test_a_slot_is_reissued_in_place() -> None:
    """With the next generation, in one write; the last one that there is cannot be followed by another."""
    ledger, store = ledger_of_four()
    written = ledger.reissue(SlotId(0), RECORD._replace(b=128))
    assert (written.generation, written.b) == (2, 128)
    assert ledger.get(SlotId(0)) == written == unpack_record(store.read(0))
    ledger.update(SlotId(1), RECORD._replace(generation=2**32 - 1))
    with pytest.raises(LedgerFull):
        ledger.reissue(SlotId(1), RECORD)
    ledger.check()


def use_more_than_there_is(ledger: Ledger, _store: MemoryStore) -> None:
    """Let slots be used that the store has not."""
    ledger._high_water, ledger._taken = 9, 7


def miscount_retired(ledger: Ledger, _store: MemoryStore) -> None:
    """Let a slot be retired that nobody knows."""
    ledger._retired = 1


def lose_a_record(_ledger: Ledger, store: MemoryStore) -> None:
    """Let a taken slot's record be gone."""
    store.write(1, pack_record(FREE._replace(generation=1)))


def free_twice(ledger: Ledger, _store: MemoryStore) -> None:
    """Let one slot be free twice, and another not at all."""
    ledger._free[0] = ledger._free[1]


def free_what_is_taken(ledger: Ledger, _store: MemoryStore) -> None:
    """Let a slot be both free and taken."""
    ledger._free[0] = 0


def free_what_was_never_taken(ledger: Ledger, _store: MemoryStore) -> None:
    """Let a slot be free again that was never taken."""
    ledger._free[0] = 4


def free_what_is_exhausted(_ledger: Ledger, store: MemoryStore) -> None:
    """Let a slot be free that cannot be taken again."""
    store.write(3, pack_record(FREE._replace(generation=2**32 - 1)))


def write_behind(_ledger: Ledger, store: MemoryStore) -> None:
    """Let a slot that was never taken have a tombstone."""
    store.write(4, pack_record(FREE._replace(generation=1)))


def write_at_the_end(_ledger: Ledger, store: MemoryStore) -> None:
    """Let the store's last slot have a tombstone."""
    store.write(7, pack_record(FREE._replace(generation=1)))


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (use_more_than_there_is, "9 slots used of a store with 8"),
        (miscount_retired, r"2 taken \+ 2 free \+ 1 retired slots != 4"),
        (lose_a_record, "1 records are taken, the ledger counts 2"),
        (free_twice, "a slot is free twice"),
        (free_what_is_taken, "slot 0 is on the free list and taken"),
        (free_what_was_never_taken, "slot 4 is on the free list, but only 4 were ever taken"),
        (free_what_is_exhausted, "slot 3 is on the free list, but its generation 4294967295 is last"),
        (write_behind, "slot 4 was never taken but has been written"),
        (write_at_the_end, "slot 7 was never taken but has been written"),
    ],
)
def test_check_sees_what_is_wrong(spoil: Callable[[Ledger, MemoryStore], None], found: str) -> None:
    """Whichever rule of the ledger is broken, `check` says so with the numbers."""
    ledger, store = ledger_of_four()
    ledger.check()
    spoil(ledger, store)
    with pytest.raises(InvariantBroken, match=found):
        ledger.check()


def test_a_full_store_is_no_broken_one() -> None:
    """Every slot of a store may be taken."""
    store = MemoryStore(2)
    ledger = Ledger(store)
    ledger.add(RECORD)
    ledger.add(RECORD)
    ledger.check()
    assert ledger.high_water == store.capacity
