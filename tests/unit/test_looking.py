"""A scrape looks at lanes in steps, so that it holds nobody up for all of them."""

from __future__ import annotations

from tests.fixtures.engines import UID, make_heap
from tests.fixtures.registries import full_registry

from slabd_server.claims import SLICE
from slabd_server.core.engine import Engine
from slabd_server.core.records import Access, Peer


def engine_with(sessions: int) -> Engine:
    """Return an engine with so many sessions."""
    engine = Engine([make_heap()])
    for number in range(sessions):
        engine.open_session(
            "",
            name="",
            access=Access.READ_WRITE,
            peer=Peer(pid=number, uid=UID),
            attached=True,
            secret=number.to_bytes(16, "little"),
            now=0.0,
        )
    return engine


async def test_lanes_are_looked_at_in_steps() -> None:
    """Once for what was posted, and once for what is said."""
    with full_registry(engine_with(3 * SLICE)) as (_, dispatcher):
        assert len(list(dispatcher.before_looking())) == 2 * 3
