"""The dispatcher: calls that are cancelled at the worst moment, and sessions that take long to end."""

from __future__ import annotations

import asyncio

import pytest
from tests.fixtures.engines import KIB, MIB, World, make_heap

from slabd_server.core.chores import SLICE
from slabd_server.core.engine import Engine
from slabd_server.core.errors import NoSuchSession, UnknownSession
from slabd_server.core.records import EndCause, SessionId, SessionKey
from slabd_server.dispatch import Dispatcher


def waiting_call(world: World, dispatcher: Dispatcher, *, sequence: int) -> tuple[SessionKey, asyncio.Task[object]]:
    """Start a call that waits for the whole heap, which somebody else has; return its session and task."""
    key = world.session("waits")
    waiting = world.wait(key, MIB, timeout=100.0, sequence=sequence)
    return key, asyncio.create_task(dispatcher.answer(key, "default", waiting, sequence=sequence))


@pytest.mark.parametrize("granted", ["before", "between", "after"])
@pytest.mark.parametrize("sequence", [0, 7])
async def test_a_cancelled_call_keeps_nothing(granted: str, sequence: int) -> None:
    """Whether a grant comes before a cancellation, after it, or between the two: nothing is left to nobody.

    A call with a sequence number can be made again, and then gets what it was granted.
    """
    world = World()
    dispatcher = Dispatcher(world.engine, lambda: world.now)
    holder = world.session("holds")
    (block,) = world.lease(holder, MIB)
    key, call = waiting_call(world, dispatcher, sequence=sequence)
    await asyncio.sleep(0)
    if granted == "after":
        call.cancel()
        await asyncio.sleep(0)
    elif granted == "between":
        call.cancel()
    dispatcher.perform(world.release(holder, block.ref).effects)
    if granted == "before":
        call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    world.check()
    if sequence and granted != "after":
        (again,) = world.lease(key, MIB, sequence=sequence)
        assert (again.size, world.heap.books.leases) == (MIB, 1)
    else:
        assert (world.used, len(world.heap.waiters)) == (0, 0)
    dispatcher.stop()


async def test_ending_waits_for_the_last_slice() -> None:
    """Who ends a session with very many blocks is answered when the last is free, and others are served meanwhile."""
    world = World(Engine([make_heap(size=256 * KIB)]))
    dispatcher = Dispatcher(world.engine, lambda: world.now)
    key, other = world.session(attached=False), world.session()
    blocks = 4 * SLICE - 400
    world.lease(key, *[64] * blocks)
    ending = asyncio.create_task(dispatcher.close_session(key))
    await asyncio.sleep(0)
    assert not ending.done()
    world.lease(other, 64)
    ended = await ending
    assert ended is not None
    assert (ended.cause, ended.leases, ended.reclaimed_bytes) == (EndCause.CLOSED, blocks, 64 * blocks)
    assert await dispatcher.close_session(key) is None  # what has just been closed may be closed again
    with pytest.raises(UnknownSession):
        await dispatcher.close_session(SessionKey(SessionId(99), key.secret))
    with pytest.raises(NoSuchSession):
        await dispatcher.evict(SessionId(99))
    dispatcher.stop()


async def test_a_quarantine_is_not_waited_for() -> None:
    """Who evicts a living process is told at once that its blocks stay in quarantine."""
    world = World()
    dispatcher = Dispatcher(world.engine, lambda: world.now)
    key = world.session()
    world.lease(key, 64)
    assert await dispatcher.evict(key.id) is None
    dispatcher.perform(world.die(key))
    assert world.used == 0
    dispatcher.stop()
