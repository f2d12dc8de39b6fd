"""Blocks that take long to prepare: nobody's until they are, and back in the books whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest
from tests.fixtures.engines import KIB, MIB, World, make_heap

from slabd_server import preparing as workers
from slabd_server.core import preparing
from slabd_server.core.engine import Engine
from slabd_server.core.errors import OutOfMemory, UnknownSession
from slabd_server.core.memory import FixedMemory
from slabd_server.core.preparing import Preparer
from slabd_server.core.records import BlockState, Effects, LeaseItem, Preparation, Range, SessionKey, Ticket, Waiting
from slabd_server.core.sizes import PAGE
from slabd_server.dispatch import Dispatcher
from slabd_server.preparing import Workers

if TYPE_CHECKING:
    from collections.abc import Callable

LARGE = 512 * KIB
SMALL = 64 * KIB


class Recorder(FixedMemory):
    """Memory that remembers what was done to it, and can be poor."""

    def __init__(self) -> None:
        self.committed: list[tuple[int, int]] = []
        self.cleared: list[tuple[int, int]] = []
        self.poor = False

    def afford(self, offset: int, size: int) -> None:
        """Refuse, or not."""
        if self.poor:
            raise OutOfMemory(f"the system has no memory for {size} bytes at {offset}")

    def commit(self, offset: int, size: int) -> None:
        """Remember, or refuse."""
        self.afford(offset, size)
        self.committed.append((offset, size))

    def clear(self, offset: int, size: int) -> None:
        """Remember."""
        self.cleared.append((offset, size))


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Memory of which a step prepares 128 KiB."""
    monkeypatch.setattr(preparing, "AT_ONCE", 128 * KIB)
    return Recorder()


@pytest.fixture
def world(memory: Recorder) -> World:
    """An engine that clears between sessions; somebody has been there, so every block is cleared from now on."""
    world = World(Engine([make_heap(memory=memory, clear="sessions")]))
    for _ in range(2):
        key = world.session()
        world.release(key, world.lease(key, 64)[0].ref)
    memory.cleared.clear()
    return world


@pytest.fixture
def holed(memory: Recorder) -> World:
    """An engine all of whose pages have been given back to the system."""
    world = World(Engine([make_heap(memory=memory, give_back_seconds=1.0)]))
    while world.heap.books.allocator.decays:
        world.heap.books.allocator.decay()
    assert world.heap.books.allocator._extents.may_lack(0)
    return world


def ask(world: World, key: SessionKey, *sizes: int, timeout: float = 0.0, sequence: int = 0) -> Waiting:
    """Ask for blocks that have to be prepared."""
    items = [LeaseItem(size) for size in sizes]
    outcome = world.engine.lease(key, items, now=world.now, timeout=timeout, sequence=sequence)
    assert isinstance(outcome, Waiting)
    world.check()
    return outcome


def finish(world: World, effects: Effects, error: OutOfMemory | None = None) -> Effects:
    """Say that what one request wants prepared is, or cannot be."""
    (preparation,) = effects.preparations
    done = world.engine.prepared(preparation.heap, preparation.ticket, error, now=world.now).effects
    world.check()
    return done


def outcome_of(effects: Effects) -> Any:
    """Return what the one who waits gets."""
    (woken,) = effects.woken
    return woken.outcome


# -- what is put off


def test_what_is_short_is_done_at_once_and_the_rest_is_not(memory: Recorder) -> None:
    """As much as a step may do in all; but pages that a slab takes always, however much has been done already."""
    preparer = Preparer(memory)
    preparer.begin()
    preparer.clear(0, 100 * KIB)
    preparer.clear(MIB, 100 * KIB)
    preparer.commit(2 * MIB, 28 * KIB)
    preparer.commit(3 * MIB, SMALL)
    preparer.commit(4 * MIB, SMALL + 1)
    assert memory.cleared == [(0, 100 * KIB)]
    assert memory.committed == [(2 * MIB, 28 * KIB), (3 * MIB, SMALL)]
    assert preparer.take() == ((Range(4 * MIB, SMALL + 1),), (Range(MIB, 100 * KIB),))
    assert preparer.take() == ((), ())
    preparer.begin()
    preparer.clear(0, 128 * KIB)
    assert preparer.take() == ((), ())


def test_what_cannot_be_afforded_is_refused_at_once(memory: Recorder) -> None:
    """So that something else can serve, before anything is put off."""
    memory.poor = True
    preparer = Preparer(memory)
    for size in (KIB, MIB):
        with pytest.raises(OutOfMemory):
            preparer.commit(0, size)
    assert preparer.take() == ((), ())


# -- a request whose blocks are prepared


def test_a_small_block_is_cleared_in_the_step_that_grants_it(world: World, memory: Recorder) -> None:
    """As ever."""
    (block,) = world.lease(world.session(), SMALL)
    assert memory.cleared == [(block.offset, block.size)]


def test_a_large_block_is_granted_when_it_has_been_cleared(world: World, memory: Recorder) -> None:
    """Until then it is nobody's, and counts as used; nothing of it has been touched by the engine."""
    key = world.session()
    waiting = ask(world, key, LARGE)
    assert waiting.effects.preparations == (Preparation(waiting.ticket, "default", (), (Range(PAGE, LARGE),)),)
    books = world.heap.books
    assert (world.used, books.leases, books.prepared_bytes) == (LARGE, 0, LARGE)
    assert books.state_bytes[BlockState.LEASED] == LARGE
    (block,) = outcome_of(finish(world, waiting.effects))
    assert (block.offset, block.size, memory.cleared) == (PAGE, LARGE, [])
    assert (books.leases, books.prepared_bytes) == (1, 0)
    world.release(key, block.ref)
    assert world.used == 0


def test_pages_that_were_given_back_exist_before_the_block_is_granted(holed: World, memory: Recorder) -> None:
    """The preparation names them."""
    waiting = ask(holed, holed.session(), LARGE)
    (preparation,) = waiting.effects.preparations
    assert (preparation.commits, preparation.clears, memory.committed) == ((Range(0, LARGE),), (), [])
    (block,) = outcome_of(finish(holed, waiting.effects))
    assert block.size == LARGE


def test_pages_that_cannot_be_had_are_free_and_still_lacking(holed: World) -> None:
    """Who asked is told so, and whoever asks next has them committed anew."""
    waiting = ask(holed, holed.session(), LARGE)
    refusal = outcome_of(finish(holed, waiting.effects, OutOfMemory("none left")))
    assert isinstance(refusal, OutOfMemory)
    assert (holed.used, holed.heap.books.tallies.rejections) == (0, {"no_memory": 1})
    again = ask(holed, holed.session(), LARGE)
    assert again.effects.preparations[0].commits == (Range(0, LARGE),)


def test_a_batch_that_fails_leaves_its_pages_lacking(holed: World) -> None:
    """The first two blocks were placed and put off, the third does not fit."""
    key = holed.session()
    holed.lease(key, SMALL)
    with pytest.raises(OutOfMemory):
        holed.lease(key, 330 * KIB, 330 * KIB, 330 * KIB)
    assert holed.used == SMALL
    (preparation,) = ask(holed, key, MIB - SMALL).effects.preparations
    assert preparation.commits == (Range(SMALL, MIB - SMALL),)


def test_a_batch_of_many_small_blocks_is_prepared_too(world: World, memory: Recorder) -> None:
    """A step clears 128 KiB and no more; none of them is granted before all are cleared."""
    waiting = ask(world, world.session(), *[32 * KIB] * 8)
    (preparation,) = waiting.effects.preparations
    assert (len(preparation.clears), len(memory.cleared)) == (4, 4)
    assert len(outcome_of(finish(world, waiting.effects))) == 8


def test_others_are_served_meanwhile(world: World) -> None:
    """What is prepared is not in their way, nor are they behind it."""
    waiting = ask(world, world.session(), LARGE)
    (block,) = world.lease(world.session(), SMALL)
    assert block.offset >= LARGE
    finish(world, waiting.effects)


# -- what can happen meanwhile


def test_a_request_given_up_gives_its_blocks_back_when_they_are_prepared(world: World) -> None:
    """Not before: somebody writes to them."""
    key = world.session()
    waiting = ask(world, key, LARGE)
    world.engine.abandon("default", waiting.ticket, now=world.now)
    world.check()
    assert world.used == LARGE
    with pytest.raises(OutOfMemory):
        world.lease(key, LARGE + KIB)
    effects = finish(world, waiting.effects)
    assert (effects.woken, world.used) == ((), 0)


def test_a_client_that_dies_meanwhile_frees_nothing_that_is_written_to(world: World) -> None:
    """Its session is gone at once, its call is told so, and the bytes come back afterwards."""
    key = world.session()
    waiting = ask(world, key, LARGE)
    effects = world.die(key)
    assert isinstance(outcome_of(effects), UnknownSession)
    assert (world.engine.sessions.find(key.id), world.used) == (None, LARGE)
    assert (finish(world, waiting.effects).woken, world.used) == ((), 0)


def test_those_who_wait_get_what_was_given_up(world: World) -> None:
    """The queue is served when the blocks come back; what they get has to be prepared in its turn."""
    first, second = world.session(), world.session()
    waiting = ask(world, first, MIB)
    behind = world.wait(second, LARGE)
    world.die(first)
    effects = finish(world, waiting.effects)
    assert [each.ticket for each in effects.preparations] == [behind.ticket]
    (block,) = outcome_of(finish(world, effects))
    assert block.size == LARGE
    assert len(world.heap.waiters) == 0


def test_a_timeout_does_not_end_while_the_block_is_prepared(world: World) -> None:
    """The request had its turn in time."""
    holder, key = world.session(), world.session()
    blocks = world.lease(holder, SMALL, SMALL)
    waiting = world.wait(key, MIB, timeout=1.0)
    effects = world.release(holder, *(block.ref for block in blocks)).effects
    assert world.advance(5.0).woken == ()
    (block,) = outcome_of(finish(world, effects))
    assert (block.size, effects.preparations[0].ticket) == (MIB, waiting.ticket)


def test_a_repeated_call_is_answered_like_the_first(world: World) -> None:
    """While the block is prepared it is in flight; afterwards it is remembered."""
    key = world.session()
    waiting = ask(world, key, LARGE, sequence=7)
    assert world.engine.sessions.recognise(key).in_flight == {7: waiting.ticket}
    blocks = outcome_of(finish(world, waiting.effects))
    assert world.lease(key, LARGE, sequence=7) == blocks


def test_draining_lets_what_is_prepared_be_granted(world: World) -> None:
    """It was admitted before."""
    waiting = ask(world, world.session(), LARGE)
    world.engine.drain()
    assert len(outcome_of(finish(world, waiting.effects))) == 1


def test_who_grants_in_one_step_is_refused(world: World) -> None:
    """A lane cannot wait; its client asks again over gRPC. The blocks are back at once, for nobody has touched them."""
    session = world.engine.sessions.recognise(world.session())
    with pytest.raises(OutOfMemory, match="have to be prepared"):
        world.heap.books.grant(session, [LeaseItem(LARGE)], Any, sequence=0, now=world.now)  # type: ignore[arg-type]
    world.check()
    assert world.used == 0


# -- the threads


class Slow(Recorder):
    """Memory whose clearing waits for the test."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go_on = threading.Event(), threading.Event()

    def clear(self, offset: int, size: int) -> None:
        """Wait, then remember."""
        self.begun.set()
        self.go_on.wait(60)
        super().clear(offset, size)


async def call(world: World, dispatcher: Dispatcher, key: SessionKey) -> Any:
    """Make the call that a client makes."""
    waiting = ask(world, key, LARGE)
    return await dispatcher.answer(key, "default", waiting, sequence=0)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> tuple[World, Slow]:
    """An engine over slow memory, whose next large block is cleared."""
    monkeypatch.setattr(preparing, "AT_ONCE", 128 * KIB)
    memory = Slow()
    memory.go_on.set()
    world = World(Engine([make_heap(memory=memory, clear="sessions")]))
    for _ in range(2):
        key = world.session()
        world.release(key, world.lease(key, 64)[0].ref)
    memory.go_on.clear()
    memory.begun.clear()
    return world, memory


async def begun(memory: Slow) -> None:
    """Wait until a thread clears."""
    await asyncio.to_thread(memory.begun.wait)


async def test_the_loop_runs_while_a_block_is_cleared(slow: tuple[World, Slow]) -> None:
    """And the call is answered afterwards."""
    world, memory = slow
    dispatcher = Dispatcher(world.engine, lambda: world.now)
    answer = asyncio.create_task(call(world, dispatcher, world.session()))
    await begun(memory)
    assert not answer.done()
    await asyncio.sleep(0)
    memory.go_on.set()
    (block,) = await answer
    assert (block.offset, block.size) in memory.cleared
    dispatcher.stop()


@pytest.mark.parametrize("how", ["cancelled", "died"])
async def test_a_block_is_not_freed_under_the_thread(slow: tuple[World, Slow], how: str) -> None:
    """Whoever asked for it is gone; it stays taken until the thread has left it."""
    world, memory = slow
    dispatcher = Dispatcher(world.engine, lambda: world.now)
    key = world.session()
    answer = asyncio.create_task(call(world, dispatcher, key))
    await begun(memory)
    if how == "cancelled":
        answer.cancel()
    else:
        dispatcher.perform(world.die(key))
    with pytest.raises((asyncio.CancelledError, UnknownSession)):
        await answer
    assert world.used == LARGE
    memory.go_on.set()
    while world.used:  # noqa: ASYNC110  # what the loop does meanwhile is the point
        await asyncio.sleep(0.001)
    world.check()
    dispatcher.stop()


async def test_stopping_waits_for_the_threads_and_no_longer(
    slow: tuple[World, Slow], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The piece under way is finished, the next is not begun, and the engine is not told any more."""
    monkeypatch.setattr(workers, "_PIECE", 64 * KIB)
    world, memory = slow
    dispatcher = Dispatcher(world.engine, lambda: world.now)
    answer = asyncio.create_task(call(world, dispatcher, world.session()))
    await begun(memory)
    threading.Timer(0.05, memory.go_on.set).start()
    dispatcher.stop()
    pieces = len(memory.cleared)
    assert pieces < LARGE // (64 * KIB)
    await asyncio.sleep(0.05)
    assert len(memory.cleared) == pieces
    answer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answer
    assert world.heap.books.prepared_bytes == LARGE


@pytest.mark.parametrize("error", [OutOfMemory("none"), OSError("odd")], ids=["no memory", "a defect"])
def test_what_the_thread_meets_is_an_answer(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never an exception that nobody sees: a defect is logged, and the call fails."""
    memory = Recorder()

    def fail(_offset: int, _size: int) -> None:
        raise error

    monkeypatch.setattr(memory, "commit", fail)
    pool = Workers()
    work: Callable[..., OutOfMemory | None] = pool.prepare
    answer = work(memory, Preparation(Ticket(1), "default", (Range(0, MIB),), (Range(0, MIB),)))
    assert isinstance(answer, OutOfMemory)
    assert memory.cleared == []
    pool.stop()


def test_the_work_is_cut_into_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages first, then clearing, and the last piece is what is left."""
    monkeypatch.setattr(workers, "_PIECE", 100)
    memory, pool = Recorder(), Workers()
    ranges = (Range(1000, 250), Range(5000, 100))
    assert pool.prepare(memory, Preparation(Ticket(1), "default", ranges, ranges[:1])) is None
    assert memory.committed == [(1000, 100), (1100, 100), (1200, 50), (5000, 100)]
    assert memory.cleared == [(1000, 100), (1100, 100), (1200, 50)]
    pool.stop()
