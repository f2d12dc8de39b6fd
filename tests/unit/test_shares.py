"""Handles: what is counted of them, how far their bounds reach, and who is told when they expire."""

from __future__ import annotations

import pytest
from tests.fixtures.engines import HEAP_ID, World, make_heap

from slabd_server.core.engine import Engine
from slabd_server.core.errors import InvalidArgument, StaleHandle, UnknownBlock
from slabd_server.core.ledger import Flag
from slabd_server.core.records import Access, BlockState, Handle, HandleExpiredEvent, Opened, ShareItem
from slabd_server.core.shares import OPENS_MAX, TTL_MAX_SECONDS


def test_a_handle_says_what_the_block_is() -> None:
    """A handle has the heap, the block's name, its place and the size asked for; an open has the usable size too."""
    world = World()
    owner, reader = world.session(), world.session()
    _, block = world.lease(owner, 64, 50)
    shared = world.share(owner, block.ref)
    assert shared == Handle(HEAP_ID, block.ref, block.offset, 50, transfer=False, size=64)
    (opened,) = world.engine.open(reader, [shared], now=world.now).results
    assert opened == Opened(block, owner=False)
    world.close(reader, block.ref)
    given = world.transfer(owner, block.ref)
    assert given == Handle(HEAP_ID, block.ref, block.offset, 50, transfer=True, size=64)
    (opened,) = world.engine.open(reader, [given], now=world.now).results
    assert opened == Opened(block, owner=True)


def test_hand_offs_are_counted() -> None:
    """Shares, opens, refused opens and expired handles have counters; a transfer ends its owner's lease."""
    world = World()
    owner, reader = world.session(), world.session()
    one, two = world.lease(owner, 64, 64)
    handle = world.share(owner, one.ref)
    world.transfer(owner, two.ref)
    world.open(reader, handle)
    for _ in range(3):
        with pytest.raises(StaleHandle):
            world.open(reader, handle)
    world.advance(60.0)
    tallies = world.heap.books.tallies
    assert (tallies.shares, tallies.opens_ok, tallies.opens_stale, tallies.handles_expired) == (2, 1, 3, 1)
    assert (tallies.leases_ended, world.heap.books.leases, len(world.heap.shares)) == ({"transferred": 1}, 1, 0)


def test_bounds_are_allowed_themselves() -> None:
    """As many opens and as long a TTL as there may be are no error, and one more open of the same block is."""
    world = World()
    key = world.session()
    (block,) = world.lease(key, 64)
    assert OPENS_MAX == 2**16 - 1  # what a record has room for
    world.share(key, block.ref, opens=OPENS_MAX - 1, ttl=TTL_MAX_SECONDS)
    world.share(key, block.ref, opens=1, ttl=1e-9)
    with pytest.raises(InvalidArgument, match=f"{OPENS_MAX} \\+ 1 opens of one block"):
        world.share(key, block.ref)
    with pytest.raises(InvalidArgument, match="at most 604800 seconds"):
        world.share(key, block.ref, ttl=TTL_MAX_SECONDS + 1)


def test_a_shorter_promise_does_not_move_the_deadline_in() -> None:
    """Sharing again for less time leaves the first handle its own."""
    world = World()
    owner = world.session()
    (block,) = world.lease(owner, 64)
    handle = world.share(owner, block.ref, ttl=20.0)
    world.share(owner, block.ref, ttl=10.0)
    assert world.advance(19.0).notices == ()
    world.open(world.session(), handle)
    (notice,) = world.advance(1.0).notices
    assert notice.event == HandleExpiredEvent(block.ref, 1)


def test_a_used_up_promise_leaves_no_deadline() -> None:
    """When all opens have come there is nothing to expire, and the next handle's time is its own."""
    world = World()
    owner, reader = world.session(), world.session()
    (block,) = world.lease(owner, 64)
    world.open(reader, world.share(owner, block.ref, ttl=50.0))
    assert (world.engine.next_deadline(now=world.now), len(world.heap.shares)) == (None, 0)
    world.share(owner, block.ref, ttl=10.0)
    (notice,) = world.advance(10.0).notices
    assert notice.event == HandleExpiredEvent(block.ref, 1)


@pytest.mark.parametrize(("item", "found"), [(2, "opened once, not 2 times"), (3, "opened once, not 3 times")])
def test_a_transfer_is_opened_once(item: int, found: str) -> None:
    """A lease has one next owner."""
    world = World()
    key = world.session()
    (block,) = world.lease(key, 64)
    (result,) = world.engine.share(key, [ShareItem(block.ref, item, transfer=True)], now=world.now).results
    assert isinstance(result, InvalidArgument)
    assert found in str(result)
    world.check()


def test_a_block_that_others_have_open_cannot_be_transferred() -> None:
    """A reader is in the way when all promises are redeemed, and the lease stays where it is."""
    world = World()
    owner, reader = world.session(), world.session(access=Access.READ_ONLY)
    (block,) = world.lease(owner, 64)
    world.open(reader, world.share(owner, block.ref))
    with pytest.raises(InvalidArgument, match="0 opens are promised and 1 sessions have it open"):
        world.transfer(owner, block.ref)
    world.close(reader, block.ref)
    world.transfer(owner, block.ref)


def test_a_taken_over_lease_can_be_shared() -> None:
    """With its new owner a block is an ordinary one again, leased from the moment it was taken over."""
    world = World()
    first, second, third = world.session(), world.session(), world.session()
    (block,) = world.lease(first, 64)
    handle = world.transfer(first, block.ref)
    assert world.heap.books.ledger.get(block.ref.slot).flags == Flag.TRANSFER | Flag.SHARED
    world.now += 5
    world.open(second, handle)
    record = world.heap.books.ledger.get(block.ref.slot)
    assert (record.flags, record.time, record.session) == (Flag.SHARED, world.now, second.id)
    assert world.open(third, world.share(second, block.ref)) == block


def test_a_handle_of_another_generation_is_stale() -> None:
    """A handle opens its own block even when slot, heap and promise are all there."""
    world = World()
    owner = world.session()
    (block,) = world.lease(owner, 64)
    handle = world.share(owner, block.ref)
    later = handle._replace(ref=block.ref._replace(generation=block.ref.generation + 1))
    with pytest.raises(StaleHandle, match="given back"):
        world.open(owner, later)


def test_a_block_is_closed_by_its_own_name() -> None:
    """A name of another generation closes nothing, though the slot is open."""
    world = World()
    owner = world.session()
    (block,) = world.lease(owner, 64)
    world.open(owner, world.share(owner, block.ref))
    with pytest.raises(UnknownBlock, match="is at generation 1"):
        world.close(owner, block.ref._replace(generation=2))
    world.close(owner, block.ref)


def test_a_handle_of_a_freed_block_says_so() -> None:
    """Expired and freed, not yet re-issued: the block has been given back."""
    world = World()
    owner = world.session()
    (block,) = world.lease(owner, 64)
    handle = world.share(owner, block.ref)
    world.release(owner, block.ref)
    world.advance(60.0)
    with pytest.raises(StaleHandle, match="given back"):
        world.open(owner, handle)
    tombstone = world.heap.books.ledger.get(block.ref.slot)
    assert (tombstone.session, tombstone.sequence) == (owner.id, 0)  # nobody's call did it


def test_an_expired_promise_leaves_an_ordinary_lease() -> None:
    """When the handle has expired the block is its owner's alone, and the ledger says nothing else of it."""
    world = World()
    owner = world.session()
    (block,) = world.lease(owner, 64)
    before = world.heap.books.ledger.get(block.ref.slot)
    world.share(owner, block.ref)
    assert world.heap.shares.check() == 1
    world.advance(60.0)
    assert world.heap.shares.check() == 0
    assert world.heap.books.ledger.get(block.ref.slot) == before._replace(flags=Flag.SHARED)
    assert world.heap.books.state(block.ref.slot) is BlockState.LEASED


def test_the_ledger_tells_who_did_what_last() -> None:
    """Each record carries the sequence number of the operation that wrote it, and so does what is left of it."""
    world = World(Engine([make_heap()]))
    engine, ledger = world.engine, world.heap.books.ledger
    owner, reader = world.session(), world.session()
    (block,) = world.lease(owner, 64, sequence=7)
    slot = block.ref.slot
    assert (ledger.get(slot).session, ledger.get(slot).sequence) == (owner.id, 7)
    (handle,) = engine.share(owner, [ShareItem(block.ref, 2)], now=world.now, sequence=8).results
    assert isinstance(handle, Handle)
    assert ledger.get(slot).sequence == 8
    for sequence in (20, 21):
        engine.open(reader, [handle], now=world.now, sequence=sequence)
        hold = world.heap.books.holds[slot][reader.id].ledger_slot
        assert (ledger.get(slot).sequence, ledger.get(hold).sequence) == (sequence, sequence)
    engine.close(reader, [block.ref], now=world.now, sequence=22)
    assert (ledger.get(slot).sequence, ledger.get(hold).sequence) == (21, 22)
    engine.close(reader, [block.ref], now=world.now, sequence=23)
    assert (ledger.get(hold).session, ledger.get(hold).sequence) == (reader.id, 23)
    engine.release(owner, [block.ref], now=world.now, sequence=9)
    assert (ledger.get(slot).session, ledger.get(slot).sequence) == (owner.id, 9)
    (block,) = world.lease(owner, 64)
    (handle,) = engine.share(owner, [ShareItem(block.ref, transfer=True)], now=world.now, sequence=10).results
    assert isinstance(handle, Handle)
    record = ledger.get(block.ref.slot)
    assert (record.session, record.sequence) == (0, 10)
    engine.open(reader, [handle], now=world.now, sequence=24)
    record = ledger.get(block.ref.slot)
    assert (record.session, record.sequence) == (reader.id, 24)


def test_sharing_again_and_again_costs_no_memory() -> None:
    """A block has one deadline, however often it is shared while a longer promise lasts."""
    world = World()
    owner, reader = world.session(), world.session()
    (block,) = world.lease(owner, 64)
    world.share(owner, block.ref, ttl=3600.0)
    for _ in range(20):
        world.open(reader, world.share(owner, block.ref, ttl=1.0))
        world.close(reader, block.ref)
    assert list(world.heap.shares.deadlines) == [(world.now + 3600.0, block.ref.slot)]
