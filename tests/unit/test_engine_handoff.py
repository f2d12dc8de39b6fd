"""Hand-off: a handle opens the block it was made for, as often as promised, in time, or nothing."""

from __future__ import annotations

import pytest
from tests.fixtures.engines import World, make_heap

from slabd_server.core.engine import Engine
from slabd_server.core.errors import InvalidArgument, ReadOnly, StaleHandle, UnknownBlock
from slabd_server.core.records import Access, BlockState, HandleExpiredEvent, ShareItem


def test_a_shared_block_outlives_its_owner() -> None:
    """After the owner released it, a promised block waits for its opens and is freed by the last close."""
    world = World()
    owner, reader = world.session(), world.session()
    (block,) = world.lease(owner, 64)
    handle = world.share(owner, block.ref, opens=2)
    world.release(owner, block.ref)
    assert world.open(reader, handle) == block
    assert world.open(reader, handle) == block
    world.close(reader, block.ref)
    assert world.used == 64
    world.close(reader, block.ref)
    assert world.used == 0


def test_an_open_too_many_is_stale() -> None:
    """A handle opens as often as was promised and not once more."""
    world = World()
    owner, reader = world.session(), world.session()
    (block,) = world.lease(owner, 64)
    handle = world.share(owner, block.ref)
    world.open(reader, handle)
    with pytest.raises(StaleHandle, match="used"):
        world.open(reader, handle)


def test_a_handle_never_reaches_the_next_block() -> None:
    """A handle whose slot was re-issued is stale, even when the new block is shared too."""
    world = World()
    owner, reader = world.session(), world.session()
    (old,) = world.lease(owner, 64)
    handle = world.share(owner, old.ref, ttl=1.0)
    world.release(owner, old.ref)
    world.advance(2.0)
    (new,) = world.lease(owner, 64)
    world.share(owner, new.ref)
    assert new.ref.slot == old.ref.slot
    with pytest.raises(StaleHandle, match="given back"):
        world.open(reader, handle)


def test_another_heaps_handle_is_stale() -> None:
    """A handle made before the heap was made anew does not open anything."""
    world = World()
    owner = world.session()
    (block,) = world.lease(owner, 64)
    handle = world.share(owner, block.ref)._replace(heap_id=1)
    with pytest.raises(StaleHandle, match="heap"):
        world.open(owner, handle)


def test_handles_expire() -> None:
    """When the deadline passes, the missing opens are taken back, the block is freed and the sharer told."""
    world = World()
    owner = world.session()
    (block,) = world.lease(owner, 64)
    handle = world.share(owner, block.ref, opens=3, ttl=10.0)
    world.open(world.session(), handle)
    assert world.engine.next_deadline(now=world.now) == world.now + 10.0
    (notice,) = world.advance(10.0).notices
    assert (notice.session, notice.event) == (owner.id, HandleExpiredEvent(block.ref, 2))
    assert world.engine.next_deadline(now=world.now) is None
    with pytest.raises(StaleHandle):
        world.open(owner, handle)
    assert world.heap.books.state(block.ref.slot) is BlockState.SHARED  # still open in one session


def test_sharing_again_moves_the_deadline_out() -> None:
    """Two handles of one block live until the later of their deadlines."""
    world = World()
    owner = world.session()
    (block,) = world.lease(owner, 64)
    world.share(owner, block.ref, ttl=10.0)
    handle = world.share(owner, block.ref, ttl=20.0)
    world.advance(15.0)
    world.open(world.session(), handle)


def test_a_killed_sharer_keeps_its_promise() -> None:
    """What a session shared stays open to those it was promised when its process dies."""
    world = World()
    owner, reader = world.session(), world.session()
    (block,) = world.lease(owner, 64)
    handle = world.share(owner, block.ref)
    world.die(owner)
    assert world.open(reader, handle) == block
    world.die(reader)
    assert world.used == 0


def test_a_transfer_moves_the_lease() -> None:
    """After a transfer the opener owns the lease, and the first owner has nothing to do with it any more."""
    world = World()
    first, second = world.session(), world.session()
    (block,) = world.lease(first, 64)
    handle = world.transfer(first, block.ref)
    assert isinstance(world.release(first, block.ref).results[0], UnknownBlock)
    world.open(second, handle)
    world.die(first)
    assert world.heap.books.state(block.ref.slot) is BlockState.LEASED
    assert world.release(second, block.ref).results == (None,)
    assert world.used == 0


def test_an_unclaimed_transfer_expires() -> None:
    """A transferred lease that nobody takes over is freed when its handle expires."""
    world = World()
    key = world.session()
    (block,) = world.lease(key, 64)
    world.transfer(key, block.ref)
    assert world.used == 64
    world.advance(61.0)
    assert world.used == 0


def test_a_shared_block_cannot_be_transferred() -> None:
    """Whoever takes a lease over is the only one who has it, so readers are in the way."""
    world = World()
    key = world.session()
    (block,) = world.lease(key, 64)
    world.share(key, block.ref)
    with pytest.raises(InvalidArgument, match="1 opens are promised"):
        world.transfer(key, block.ref)


def test_a_handle_is_opened_the_way_it_was_made() -> None:
    """A forged flag does not turn a reader into an owner."""
    world = World()
    key = world.session()
    (block,) = world.lease(key, 64)
    handle = world.share(key, block.ref)
    with pytest.raises(StaleHandle, match="transfer"):
        world.open(key, handle._replace(transfer=True))


@pytest.mark.parametrize(
    ("opens", "ttl"), [(0, None), (-1, None), (65_536, None), (1, 0.0), (1, -1.0), (1, float("nan")), (1, 1e9)]
)
def test_opens_and_ttl_are_bounded(opens: int, ttl: float | None) -> None:
    """A share that promises nothing, too much, or for ever is refused and changes nothing."""
    world = World()
    key = world.session()
    (block,) = world.lease(key, 64)
    (result,) = world.engine.share(key, [ShareItem(block.ref, opens, ttl)], now=world.now).results
    assert isinstance(result, InvalidArgument)
    world.check()
    assert world.heap.books.state(block.ref.slot) is BlockState.LEASED


def test_read_only_sessions_open_but_do_not_share_or_own() -> None:
    """A read-only session may open; it may not share, nor take a lease over."""
    world = World()
    owner, reader = world.session(), world.session(access=Access.READ_ONLY)
    shared, given = world.lease(owner, 64, 64)
    world.open(reader, world.share(owner, shared.ref))
    with pytest.raises(ReadOnly):
        world.share(reader, shared.ref)
    with pytest.raises(ReadOnly):
        world.open(reader, world.transfer(owner, given.ref))


def test_only_what_is_open_can_be_closed() -> None:
    """Closing what one does not have open is refused, also for its owner."""
    world = World()
    key = world.session()
    (block,) = world.lease(key, 64)
    with pytest.raises(UnknownBlock, match="not open"):
        world.close(key, block.ref)


def test_a_handle_of_a_neighbour_heap_is_stale() -> None:
    """Handles do not cross from heap to heap."""
    world = World(Engine([make_heap("a"), make_heap("b")]))
    first, second = world.session(heap="a"), world.session(heap="b")
    (block,) = world.lease(first, 64)
    with pytest.raises(StaleHandle):
        world.open(second, world.share(first, block.ref))
