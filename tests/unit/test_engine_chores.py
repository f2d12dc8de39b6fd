"""Sessions with very many blocks: they end, and go into quarantine, a slice at a time, and nobody notices."""

from __future__ import annotations

from functools import partial

import pytest
from tests.fixtures.engines import KIB, World, make_heap

from slabd_server.core import inspection
from slabd_server.core.chores import SLICE, Chores
from slabd_server.core.engine import Engine
from slabd_server.core.errors import InvariantBroken, OutOfMemory
from slabd_server.core.records import (
    Access,
    BlockState,
    Effects,
    EndCause,
    Ended,
    Handle,
    SessionId,
    SessionKey,
    SessionState,
    ShareItem,
    Woken,
)

SIZE = 64
HEAP = 256 * KIB


def crowded() -> tuple[World, SessionKey]:
    """Return a world whose heap is full of one session's small blocks, as many as take several slices."""
    world = World(Engine([make_heap(size=HEAP)]))
    key = world.session("crowd")
    world.lease(key, *[SIZE] * (HEAP // SIZE))
    assert world.heap.books.leases > 6 * SLICE
    return world, key


def test_a_crowded_session_ends_in_slices() -> None:
    """The first slice is done at once, the rest by ticks; the books balance after each."""
    world, key = crowded()
    leases, used = world.heap.books.leases, world.used
    early = world.die(key)
    assert not early.ended
    assert world.heap.session_counts[SessionState.ENDING] == 1
    assert leases - SLICE == world.heap.books.leases
    ended: list[Ended] = []
    while world.engine.next_deadline(now=world.now) is not None:
        ended += world.advance(0.001).ended
    assert [(each.cause, each.leases, each.reclaimed_bytes) for each in ended] == [(EndCause.CLIENT_DIED, leases, used)]
    assert (world.used, len(world.engine.sessions)) == (0, 0)


def test_ticks_before_their_time_do_nothing() -> None:
    """A slice is done when it is due, not whenever somebody ticks."""
    chores = Chores()
    chores.begin(SessionId(1), iter([None] * 3 * SLICE), now=5.0)
    chores.tick(4.0)
    assert (len(chores), chores.due) == (1, 5.0)
    for _ in range(3):
        chores.tick(5.0)
    assert (len(chores), chores.due) == (0, None)


def test_a_session_that_is_ending_cannot_be_talked_to() -> None:
    """Closing, killing and evicting it again change nothing, and it is listed as what it is."""
    world, key = crowded()
    world.die(key)
    before = world.heap.books.leases
    for again in (partial(world.end, child=True), world.die, world.evict):
        assert again(key) == Effects()
    assert world.heap.books.leases == before
    (info,) = inspection.sessions(world.engine, "", world.now)
    assert info.state is SessionState.ENDING


def test_memory_on_its_way_back_counts_as_free() -> None:
    """Who needs what an ending session still has gets it at once, and the end is told later."""
    world, key = crowded()
    world.die(key)
    (block,) = world.lease(world.session("next"), HEAP)
    assert block.size == HEAP
    (ended,) = world.advance(0.001).ended
    assert ended.name == "crowd"


def test_those_who_wait_come_first() -> None:
    """A request that will not wait finishes the chores for those who do, and is then refused in its turn."""
    world, key = crowded()
    patient = world.wait(world.session("patient"), HEAP)
    world.die(key)
    with pytest.raises(OutOfMemory, match="held by patient"):
        world.lease(world.session("hasty"), SIZE)
    effects = world.advance(0.001)
    assert [woken.ticket for woken in effects.woken] == [patient.ticket]
    assert len(effects.ended) == 1


def test_waiting_requests_are_served_as_slices_come_back() -> None:
    """A request in the queue is granted as soon as enough slices are done."""
    world, key = crowded()
    waiting = world.wait(world.session(), 4 * SLICE * SIZE)
    world.die(key)
    woken: list[Woken] = []
    while not woken:
        woken += world.advance(0.001).woken
    assert woken[0].ticket == waiting.ticket
    assert world.heap.session_counts[SessionState.ENDING] == 1


def test_a_crowded_quarantine_is_counted_in_slices() -> None:
    """The states of blocks lag behind for some ticks; the books balance all the while."""
    world, key = crowded()
    used = world.used
    world.hang_up(key)
    assert 0 < world.heap.books.state_bytes[BlockState.QUARANTINED] < used
    while world.engine.next_deadline(now=world.now) is not None:
        world.advance(0.001)
    assert world.heap.books.state_bytes[BlockState.QUARANTINED] == used


def test_a_quarantine_that_ends_early_is_not_counted_on() -> None:
    """A process that dies while its quarantine is still being counted leaves nothing behind."""
    world, key = crowded()
    world.hang_up(key)
    world.engine.process_gone(key.id, now=world.now)
    while world.engine.next_deadline(now=world.now) is not None:
        world.advance(0.001)
    assert (world.used, world.heap.books.state_bytes) == (0, [0] * len(BlockState))


def test_a_reader_of_many_blocks_ends_in_slices_too() -> None:
    """Opens are given up one by one, and what had no other keeper is free."""
    world, owner = crowded()
    blocks = [info.block for info in inspection.leases(world.engine, "", 0, 2 * SLICE, world.now)[0]]
    reader = world.session("reader", access=Access.READ_ONLY)
    now, refs = world.now, [block.ref for block in blocks]
    handles = world.engine.share(owner, [ShareItem(ref) for ref in refs], now=now).results
    world.engine.open(reader, [handle for handle in handles if isinstance(handle, Handle)], now=now)
    world.release(owner, *refs)
    held = sum(block.size for block in blocks)
    world.end(owner)
    while world.engine.next_deadline(now=world.now) is not None:
        world.advance(0.001)
    assert world.used == held
    world.die(reader)
    assert 0 < world.used < held
    while world.engine.next_deadline(now=world.now) is not None:
        world.advance(0.001)
    assert world.used == 0


def test_check_sees_a_block_that_lags_for_no_reason() -> None:
    """Only the states of a session whose quarantine is being counted may lag."""
    world = World()
    key = world.session()
    world.lease(key, SIZE)
    world.heap.books._quarantined.add(key.id)
    with pytest.raises(InvariantBroken, match="is counted as"):
        world.heap.books.check()
