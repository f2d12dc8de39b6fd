"""Blocks are cleared between those the option names, and not before there is anybody else."""

from __future__ import annotations

import pytest
from tests.fixtures.engines import UID, World, make_heap

from slabd_server.core.cleaner import Cleaner, Clear
from slabd_server.core.engine import Engine
from slabd_server.core.memory import FixedMemory
from slabd_server.core.records import SessionId


class Recorder(FixedMemory):
    """Memory that remembers what was cleared."""

    def __init__(self) -> None:
        self.cleared: list[tuple[int, int]] = []

    def clear(self, offset: int, size: int) -> None:
        """Remember."""
        self.cleared.append((offset, size))


@pytest.mark.parametrize(
    ("clear", "grants", "cleared"),
    [
        ("off", [(1, 10), (2, 20)], []),
        ("users", [(1, 10), (2, 10), (1, 10)], []),
        ("users", [(1, 10), (2, 20), (1, 10)], [1, 2]),
        ("users", [(1, 10), (2, None), (1, 10)], [1, 2]),
        ("sessions", [(1, 10), (1, 10)], []),
        ("sessions", [(1, 10), (2, 10), (1, 10)], [1, 2]),
    ],
)
def test_who_is_a_stranger(clear: Clear, grants: list[tuple[int, int | None]], cleared: list[int]) -> None:
    """From the first stranger on, every grant is cleared."""
    memory = Recorder()
    cleaner = Cleaner(memory, clear)
    for number, (session, uid) in enumerate(grants):
        cleaner.prepare(number * 64, 64, session=SessionId(session), uid=uid)
    assert memory.cleared == [(number * 64, 64) for number in cleared]


@pytest.mark.parametrize(("clear", "cleared"), [("off", []), ("users", [2]), ("sessions", [1, 2])])
def test_whoever_is_granted_a_block_finds_it_cleared(clear: Clear, cleared: list[int]) -> None:
    """The engine's grants go through the cleaner, with the session and its user, and exactly the block is cleared."""
    memory = Recorder()
    world = World(Engine([make_heap(memory=memory, clear=clear)]))
    one, two, remote = world.session(), world.session(), world.session(attached=False)
    assert world.engine.sessions.recognise(two).uid == UID
    blocks = [world.lease(key, size)[0] for key, size in ((one, 64), (two, 100), (remote, 5000))]
    assert memory.cleared == [(blocks[number].offset, blocks[number].size) for number in cleared]
