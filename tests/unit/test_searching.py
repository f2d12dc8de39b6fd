"""Requests whose search for free bytes is too long for one step: they wait for its end, and are not refused before."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
from tests.fixtures.engines import KIB, World

from slabd_server.core import patience, served
from slabd_server.core.errors import Fragmented, TooLarge, WaitTimeout
from slabd_server.core.last_resort import Seeker
from slabd_server.core.records import BlockRef, Effects, Leased, LeaseItem, Waiting, merged

if TYPE_CHECKING:
    from slabd_server.core.records import Block, SessionKey, Ticket

SLICE = 3


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """An engine whose heap looks at three slabs a step."""
    monkeypatch.setattr(served, "SLICE", SLICE)
    return World()


@pytest.fixture
def key(world: World) -> SessionKey:
    """A session that has filled the heap with blocks of 1 KiB, and given every other one back."""
    key = world.session()
    blocks = world.lease(key, *[KIB] * 1024)
    world.release(key, *(block.ref for block in blocks[::2]))
    return key


def ask(world: World, key: SessionKey, size: int, *, timeout: float = 0.0) -> Waiting:
    """Ask for a block when nobody can know yet."""
    outcome = world.engine.lease(key, [LeaseItem(size)], now=world.now, timeout=timeout)
    assert isinstance(outcome, Waiting)
    world.check()
    return outcome


def until_known(world: World) -> tuple[Effects, int]:
    """Let the search go on to its end; return what that brings about, and in how many steps."""
    effects, steps = Effects(), 0
    while world.heap.books.allocator.searching or len(world.heap.waiters):
        assert world.engine.next_deadline(now=world.now) == -math.inf
        effects = merged(effects, world.advance(0.0))
        steps += 1
        assert steps < 1000
    return effects, steps


def outcomes(effects: Effects) -> dict[Ticket, Any]:
    """Return who got what."""
    return {woken.ticket: woken.outcome for woken in effects.woken}


def sizes(blocks: tuple[Block, ...]) -> list[int]:
    """Return the sizes of some blocks."""
    return [block.size for block in blocks]


def test_a_request_that_will_not_wait_waits_for_the_search(world: World, key: SessionKey) -> None:
    """Then it is refused as ever: not for a timeout, and told who holds the memory."""
    waiting = ask(world, key, 2 * KIB)
    effects, steps = until_known(world)
    refusal = outcomes(effects)[waiting.ticket]
    assert type(refusal) is Fragmented
    assert "client" in str(refusal)
    assert steps > 5
    assert world.heap.books.tallies.rejections == {"fragmented": 1}
    assert world.engine.next_deadline(now=world.now) is None


def test_a_request_gets_what_the_search_finds(world: World, key: SessionKey) -> None:
    """Three neighbours at the end of the heap make room that no class and no page has."""
    world.release(key, refs(world, key)[-2])
    waiting = ask(world, key, 2 * KIB + 16)
    effects, _ = until_known(world)
    assert sizes(outcomes(effects)[waiting.ticket]) == [2 * KIB + 16]


def refs(world: World, key: SessionKey) -> list[BlockRef]:
    """List the blocks of a session, by their offset."""
    books = world.heap.books
    slots = sorted(world.engine.sessions.recognise(key).owned, key=lambda slot: books.ledger.get(slot).a)
    return [BlockRef(slot, books.ledger.get(slot).generation) for slot in slots]


def test_who_comes_meanwhile_waits_too_and_is_served(world: World, key: SessionKey) -> None:
    """Nobody is told that others wait in front of it when these will be gone in a moment."""
    first, second, third = ask(world, key, 2 * KIB), ask(world, key, KIB), ask(world, key, 3 * KIB)
    with pytest.raises(TooLarge):
        world.engine.lease(key, [LeaseItem(1 << 30)], now=world.now)
    effects, _ = until_known(world)
    got = outcomes(effects)
    assert (type(got[first.ticket]), type(got[third.ticket])) == (Fragmented, Fragmented)
    assert sizes(got[second.ticket]) == [KIB]


def test_a_patient_request_keeps_its_turn(world: World, key: SessionKey) -> None:
    """After the search it waits on, and who would not wait is refused because of it, as without a search."""
    patient = ask(world, key, 2 * KIB, timeout=5.0)
    hasty = ask(world, key, KIB)
    effects = Effects()
    while world.heap.books.allocator.searching:
        effects = merged(effects, world.advance(0.0))
    effects = merged(effects, world.advance(0.0))
    assert "an earlier request waits for 2048" in str(outcomes(effects)[hasty.ticket])
    assert world.engine.next_deadline(now=world.now) == world.now + 5.0
    refusal = outcomes(world.advance(5.0))[patient.ticket]
    assert type(refusal) is WaitTimeout


def test_a_timeout_that_ends_during_the_search_waits_for_it(world: World, key: SessionKey) -> None:
    """It might find something."""
    waiting = ask(world, key, 2 * KIB, timeout=0.5)
    assert world.advance(1.0).woken == ()
    effects, _ = until_known(world)
    assert type(outcomes(effects)[waiting.ticket]) is WaitTimeout


def test_memory_that_comes_back_during_the_search_serves_at_once(world: World, key: SessionKey) -> None:
    """The head of the queue is tried after every release, and needs no search when a whole page is free."""
    waiting = ask(world, key, 2 * KIB)
    owned = refs(world, key)
    released = world.release(key, *owned[:8])
    assert sizes(outcomes(released.effects)[waiting.ticket]) == [2 * KIB]
    effects, _ = until_known(world)
    assert effects.woken == ()


def test_a_request_given_up_leaves_nothing(world: World, key: SessionKey) -> None:
    """The search goes on to its end all the same, and serves the next."""
    waiting = ask(world, key, 2 * KIB)
    world.engine.abandon("default", waiting.ticket, now=world.now)
    world.check()
    until_known(world)
    with pytest.raises(Fragmented):
        world.lease(key, 2 * KIB)


def test_a_batch_of_which_one_block_needs_a_search_is_granted_whole(
    world: World, key: SessionKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that were placed already go back each time, and make work for the search: it ends even so."""
    monkeypatch.setattr(patience, "_PER_ITEM", 0)
    world.release(key, refs(world, key)[-2])
    items = [LeaseItem(KIB)] * 200 + [LeaseItem(3 * KIB)]
    outcome = world.engine.lease(key, items, now=world.now)
    assert isinstance(outcome, Waiting)
    effects, _ = until_known(world)
    blocks = outcomes(effects)[outcome.ticket]
    assert len(blocks) == 201
    assert sum(sizes(blocks)) == 203 * KIB


def test_no_step_of_the_engine_looks_at_many_slabs(
    world: World, key: SessionKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted, not timed: a request, each tick, and the request that is made again."""
    looks = [0]
    look = Seeker.room_of

    def counted(seeker: Seeker, holder: Any) -> int:
        looks[0] += 1
        return look(seeker, holder)

    monkeypatch.setattr(Seeker, "room_of", counted)
    ask(world, key, 2 * KIB)
    most = looks[0]
    while len(world.heap.waiters):
        looks[0] = 0
        world.engine.tick(now=world.now)
        most = max(most, looks[0])
    assert most <= 2 * (SLICE + 8)


def test_a_granted_request_is_remembered_for_its_repetition(world: World, key: SessionKey) -> None:
    """A client that lost the answer while the search went on gets it when it asks again."""
    outcome = world.engine.lease(key, [LeaseItem(2 * KIB)], now=world.now, sequence=7)
    assert isinstance(outcome, Waiting)
    for ref in refs(world, key)[:8]:
        world.release(key, ref)
    until_known(world)
    again = world.engine.lease(key, [LeaseItem(2 * KIB)], now=world.now, sequence=7)
    assert isinstance(again, Leased)
