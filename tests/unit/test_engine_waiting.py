"""Waiting: first come, first served, with a deadline, and nobody overtakes."""

from __future__ import annotations

import pytest
from tests.fixtures.engines import KIB, MIB, World, make_heap

from slabd_server.core.engine import Engine
from slabd_server.core.errors import (
    Draining,
    InvalidArgument,
    OutOfMemory,
    QueueFull,
    SequenceInFlight,
    UnknownSession,
    WaitTimeout,
)
from slabd_server.core.records import LeaseItem, PressureEvent, Waiting, Woken


def granted(woken: tuple[Woken, ...]) -> list[int]:
    """Return the tickets that got blocks."""
    return [each.ticket for each in woken if isinstance(each.outcome, tuple)]


def test_a_waiter_gets_what_is_given_back() -> None:
    """A request that waited is granted by the release that makes room."""
    world = World()
    key = world.session()
    (block,) = world.lease(key, MIB)
    waiting = world.wait(world.session(), 64)
    assert granted(world.release(key, block.ref).effects.woken) == [waiting.ticket]


def test_nobody_overtakes() -> None:
    """A small request behind a large one waits, though it would fit, and is granted right after it."""
    world = World()
    key = world.session()
    first, second = world.lease(key, 512 * KIB, 256 * KIB)
    large, small = world.wait(world.session(), MIB), world.wait(world.session(), 64)
    assert granted(world.release(key, second.ref).effects.woken) == []
    assert granted(world.release(key, first.ref).effects.woken) == [large.ticket]
    with pytest.raises(OutOfMemory, match="1 earlier requests wait"):
        world.lease(key, 64)
    assert small.ticket in world.heap.waiters


def test_those_behind_move_up_when_the_head_gives_up() -> None:
    """When the head's deadline passes, those it held up are served in the same step."""
    world = World()
    key = world.session()
    world.lease(key, 512 * KIB)
    large = world.wait(world.session(), MIB, timeout=5.0)
    small = world.wait(world.session(), 64, timeout=50.0)
    assert world.engine.next_deadline(now=world.now) == world.now + 5.0
    woken = world.advance(5.0).woken
    assert granted(woken) == [small.ticket]
    (failed,) = [each for each in woken if each.ticket == large.ticket]
    assert isinstance(failed.outcome, WaitTimeout)
    assert "waited 5.000 s" in str(failed.outcome)
    assert "held by client (pid" in str(failed.outcome)


def test_an_abandoned_request_leaves_the_queue() -> None:
    """A cancelled head lets the next one through; abandoning twice is no error."""
    world = World()
    key = world.session()
    world.lease(key, 512 * KIB)
    large, small = world.wait(key, MIB), world.wait(key, 64)
    assert granted(world.engine.abandon("default", large.ticket, now=world.now).effects.woken) == [small.ticket]
    assert world.engine.abandon("default", large.ticket, now=world.now).effects.woken == ()
    world.check()


def test_a_dead_waiter_is_forgotten() -> None:
    """A session's requests leave the queue with it, and are never granted."""
    world = World()
    key, dying = world.session(), world.session()
    (block,) = world.lease(key, MIB)
    waiting = world.wait(dying, 64)
    (woken,) = world.die(dying).woken
    assert woken.ticket == waiting.ticket
    assert isinstance(woken.outcome, UnknownSession)
    assert world.release(key, block.ref).effects.woken == ()
    assert world.used == 0


def test_a_death_feeds_the_queue() -> None:
    """What a killed client held goes to those who wait, at once."""
    world = World()
    holder = world.session()
    world.lease(holder, MIB)
    waiting = world.wait(world.session(), MIB)
    assert granted(world.die(holder).woken) == [waiting.ticket]


def test_waiting_announces_pressure() -> None:
    """Everybody on the heap is told that somebody waits, and for how much."""
    world = World()
    key = world.session()
    world.lease(key, MIB)
    (notice,) = world.wait(key, 64, 64).effects.notices
    assert (notice.session, notice.event) == (None, PressureEvent(1, 128))


def test_the_queue_is_bounded() -> None:
    """A queue that is full refuses at once."""
    world = World(Engine([make_heap(queue_limit=2)]))
    key = world.session()
    world.lease(key, MIB)
    world.wait(key, 64)
    world.wait(key, 64)
    with pytest.raises(QueueFull, match="2 requests"):
        world.wait(key, 64)


def test_a_repeated_call_does_not_wait_twice() -> None:
    """The same sequence number is refused while its first call waits, and answered once that is granted."""
    world = World()
    key, other = world.session(), world.session()
    (block,) = world.lease(other, MIB)
    world.wait(key, 64, sequence=3)
    with pytest.raises(SequenceInFlight):
        world.wait(key, 64, sequence=3)
    (woken,) = world.release(other, block.ref).effects.woken
    assert world.lease(key, 64, sequence=3) == woken.outcome


def test_draining_refuses_those_who_wait() -> None:
    """Requests in the queue are refused when the daemon begins to drain."""
    world = World()
    key = world.session()
    world.lease(key, MIB)
    world.wait(key, 64)
    (woken,) = world.engine.drain().effects.woken
    assert isinstance(woken.outcome, Draining)
    world.check()


@pytest.mark.parametrize("timeout", [-1.0, float("nan")])
def test_timeouts_are_checked(timeout: float) -> None:
    """A timeout is a number of seconds, at least 0."""
    world = World()
    with pytest.raises(InvalidArgument, match="timeout"):
        world.engine.lease(world.session(), [LeaseItem(64)], now=world.now, timeout=timeout)


def test_an_endless_timeout_is_no_deadline_beyond_the_clock() -> None:
    """Waiting for ever is waiting for a very long time."""
    world = World()
    key = world.session()
    world.lease(key, MIB)
    outcome = world.engine.lease(key, [LeaseItem(64)], now=world.now, timeout=float("inf"))
    assert isinstance(outcome, Waiting)
    deadline = world.engine.next_deadline(now=world.now)
    assert deadline is not None
    assert world.now < deadline < float("inf")
