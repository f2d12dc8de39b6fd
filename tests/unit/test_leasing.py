"""Leases that wait: what is counted and said of them, and what the queue and the sessions know of each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.fixtures.engines import KIB, MIB, World, make_heap

from slabd_server.core import inspection
from slabd_server.core.chores import SLICE
from slabd_server.core.engine import Engine
from slabd_server.core.errors import CoreError, Fragmented, LedgerFull, OutOfMemory, QueueFull, TooLarge, UnknownSession
from slabd_server.core.leasing import TIMEOUT_MAX_SECONDS
from slabd_server.core.ledger import Kind
from slabd_server.core.records import LeaseItem, PressureEvent, Waiting
from slabd_server.core.store import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from slabd_server.core.records import Block, Effects, SessionKey


def full(**spec: object) -> World:
    """Return a world whose heap is full of one session's block."""
    world = World(Engine([make_heap(**spec)]))  # type: ignore[arg-type]
    world.lease(world.session("holder"), MIB)
    return world


def test_refusals_are_counted_by_their_reason() -> None:
    """Every request is counted, and every refused one once, under its reason."""
    world = full(queue_limit=2)
    key = world.session()
    with pytest.raises(TooLarge):
        world.lease(key, MIB + 1)
    for _ in range(2):
        with pytest.raises(OutOfMemory):
            world.lease(key, 64)
    world.wait(key, 64, timeout=5.0)
    world.wait(key, 64, timeout=6.0)
    with pytest.raises(QueueFull):
        world.wait(key, 64)
    world.advance(5.5)
    tallies = world.heap.books.tallies
    assert tallies.rejections == {"too_large": 1, "no_memory": 2, "queue_full": 1, "timeout": 1}
    assert (tallies.lease_requests, tallies.leases_granted) == (1 + 6, 1)


def test_a_refusal_leaves_nothing_to_do() -> None:
    """Where nothing is on its way back, a refused request gives nobody anything to do afterwards."""
    world = full()
    key = world.session()
    for _ in range(3):
        with pytest.raises(OutOfMemory):
            world.lease(key, 64)
        assert world.engine.next_deadline(now=world.now) is None


def test_a_fragmented_heap_says_so_and_who_holds_it() -> None:
    """The error of a request that no free range fits keeps its kind when the holders are added to it."""
    world = World()
    key = world.session("holder")
    blocks = world.lease(key, *[4 * KIB] * 256)
    world.release(key, *(block.ref for block in blocks[::2]))
    with pytest.raises(Fragmented, match="held by holder"):
        world.lease(world.session(), 8 * KIB)
    assert world.heap.books.tallies.rejections == {"fragmented": 1}


def test_a_batch_may_take_the_whole_heap() -> None:
    """A batch is too large when it is larger than the heap, not when it is as large."""
    world = World()
    assert len(world.lease(world.session(), 512 * KIB, 512 * KIB)) == 2


def test_those_behind_are_told_how_many_wait() -> None:
    """A request that will not wait is told what those before it want; a waiting one announces the same."""
    world = full()
    waiting = world.wait(world.session(), 64, 100)
    (notice,) = waiting.effects.notices
    assert (notice.heap, notice.session, notice.event) == ("default", None, PressureEvent(1, 164))
    with pytest.raises(OutOfMemory, match="asked 192 bytes; 1 earlier requests wait for 164"):
        world.lease(world.session(), 64, 65)


def test_tickets_are_unlike() -> None:
    """Every request that waits gets a ticket of its own, the next one the next number."""
    world = full()
    key = world.session()
    assert [world.wait(key, 64).ticket for _ in range(3)] == [1, 2, 3]
    assert world.engine.sessions.authenticate(key).in_flight == {}  # without a number a call cannot be repeated


def test_a_deadline_is_from_now_and_not_for_ever() -> None:
    """A request that waits for ever gives up after ten years, any other after its timeout."""
    world = full()
    key = world.session()
    endless = world.engine.lease(key, [LeaseItem(64)], now=world.now, timeout=float("inf"))
    assert isinstance(endless, Waiting)
    assert world.engine.next_deadline(now=world.now) == world.now + TIMEOUT_MAX_SECONDS
    world.wait(key, 64, timeout=3.0)
    assert world.engine.next_deadline(now=world.now) == world.now + 3.0
    assert world.advance(2.9).woken == ()
    (woken,) = world.advance(0.1).woken
    assert str(woken.outcome).startswith(
        "asked 64 bytes in 1 blocks and waited 3.000 s; free 0, largest free block 0; held by holder"
    )


def test_a_timeout_is_told_what_is_free() -> None:
    """Who waited in vain learns how much is free and how large the largest free block is."""
    world = World()
    world.lease(world.session(), MIB - 64 * KIB)
    world.wait(world.session(), 80 * KIB, 8 * KIB, timeout=1.0)
    (woken,) = world.advance(1.0).woken
    assert "asked 90112 bytes in 2 blocks and waited 1.000 s; free 65536, largest free block 65536;" in str(
        woken.outcome
    )


def test_a_request_that_ends_is_forgotten_everywhere() -> None:
    """Granted, given up, timed out or refused: neither the queue nor the session knows it any more."""
    world = full()
    key = world.session()
    session = world.engine.sessions.authenticate(key)
    tickets = [world.wait(key, 64, sequence=number, timeout=number).ticket for number in range(1, 4)]
    assert list(session.tickets) == tickets
    assert session.in_flight == dict(zip([1, 2, 3], tickets, strict=True))
    world.engine.abandon("default", tickets[1], now=world.now)
    assert (list(session.tickets), session.in_flight) == ([1, 3], {1: 1, 3: 3})
    world.advance(1.0)
    assert (list(session.tickets), session.in_flight) == ([3], {3: 3})
    world.engine.drain()
    assert (list(session.tickets), session.in_flight, world.heap.waiters.wanted_bytes) == ([], {}, 0)
    assert len(world.heap.waiters) == 0
    assert world.heap.waiters.head is None


@pytest.mark.parametrize(
    ("verb", "why"),
    [
        ("hang_up", "session 2: its connection has hung up"),
        ("evict", "session 2: an operator has ended it"),
        ("end", "session 2: its client has closed it"),
        ("end_remote", "session 2: the session has ended"),
    ],
)
def test_who_cannot_be_answered_does_not_wait(verb: str, why: str) -> None:
    """When a session can no longer be talked to its requests are refused with the reason, others wait on."""
    world = full()
    key = world.session(attached=verb != "end_remote")
    other = world.session()
    mine = [world.wait(key, 64).ticket, world.wait(key, MIB).ticket]
    theirs = world.wait(other, 64).ticket
    if verb == "end":
        effects = world.end(key, child=True)
    elif verb == "end_remote":
        effects = world.end(key)
    else:
        effects = getattr(world, verb)(key)
    assert [woken.ticket for woken in effects.woken] == mine
    for woken in effects.woken:
        assert isinstance(woken.outcome, UnknownSession)
        assert str(woken.outcome) == why
    assert [waiter.ticket for waiter in world.heap.waiters] == [theirs]


def test_a_head_that_goes_lets_the_others_through() -> None:
    """A quarantine frees nothing, but who stood behind the one that went into it may fit."""
    world = World()
    world.lease(world.session(), 512 * KIB)
    large, small = world.session(), world.session()
    refused, granted = world.wait(large, MIB), world.wait(small, 64)
    effects = world.hang_up(large)
    assert [woken.ticket for woken in effects.woken] == [refused.ticket, granted.ticket]
    assert not isinstance(effects.woken[1].outcome, CoreError)
    assert inspection.leases(world.engine, "", small.id, 10, world.now)[0][0].age == 0.0


def test_all_queues_are_emptied_for_a_drain() -> None:
    """Draining refuses those who wait on every heap, and nobody afterwards."""
    world = World(Engine([make_heap("a"), make_heap("b")]))
    tickets = []
    for heap in "ab":
        world.lease(world.session(heap=heap), MIB)
        tickets.append(world.wait(world.session(heap=heap), 64).ticket)
    effects = world.engine.drain().effects
    assert [woken.ticket for woken in effects.woken] == tickets
    assert [notice.heap for notice in effects.notices] == ["a", "b"]
    assert world.engine.drain().effects.woken == ()


def test_a_request_served_from_the_queue_can_be_repeated() -> None:
    """What a waiter was granted, another call with its number is granted again: the same blocks, once."""
    world = World()
    holder, key = world.session(), world.session()
    (block,) = world.lease(holder, MIB)
    world.wait(key, 64, 64, sequence=5)
    (woken,) = world.release(holder, block.ref).effects.woken
    assert world.lease(key, 64, 64, sequence=5) == woken.outcome
    assert world.used == 128


def test_leases_that_finished_a_chore_begin_now() -> None:
    """What was on its way back is granted to those who wait, and to the hasty one, from this moment on."""
    world = World()
    crowd = world.session()
    world.lease(crowd, *[64] * 3 * SLICE)
    world.lease(crowd, MIB - 64 * 3 * SLICE - 64 * KIB)
    world.wait(world.session(), 512 * KIB)
    world.die(crowd)
    world.now += 5
    world.lease(world.session(), 256 * KIB)
    assert (began(world), world.heap.books.leases) == ({world.now}, 2)
    assert world.engine.next_deadline(now=world.now) == world.now


def began(world: World) -> set[float]:
    """Return when the leases there are have begun."""
    ledger = world.heap.books.ledger
    return {record.time for _, record in ledger.records() if record.kind is Kind.BLOCK}


def released(world: World, owner: SessionKey, block: Block) -> Effects:
    """The owner releases it."""
    return world.release(owner, block.ref).effects


def closed_by_a_reader(world: World, owner: SessionKey, block: Block) -> Effects:
    """Its last reader closes it."""
    reader = world.session()
    world.open(reader, world.share(owner, block.ref))
    world.release(owner, block.ref)
    return world.close(reader, block.ref)


def promised_in_vain(world: World, owner: SessionKey, block: Block) -> Effects:
    """Its last handle expires."""
    world.share(owner, block.ref, ttl=1.0)
    assert world.release(owner, block.ref).effects.woken == ()
    return world.advance(1.0)


def ended(world: World, owner: SessionKey, _block: Block) -> Effects:
    """Its owner closes the session."""
    return world.end(owner)


def killed(world: World, owner: SessionKey, _block: Block) -> Effects:
    """Its owner's process is killed."""
    return world.die(owner)


def evicted(world: World, owner: SessionKey, _block: Block) -> Effects:
    """Its owner is evicted, and its process has to be killed."""
    assert world.evict(owner).woken == ()
    return world.die(owner)


def overdue(world: World, owner: SessionKey, _block: Block) -> Effects:
    """Its owner over gRPC alone does not keep itself alive."""
    assert world.advance(29.9).woken == ()
    assert world.engine.sessions.recognise(owner).attached is False
    return world.advance(0.2)


@pytest.mark.parametrize("give_back", [released, closed_by_a_reader, promised_in_vain, ended, killed, evicted, overdue])
def test_whatever_gives_memory_back_serves_the_queue(
    give_back: Callable[[World, SessionKey, Block], Effects],
) -> None:
    """In the very step that frees the last block those who wait get it, in their order, till one does not fit."""
    world = World()
    owner = world.session(attached=give_back is not overdue)
    (block,) = world.lease(owner, MIB)
    patient = world.session()
    waiting = [world.wait(patient, size, timeout=1000.0).ticket for size in (64, 4 * KIB, MIB, 64)]
    effects = give_back(world, owner, block)
    assert [woken.ticket for woken in effects.woken] == waiting[:2]
    assert [waiter.ticket for waiter in world.heap.waiters] == waiting[2:]
    assert world.used == 64 + 4 * KIB
    assert began(world) == {world.now}


class SmallLedger(MemoryStore):
    """A store that cannot grow."""

    def grow(self, capacity: int) -> None:
        """Refuse."""
        raise LedgerFull(f"no memory for {capacity} records")


def test_a_full_ledger_refuses_before_anything_changes() -> None:
    """Neither a lease nor an open takes anything when the ledger has no room for it, and waiting would be no use."""
    world = World(Engine([make_heap(store=SmallLedger(4))]))
    owner, reader = world.session(), world.session()
    for timeout in (0.0, 10.0):
        with pytest.raises(LedgerFull):
            world.engine.lease(owner, [LeaseItem(64)] * 3, now=world.now, timeout=timeout)
        world.check()
        assert (world.used, world.heap.books.leases, len(world.heap.waiters)) == (0, 0, 0)
    assert world.heap.books.tallies.rejections == {"no_memory": 2}
    _, block = world.lease(owner, 64, 64)
    handle = world.share(owner, block.ref)
    with pytest.raises(LedgerFull):
        world.open(reader, handle)
    assert world.heap.books.ledger.get(block.ref.slot).pending == 1
    assert (world.heap.books.holds, world.heap.books.tallies.opens_ok) == ({}, 0)


def test_a_timeout_counts_memory_on_its_way_back_as_free() -> None:
    """Who would time out while a session's blocks are being given back gets them."""
    world = World(Engine([make_heap(size=256 * KIB)]))
    crowd = world.session()
    world.lease(crowd, *[64] * 6 * SLICE)
    waiting = world.wait(world.session(), 256 * KIB, timeout=1.0)
    assert world.die(crowd).woken == ()
    (woken,) = world.advance(1.0).woken
    assert woken.ticket == waiting.ticket
    assert not isinstance(woken.outcome, CoreError)
    assert [block.size for block in woken.outcome] == [256 * KIB]
