"""Leases: what is granted, what is refused, and that a refusal changes nothing."""

from __future__ import annotations

import gc
import tracemalloc

import pytest
from tests.fixtures.engines import KIB, MIB, World, make_heap

from slabd_server.core.engine import BATCH_MAX, Engine
from slabd_server.core.errors import (
    Draining,
    InvalidAlignment,
    InvalidArgument,
    InvalidSize,
    OutOfMemory,
    ReadOnly,
    SequenceReused,
    TooLarge,
    UnknownBlock,
    UnknownSession,
    WrongSecret,
)
from slabd_server.core.purposes import Purpose
from slabd_server.core.records import Access, BlockRef, LeaseItem, SessionId, SessionKey, SlotId
from slabd_server.core.sessions import REMEMBERED_ANSWERS, REMEMBERED_BYTES


def test_a_lease_is_counted_and_comes_back() -> None:
    """A lease takes its class's bytes, and its release gives all of them back."""
    world = World()
    key = world.session()
    (block,) = world.lease(key, 100)
    assert (block.size, block.requested_size, world.used) == (128, 100, 128)
    world.release(key, block.ref)
    assert world.used == 0


def test_a_batch_is_atomic() -> None:
    """When one block of a batch cannot be had, none is granted."""
    world = World()
    key = world.session()
    (before,) = world.lease(key, 64 * KIB)
    with pytest.raises(OutOfMemory):
        world.lease(key, 600 * KIB, 300 * KIB, 64 * KIB)
    world.check()
    assert world.used == before.size


@pytest.mark.parametrize(
    ("size", "alignment", "error"),
    [
        (0, 1, InvalidSize),
        (-1, 1, InvalidSize),
        (2**64, 1, InvalidSize),
        (2**62, 1, TooLarge),
        (10, 3, InvalidAlignment),
        (10, -4, InvalidAlignment),
        (MIB + 1, 1, TooLarge),
    ],
)
def test_bad_sizes_and_alignments_are_refused(size: int, alignment: int, error: type[Exception]) -> None:
    """Each unusable size or alignment has its own error, and changes nothing."""
    world = World()
    key = world.session()
    with pytest.raises(error):
        world.engine.lease(key, [LeaseItem(64), LeaseItem(size, alignment)], now=world.now)
    world.check()
    assert world.used == 0


def test_a_batch_larger_than_the_heap_is_too_large() -> None:
    """Waiting for a batch that never fits would never end, so it is refused at once."""
    world = World()
    key = world.session()
    with pytest.raises(TooLarge, match="the whole heap has 1048576"):
        world.engine.lease(key, [LeaseItem(600 * KIB)] * 2, now=world.now, timeout=10)


@pytest.mark.parametrize("number", [0, BATCH_MAX + 1])
def test_batches_are_bounded(number: int) -> None:
    """A batch has at least one item and at most BATCH_MAX."""
    world = World()
    with pytest.raises(InvalidArgument, match="batch"):
        world.engine.lease(world.session(), [LeaseItem(64)] * number, now=world.now)


def test_keys_are_checked() -> None:
    """An unknown session and a wrong or missing secret are told apart, and both refused."""
    world = World()
    key = world.session()
    with pytest.raises(UnknownSession):
        world.lease(SessionKey(SessionId(99), key.secret), 64)
    with pytest.raises(WrongSecret, match="wrong"):
        world.lease(SessionKey(key.id, b"x" * 16), 64)
    with pytest.raises(WrongSecret, match="missing"):
        world.lease(SessionKey(key.id, b""), 64)


def test_read_only_sessions_lease_nothing() -> None:
    """A read-only session may not lease."""
    world = World()
    with pytest.raises(ReadOnly):
        world.lease(world.session(access=Access.READ_ONLY), 64)


def test_releases_are_itemised() -> None:
    """Unknown, foreign, stale and repeated blocks are refused one by one; the good ones are released."""
    world = World()
    mine, other = world.session(), world.session()
    (good, stale), (foreign,) = world.lease(mine, 64, 64), world.lease(other, 64)
    world.release(mine, stale.ref)
    never = BlockRef(SlotId(4000), 1)
    results = world.release(mine, good.ref, good.ref, stale.ref, foreign.ref, never).results
    assert [type(result) for result in results] == [type(None)] + [UnknownBlock] * 4
    assert world.used == foreign.size


def test_a_reissued_slot_has_another_generation() -> None:
    """An old name does not reach the block that got the slot next."""
    world = World()
    key = world.session()
    (old,) = world.lease(key, 64)
    world.release(key, old.ref)
    (new,) = world.lease(key, 64)
    assert (new.ref.slot, new.ref.generation) == (old.ref.slot, old.ref.generation + 1)
    (result,) = world.release(key, old.ref).results
    assert isinstance(result, UnknownBlock)


def test_a_repeated_sequence_gets_the_same_answer() -> None:
    """A call repeated because its answer was lost happens once."""
    world = World()
    key = world.session()
    first = world.lease(key, 64, 128, sequence=7)
    assert world.lease(key, 64, 128, sequence=7) == first
    assert world.used == 192
    refs = [block.ref for block in first]
    released = world.release(key, *refs, sequence=8).results
    assert world.release(key, *refs, sequence=8).results == released == (None, None)


def test_long_answers_are_forgotten_sooner() -> None:
    """A session cannot make the daemon remember more than so many bytes, and the latest answer is always kept."""
    world = World()
    key = world.session()
    session = world.engine.sessions.authenticate(key)
    for sequence in range(1, 20):
        blocks = world.lease(key, *[64] * 2000, sequence=sequence)
        world.engine.release(key, [block.ref for block in blocks], now=world.now)
    assert sum(size for *_, size in session.answers.values()) <= REMEMBERED_BYTES
    assert world.lease(key, *[64] * 2000, sequence=19) == blocks
    assert world.used == 0
    for sequence in range(20, 2000):
        world.engine.release(key, [blocks[0].ref], now=world.now, sequence=sequence)
    assert len(session.answers) == REMEMBERED_ANSWERS


def test_what_is_remembered_of_refusals_is_bounded_in_bytes() -> None:
    """A refusal is longer than a grant: what a session makes the daemon remember is bounded by memory, measured."""
    world = World()
    key = world.session()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for sequence in range(1, 9):
            refs = [BlockRef(SlotId(10**9 + number), 4_000_000_000) for number in range(4096)]
            world.engine.release(key, refs, now=world.now, sequence=sequence)
        del refs
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    (largest,) = (size for *_, size in world.engine.sessions.authenticate(key).answers.values())
    assert largest > REMEMBERED_BYTES  # so it is the only one kept
    assert after - before < 1.5 * largest


def test_a_sequence_cannot_serve_two_requests() -> None:
    """A sequence number that comes back with a different request is refused."""
    world = World()
    key = world.session()
    world.lease(key, 64, sequence=7)
    with pytest.raises(SequenceReused):
        world.lease(key, 65, sequence=7)


def test_out_of_memory_says_who_holds_it() -> None:
    """The error names the holders with pid, name, bytes, age, label and call site."""
    world = World()
    holder = world.session("decoder")
    world.engine.lease(holder, [LeaseItem(MIB)], now=world.now, purpose=Purpose("frames", "pipeline.py:12"))
    world.now += 5
    pattern = (
        r"free 0.*held by decoder \(pid 1001\) 1048576 bytes in 1 leases, the oldest 5.0 s 'frames' at pipeline.py:12"
    )
    with pytest.raises(OutOfMemory, match=pattern):
        world.lease(world.session("other"), 64)


@pytest.mark.parametrize("purpose", [Purpose(label="x" * 129), Purpose(call_site="x" * 257)])
def test_labels_are_bounded(purpose: Purpose) -> None:
    """What a client says about itself cannot fill the daemon's memory."""
    world = World()
    with pytest.raises(InvalidArgument):
        world.engine.lease(world.session(), [LeaseItem(64)], now=world.now, purpose=purpose)


def test_draining_grants_nothing_new_and_takes_back() -> None:
    """While it drains the daemon refuses leases and sessions and accepts releases; resumed, it works again."""
    world = World()
    key = world.session()
    (block,) = world.lease(key, 64)
    world.engine.drain()
    with pytest.raises(Draining):
        world.lease(key, 64)
    with pytest.raises(Draining):
        world.session()
    assert world.release(key, block.ref).results == (None,)
    world.engine.drain(resume=True)
    world.lease(key, 64)


def test_heaps_are_apart() -> None:
    """A session's leases come from its own heap, and another heap's session cannot release them."""
    world = World(Engine([make_heap("a"), make_heap("b", 64 * KIB)]))
    first, second = world.session(heap="a"), world.session(heap="b")
    (block,) = world.lease(first, 64)
    assert world.engine.heaps["b"].books.used_bytes == 0
    assert isinstance(world.release(second, block.ref).results[0], UnknownBlock)
    with pytest.raises(TooLarge):
        world.lease(second, 65 * KIB)


def test_idle_slabs_do_not_stand_in_a_batchs_way() -> None:
    """A batch that fits an empty heap is granted, though slabs that nobody needs lie across it."""
    world = World()
    key = world.session()
    blocks = world.lease(key, 200 * KIB, 65)
    world.release(key, *(block.ref for block in blocks))
    assert len(world.lease(key, 1, 200 * KIB, 700 * KIB)) == 3
