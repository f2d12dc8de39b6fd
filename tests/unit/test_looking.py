"""A scrape looks at lanes in steps, so that it holds nobody up for all of them."""

from __future__ import annotations

from tests.fixtures.engines import World
from tests.fixtures.registries import full_registry

from slabd_server.claims import SLICE


async def test_lanes_are_looked_at_in_steps() -> None:
    """Once for what was posted, and once for what is said."""
    world = World()
    for _ in range(3 * SLICE):
        world.session()
    with full_registry(world.engine) as (_, dispatcher):
        assert len(list(dispatcher.before_looking())) == 2 * 3
