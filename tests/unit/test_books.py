"""The books: whatever goes wrong in them `check` sees, and figures that are promised are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.fixtures.engines import HEAP_ID, KIB, MIB, World, make_heap

from slabd_server.core import inspection
from slabd_server.core.accounts import Account
from slabd_server.core.books import Books, Hold
from slabd_server.core.chores import SLICE
from slabd_server.core.cleaner import Cleaner
from slabd_server.core.engine import Engine
from slabd_server.core.errors import CoreError, InvariantBroken
from slabd_server.core.heap import Heap
from slabd_server.core.ledger import Flag, Kind, Record
from slabd_server.core.memory import FixedMemory
from slabd_server.core.purposes import NO_PURPOSE, Purpose
from slabd_server.core.records import (
    NO_SESSION,
    BlockState,
    Handle,
    LeaseItem,
    SessionId,
    SessionKey,
    ShareItem,
    SlotId,
)
from slabd_server.core.store import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from slabd_server.core.sessions import Session


READER = SessionId(2)


def books_of_two_blocks() -> tuple[Books, SlotId]:
    """Return the books of a session that leases two blocks of 64 bytes, and the second block's slot."""
    world = World()
    _, block = world.lease(world.session(), 64, 50)
    return world.heap.books, block.ref.slot


def books_of_an_open_block() -> tuple[Books, SlotId]:
    """Return the books of a session that leases a block of 64 bytes, which READER has open, and the block's slot."""
    world = World()
    owner, reader = world.session(), world.session()
    assert reader.id == READER
    (block,) = world.lease(owner, 64)
    world.open(reader, world.share(owner, block.ref))
    return world.heap.books, block.ref.slot


def lose_the_owner(books: Books, slot: SlotId) -> None:
    """Let the record say that nobody owns the block."""
    books.ledger.update(slot, books.ledger.get(slot)._replace(session=NO_SESSION))


def move_onto_the_first(books: Books, slot: SlotId) -> None:
    """Let the record place the block half over the other one."""
    record = books.ledger.get(slot)
    books.ledger.update(slot, record._replace(a=record.a - 32))


def move_over_the_edge(books: Books, slot: SlotId) -> None:
    """Let the record place the block's last byte behind the heap."""
    books.ledger.update(slot, books.ledger.get(slot)._replace(a=books.total_bytes - 63))


def free_behind_the_books(books: Books, slot: SlotId) -> None:
    """Let the allocator have the block back without the books."""
    books.allocator.free(books.ledger.get(slot).a)


def count_another_block(books: Books, _slot: SlotId) -> None:
    """Let the counter of blocks be off."""
    books.blocks += 1


def count_another_requested_byte(books: Books, _slot: SlotId) -> None:
    """Let the counter of requested bytes be off."""
    books.requested_bytes += 1


def count_bytes_as_shared(books: Books, slot: SlotId) -> None:
    """Let the bytes by state be off, though their sum is right."""
    size = books.ledger.get(slot).b
    books.state_bytes[BlockState.LEASED] -= size
    books.state_bytes[BlockState.SHARED] += size


def restate_as_shared(books: Books, slot: SlotId) -> None:
    """Let the block be counted in a state that its keepers do not say."""
    books._states[slot] = BlockState.SHARED


def forget_a_state(books: Books, slot: SlotId) -> None:
    """Let the block be counted in no state, even where states may lag."""
    books._lagging.add(SessionId(1))
    books._states[slot] = 255


def forget_all_states(books: Books, _slot: SlotId) -> None:
    """Let there be no room for states."""
    books._states.clear()


def keep_a_state(books: Books, _slot: SlotId) -> None:
    """Let a slot that is not granted be counted in a state."""
    books._states[40] = BlockState.LEASED


def count_an_orphan(books: Books, slot: SlotId) -> None:
    """Let a block that has an owner be among those that have none."""
    books.orphans.append(slot)


def open_by_nobody(books: Books, slot: SlotId) -> None:
    """Let the block be open, though nobody has it open."""
    books.holds[slot] = {}


def keep_a_label(books: Books, _slot: SlotId) -> None:
    """Let a label outlive its block."""
    books._purposes.put(SlotId(40), Purpose("a"))


def keep_a_call_site(books: Books, _slot: SlotId) -> None:
    """Let a call site outlive its block."""
    books._purposes.put(SlotId(1000), Purpose("", "a.py:1"))


def lag_while_active(books: Books, _slot: SlotId) -> None:
    """Let whatever is wrong with a session's blocks be excused."""
    books._lagging.add(SessionId(1))


def spoil_the_ledger(books: Books, _slot: SlotId) -> None:
    """Let the ledger miscount its records."""
    books.ledger._taken += 1
    books.ledger._high_water += 1


def spoil_the_orphans(books: Books, _slot: SlotId) -> None:
    """Let the chain of orphans miscount its slots."""
    books.orphans._length += 1


def spoil_the_purposes(books: Books, _slot: SlotId) -> None:
    """Let a label be counted that nobody has."""
    books._purposes._labels._counts[0] = 1


def spoil_the_call_sites(books: Books, _slot: SlotId) -> None:
    """Let a call site be counted that nobody has."""
    books._purposes._call_sites._counts[0] = 1


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lose_the_owner, "is granted and has no keeper"),
        (move_onto_the_first, r"block \[32, 96\) overlaps one that ends at 64"),
        (move_over_the_edge, "or leaves the heap"),
        (free_behind_the_books, "bytes granted: 128 found, 64 counted"),
        (count_another_block, "blocks: 2 found, 3 counted"),
        (count_another_requested_byte, "bytes requested: 114 found, 115 counted"),
        (count_bytes_as_shared, r"bytes by state: \[128, 0, 0, 0\] found, \[64, 0, 64, 0\] counted"),
        (restate_as_shared, "is counted as 2, its keepers say LEASED"),
        (forget_a_state, "slot 2 is counted as 255, its keepers say LEASED"),
        (forget_all_states, "slot 1 is counted as 255, its keepers say LEASED"),
        (keep_a_state, "blocks with a state: 2 found, 3 counted"),
        (count_an_orphan, "blocks without an owner: 0 found, 1 counted"),
        (open_by_nobody, "slot 2 is open and nobody has it open"),
        (keep_a_label, "slot 40 is for a purpose and not granted"),
        (keep_a_call_site, "slot 1000 is for a purpose and not granted"),
        (lag_while_active, r"sessions \[1\] lag and are not in quarantine"),
        (spoil_the_ledger, "records are taken"),
        (spoil_the_orphans, "a chain of 1 slots"),
        (spoil_the_purposes, "1 are counted"),
        (spoil_the_call_sites, "1 are counted"),
    ],
)
def test_check_sees_what_is_wrong(spoil: Callable[[Books, SlotId], None], found: str) -> None:
    """Whichever invariant is broken, `check` says so with the numbers; before, it counts the blocks."""
    books, slot = books_of_two_blocks()
    assert books.check() == 2
    spoil(books, slot)
    with pytest.raises(InvariantBroken, match=found):
        books.check()


def record_an_open_twice(books: Books, slot: SlotId) -> None:
    """Let the ledger have the open once more."""
    books.ledger.reserve(1)
    books.ledger.add(books.ledger.get(books.holds[slot][READER].ledger_slot))


def lose_the_record_of_an_open(books: Books, slot: SlotId) -> None:
    """Let the ledger not have the open."""
    books.ledger.drop(books.holds[slot][READER].ledger_slot, 1, session=READER, sequence=0)


def open_once_more_than_recorded(books: Books, slot: SlotId) -> None:
    """Let the block be open twice and the ledger say once."""
    books.holds[slot][READER].opens = 2


def record_an_open_of_another_block(books: Books, slot: SlotId) -> None:
    """Let the ledger have the open of a slot that nobody has open."""
    hold = books.holds[slot][READER].ledger_slot
    books.ledger.update(hold, books.ledger.get(hold)._replace(a=77))


def open_by_the_same_record(books: Books, slot: SlotId) -> None:
    """Let another slot be open too, by the same record."""
    books.holds[SlotId(77)] = books.holds[slot].copy()


def open_what_is_not_granted(books: Books, _slot: SlotId) -> None:
    """Let a slot that is not granted be open, and the ledger say so."""
    books.ledger.reserve(1)
    slot, _ = books.ledger.add(Record(Kind.HOLD, Flag.NONE, 0, 0, 77, 1, 0, READER, 0, 0.0))
    books.holds[SlotId(77)] = {READER: Hold(1, slot)}


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (record_an_open_twice, r"slot 4 records 1 opens of slot 2 by session 2, the books have Hold\(opens=1, .*=3\)"),
        (lose_the_record_of_an_open, "holds: 0 found, 1 counted"),
        (
            open_once_more_than_recorded,
            r"slot 3 records 1 opens of slot 2 by session 2, the books have Hold\(opens=2, ",
        ),
        (record_an_open_of_another_block, "slot 3 records 1 opens of slot 77 by session 2, the books have None"),
        (open_by_the_same_record, "holds: 1 found, 2 counted"),
        (open_what_is_not_granted, "slot 77 is open and not granted"),
    ],
)
def test_check_sees_what_is_wrong_with_opens(spoil: Callable[[Books, SlotId], None], found: str) -> None:
    """The opens that the books know and those that the ledger has are the same, and all of granted blocks."""
    books, slot = books_of_an_open_block()
    assert books.check() == 1
    spoil(books, slot)
    with pytest.raises(InvariantBroken, match=found):
        books.check()


def test_check_sees_a_block_that_nobody_keeps() -> None:
    """Opens by nobody keep a block from coming back; that is no keeper."""
    world = World()
    key = world.session()
    (block,) = world.lease(key, 64)
    world.heap.books.holds[block.ref.slot] = {}
    world.engine.release(key, [block.ref], now=world.now)
    with pytest.raises(InvariantBroken, match="slot 1 is granted and has no keeper"):
        world.heap.books.check()


class Contradiction(Heap):
    """An allocator that contradicts itself."""

    def check(self) -> None:
        """Say so."""
        raise InvariantBroken("the allocator contradicts itself")


def test_check_asks_the_allocator() -> None:
    """What the allocator finds wrong in itself, the books find too."""
    books = Books("h", HEAP_ID, Contradiction(64 * KIB), MemoryStore(), Cleaner(FixedMemory(), "off"))
    with pytest.raises(InvariantBroken, match="the allocator contradicts itself"):
        books.check()


class BoundedStore(MemoryStore):
    """A store that keeps to its capacity, as shared memory does."""

    def write(self, index: int, record: bytes) -> None:
        """Write, if there is room."""
        assert index < self.capacity
        super().write(index, record)


def test_there_is_always_room_in_the_ledger() -> None:
    """Sessions, leases and opens have their records reserved before anything changes."""
    world = World(Engine([make_heap(store=BoundedStore(0))]))
    owner, reader = world.session(), world.session()
    for _ in range(3):
        world.lease(owner, *[64] * 1000)
    refs = [block.ref for block in world.lease(owner, *[64] * 2000)]
    handles = world.engine.share(owner, [ShareItem(ref) for ref in refs], now=world.now).results
    opened = world.engine.open(reader, [handle for handle in handles if isinstance(handle, Handle)], now=world.now)
    assert [result for result in opened.results if isinstance(result, CoreError)] == []
    world.check()
    assert len(world.heap.books.ledger) == 2 + 5000 + 2000


def test_the_peak_is_the_most_that_was_ever_used() -> None:
    """The peak rises with what is used, and stays when it falls."""
    world = World()
    key = world.session()
    assert world.heap.books.used_peak_bytes == 0
    (first,) = world.lease(key, 128 * KIB)
    world.release(key, first.ref)
    world.lease(key, 4 * KIB)
    assert (world.used, world.heap.books.used_peak_bytes) == (4 * KIB, 128 * KIB)
    world.lease(key, 256 * KIB)
    assert world.heap.books.used_peak_bytes == 260 * KIB


def test_what_can_be_recalled_counts_as_available() -> None:
    """Cached blocks are granted in the allocator, and in nobody's use."""
    world = World()
    key = world.session()
    world.lease(key, 64, 50)
    session = world.engine.sessions.authenticate(key)
    books = session.books
    books.claim(session, 64, 1)
    assert (books.used_bytes, books.available_bytes, books.cached_bytes) == (64, MIB - 64, 64)
    assert books.requested_in_use_bytes == (64 + 50) // 2
    books.claim(session, MIB, 1000)
    assert books.requested_in_use_bytes == 0
    assert (books.used_bytes, session.cached_blocks) == (0, 2)
    world.check()


def test_a_purpose_ends_with_its_block() -> None:
    """A block that gets the slot of another says nothing of what that was for."""
    world = World()
    key = world.session()
    world.engine.lease(key, [LeaseItem(64)], now=world.now, purpose=Purpose("frames", "pipeline.py:12"))
    ((info,), _) = inspection.leases(world.engine, "", 0, 10, world.now)
    assert (info.label, info.call_site) == ("frames", "pipeline.py:12")
    world.release(key, info.block.ref)
    (block,) = world.lease(key, 64)
    assert block.ref.slot == info.block.ref.slot
    assert world.heap.books.purpose(block.ref.slot) == NO_PURPOSE


def found(world: World, key: SessionKey) -> Session:
    """Return a key's session."""
    return world.engine.sessions.recognise(key)


def test_an_open_has_a_record_until_it_is_closed() -> None:
    """The ledger says who has a block open and how often; the record goes with the last close, or with the session."""
    world = World()
    owner, reader, other = world.session(), world.session(), world.session()
    (block,) = world.lease(owner, 64)
    handle = world.share(owner, block.ref, opens=4)
    world.now += 5

    def recorded() -> dict[int, int]:
        records = [record for _, record in world.heap.books.ledger.records() if record.kind is Kind.HOLD]
        assert {(record.a, record.time) for record in records} <= {(block.ref.slot, world.now)}
        return {record.session: record.b for record in records}

    world.open(reader, handle)
    world.open(reader, handle)
    assert recorded() == {reader.id: 2}
    world.open(reader, handle)
    world.open(other, handle)
    assert recorded() == {reader.id: 3, other.id: 1}
    assert world.heap.books.unhold(found(world, reader), block.ref.slot, sequence=0) == 0
    assert recorded() == {reader.id: 2, other.id: 1}
    world.close(other, block.ref)
    assert recorded() == {reader.id: 2}
    world.die(reader)
    assert recorded() == {}


def test_the_record_of_an_open_is_that_of_its_kind() -> None:
    """A hold's record names the block's slot, the opens, the holder and when it opened first; all else is 0."""
    books, slot = books_of_two_blocks()
    books.ledger.reserve(1)
    books.hold(Account(SessionId(2), None, books.links), slot, sequence=5, now=7.0)
    (record,) = [record for _, record in books.ledger.records() if record.kind is Kind.HOLD]
    assert record == Record(Kind.HOLD, Flag.NONE, 0, 1, slot, 1, 0, SessionId(2), 5, 7.0, 0)


def test_the_generation_of_an_opens_slot_rises() -> None:
    """A slot that recorded one open after the other has counted them all, taken or free."""
    world = World()
    key = world.session()
    (block,) = world.lease(key, 64)
    generations = []
    for _ in range(3):
        world.open(key, world.share(key, block.ref))
        slot = world.heap.books.holds[block.ref.slot][key.id].ledger_slot
        generations.append(world.heap.books.ledger.get(slot).generation)
        world.close(key, block.ref)
        generations.append(world.heap.books.ledger.get(slot).generation)
    assert generations == [1, 1, 2, 2, 3, 3]


def test_the_last_close_leaves_its_name() -> None:
    """The tombstone of a block that a close has freed is the closer's, with the number of the call."""
    world = World()
    owner, reader = world.session(), world.session()
    (block,) = world.lease(owner, 64)
    world.open(reader, world.share(owner, block.ref))
    world.release(owner, block.ref, sequence=8)
    world.engine.close(reader, [block.ref], now=world.now, sequence=9)
    tombstone = world.heap.books.ledger.get(block.ref.slot)
    assert (tombstone.kind, tombstone.session, tombstone.sequence) == (Kind.FREE, reader.id, 9)


def test_blocks_without_an_owner_leave_in_any_order() -> None:
    """Whichever of several transferred blocks is taken over, the others still have none, and are freed in time."""
    world = World()
    owner, next_owner = world.session(), world.session()
    blocks = world.lease(owner, 64, 64, 64, 64)
    handles = [world.transfer(owner, block.ref) for block in blocks]
    for taken in (2, 0):
        world.open(next_owner, handles[taken])
    assert list(world.heap.books.orphans) == [blocks[1].ref.slot, blocks[3].ref.slot]
    world.advance(60.0)
    assert (world.used, len(world.heap.books.orphans)) == (128, 0)


def test_a_reader_of_many_blocks_may_lag_too() -> None:
    """While a quarantine is counted `check` excuses what its session has open, as it does what it owns."""
    world = World()
    owner, reader = world.session(), world.session()
    refs = [block.ref for block in world.lease(owner, *[64] * 2 * SLICE)]
    handles = world.engine.share(owner, [ShareItem(ref) for ref in refs], now=world.now).results
    world.engine.open(reader, [handle for handle in handles if isinstance(handle, Handle)], now=world.now)
    world.release(owner, *refs)
    world.hang_up(reader)
    assert world.heap.books.state_bytes[BlockState.QUARANTINED] == 64 * SLICE
    while world.engine.next_deadline(now=world.now) is not None:
        world.advance(0.001)
    assert world.heap.books.state_bytes[BlockState.QUARANTINED] == 64 * 2 * SLICE


def test_each_step_leaves_the_books_right() -> None:
    """An open counts at once in the block's state, before the promise that it redeems is taken back."""
    books, slot = books_of_two_blocks()
    reader = Account(SessionId(2), None, books.links)
    books.ledger.reserve(1)
    books.hold(reader, slot, sequence=0, now=0.0)
    assert books.check() == 2
    assert books.state(slot) is BlockState.SHARED
    assert books.unhold(reader, slot, sequence=0) == 0
    assert books.check() == 2
    assert books.state(slot) is BlockState.LEASED


def test_a_promise_is_no_quarantine() -> None:
    """What is still promised to others is shared, though only a process that cannot be talked to has it."""
    world = World()
    key = world.session()
    shared, mine = world.lease(key, 64, 64)
    world.share(key, shared.ref)
    assert world.heap.books.state(shared.ref.slot) is BlockState.SHARED
    world.hang_up(key)
    assert world.heap.books.state(shared.ref.slot) is BlockState.SHARED
    assert world.heap.books.state(mine.ref.slot) is BlockState.QUARANTINED
    world.advance(60.0)
    assert world.heap.books.state(shared.ref.slot) is BlockState.QUARANTINED


def test_a_counted_quarantine_lags_no_more() -> None:
    """When the last block of a session in quarantine is restated, `check` excuses none of them any longer."""
    world = World()
    key = world.session()
    (block,) = world.lease(key, 64)
    world.hang_up(key)
    restate_as_shared(world.heap.books, block.ref.slot)
    with pytest.raises(InvariantBroken, match="its keepers say QUARANTINED"):
        world.heap.books.check()


@pytest.mark.parametrize("blocks", [1, 3 * SLICE])
def test_nothing_is_kept_of_sessions_that_are_gone(blocks: int) -> None:
    """A session that was in quarantine is forgotten, whether its quarantine was counted to the end or not."""
    world = World()
    key = world.session()
    world.lease(key, *[64] * blocks)
    world.hang_up(key)
    world.engine.process_gone(key.id, now=world.now)
    while world.engine.next_deadline(now=world.now) is not None:
        world.advance(0.001)
    books = world.heap.books
    assert (books._quarantined, books._lagging, books.holds, len(books.ledger)) == (set(), set(), {}, 0)


def test_tables_do_not_grow_with_history() -> None:
    """What is kept by slot is as long as there were ever slots at once, in steps of at least 64."""
    world = World()
    key = world.session()
    for _ in range(100):
        (block,) = world.lease(key, 64)
        world.release(key, block.ref)
    assert (len(world.heap.books._states), len(world.heap.books.links.next)) == (64, 64)
    world.lease(key, *[64] * 63)
    assert len(world.heap.books._states) == 64
    world.lease(key, 64)
    assert len(world.heap.books._states) == 128


def test_slots_far_apart_have_room() -> None:
    """Blocks may come long after sessions and opens have taken slots, and each is told from every other."""
    world = World(Engine([make_heap()], session_limit=1000))
    keys = [world.session(attached=False) for _ in range(300)]
    (block,) = world.lease(keys[-1], 64)
    assert block.ref.slot == 300
    assert world.heap.books.state(block.ref.slot) is BlockState.LEASED
    assert (len(world.heap.books._states), len(world.heap.books.links.next)) == (301, 301)
