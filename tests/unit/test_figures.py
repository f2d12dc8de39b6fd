"""What Prometheus is told of a heap follows what happens to it."""

from __future__ import annotations

import pytest
from tests.fixtures.engines import KIB, MIB, World, make_heap

from slabd_server.core.engine import Engine
from slabd_server.core.errors import Draining, NoMemory
from slabd_server.core.figures import HeapFigures, figures
from slabd_server.core.records import LeaseItem


def now_of(world: World) -> HeapFigures:
    """Return the figures of the first heap."""
    return figures(world.heap, world.now)


def by_size(world: World) -> dict[int, tuple[int, int, int]]:
    """Return (used blocks, used bytes, granted) of the classes that ever had a block."""
    return {c.size: (c.used_blocks, c.used_bytes, c.granted) for c in now_of(world).classes if c.granted}


def test_classes_add_up_to_what_is_used() -> None:
    """Blocks are counted in the class of their size, those above every class together, and no byte is missed."""
    world = World()
    key = world.session()
    blocks = world.lease(key, 64, 60, 4096, 5000, 100 * KIB)
    assert by_size(world) == {64: (2, 128, 2), 4096: (1, 4096, 1), 0: (2, 8192 + 100 * KIB, 2)}
    assert sum(c.used_bytes for c in now_of(world).classes) == world.used
    world.release(key, blocks[0].ref)
    assert by_size(world)[64] == (1, 64, 2)


def test_requests_are_counted_by_size() -> None:
    """Each block that was asked for is one observation, granted or not."""
    world = World()
    key = world.session()
    world.lease(key, 64, 5000)
    with pytest.raises(NoMemory):
        world.engine.lease(key, [LeaseItem(2 * MIB)], now=world.now)
    assert sum(now_of(world).request_sizes.counts) == 3
    assert now_of(world).request_sizes.sum == 64 + 5000 + 2 * MIB


def test_leases_are_held_until_they_end() -> None:
    """However they end: by release, transfer, or their session's end."""
    world = World()
    key = world.session()
    released, transferred, _ = world.lease(key, 64, 64, 64)
    world.now += 10
    world.release(key, released.ref)
    world.transfer(key, transferred.ref)
    world.now += 10
    world.engine.hang_up(key.id, now=world.now, closed=True)
    assert sum(now_of(world).hold_seconds.counts) == 3
    assert now_of(world).hold_seconds.sum == 10 + 10 + 20


def test_waits_are_counted_when_they_are_over() -> None:
    """By a grant, or by the timeout."""
    world = World()
    key = world.session()
    (block,) = world.lease(key, MIB)
    world.wait(key, 64, timeout=5)
    world.wait(key, MIB, timeout=9)
    assert sum(now_of(world).wait_seconds.counts) == 0
    world.now += 4
    world.release(key, block.ref)
    assert now_of(world).wait_seconds.sum == 4
    world.now += 5
    world.engine.tick(now=world.now)
    assert now_of(world).wait_seconds.sum == 4 + 9


def test_the_oldest_quarantine_has_an_age() -> None:
    """That of the session that has been there longest; none when all are gone."""
    world = World()
    first, second = world.session(), world.session()
    assert now_of(world).quarantine_oldest_age == 0
    world.engine.hang_up(first.id, now=world.now)
    world.now += 3
    world.engine.hang_up(second.id, now=world.now)
    world.now += 4
    assert now_of(world).quarantine_oldest_age == 7
    world.engine.process_gone(first.id, now=world.now)
    assert now_of(world).quarantine_oldest_age == 4
    world.engine.process_gone(second.id, now=world.now)
    assert now_of(world).quarantine_oldest_age == 0


def test_the_largest_session_is_known() -> None:
    """By what it has leased."""
    world = World()
    small, large = world.session(), world.session()
    assert now_of(world).session_max_used_bytes == 0
    world.lease(small, 64)
    world.lease(large, 100 * KIB)
    assert now_of(world).session_max_used_bytes == 100 * KIB


def test_draining_refuses_and_counts() -> None:
    """Requests that come, and those that wait."""
    world = World()
    key = world.session()
    world.lease(key, MIB)
    world.wait(key, 64)
    world.engine.drain()
    with pytest.raises(Draining):
        world.engine.lease(key, [LeaseItem(64)], now=world.now)
    stats = now_of(world).stats
    assert stats.rejections == {"draining": 2}
    assert stats.lease_requests == 3


def test_slabs_move() -> None:
    """To a class with its first block; back when the heap needs the pages."""
    world = World()
    key = world.session()
    assert now_of(world).slab_moves == {"to_class": 0, "from_class": 0}
    (block,) = world.lease(key, 64)
    world.release(key, block.ref)
    world.lease(key, MIB)
    assert now_of(world).slab_moves == {"to_class": 1, "from_class": 1}


def test_finer_classes_have_figures_too() -> None:
    """The classes are those of the heap's own configuration."""
    world = World(Engine([make_heap(size_classes="fine")]))
    world.lease(world.session(), 80)
    assert by_size(world) == {80: (1, 80, 1)}
