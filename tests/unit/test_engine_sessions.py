"""Sessions: how they begin, how they end, and when what they held is free again."""

from __future__ import annotations

import pytest
from tests.fixtures.engines import MIB, UID, World, make_heap

from slabd_server.core import inspection
from slabd_server.core.access import Policy
from slabd_server.core.engine import Engine
from slabd_server.core.errors import (
    AccessDenied,
    InvalidArgument,
    NoSuchSession,
    OutOfMemory,
    TooManySessions,
    UnknownBlock,
    UnknownHeap,
    UnknownSession,
    WrongSecret,
)
from slabd_server.core.records import Access, BlockState, EndCause, Peer, SessionKey, SessionState


def test_closing_frees_everything() -> None:
    """A closed session's leases and opens end, and its key is worth nothing any more."""
    world = World()
    key, other = world.session(), world.session()
    (block,) = world.lease(key, 64)
    (foreign,) = world.lease(other, 64)
    world.open(key, world.share(other, foreign.ref))
    (ended,) = world.end(key).ended
    assert (ended.cause, ended.leases, ended.reclaimed_bytes) == (EndCause.CLOSED, 1, block.size)
    with pytest.raises(UnknownSession):
        world.lease(key, 64)


def test_a_hung_up_process_that_lives_is_quarantined() -> None:
    """What a living process may still touch is not re-issued before the process has exited."""
    world = World()
    key = world.session()
    (block,) = world.lease(key, 64)
    world.hang_up(key)
    assert world.heap.books.state(block.ref.slot) is BlockState.QUARANTINED
    assert world.used == block.size
    with pytest.raises(UnknownSession):
        world.lease(key, 64)
    (ended,) = world.engine.process_gone(key.id, now=world.now).effects.ended
    world.check()
    assert (ended.cause, ended.reclaimed_bytes, world.used) == (EndCause.CLIENT_DIED, block.size, 0)


def test_a_forked_child_keeps_the_session_alive() -> None:
    """While a child holds the connection the session goes on, though its process is gone."""
    world = World()
    key = world.session()
    world.lease(key, 64)
    world.engine.process_gone(key.id, now=world.now)
    world.check()
    assert world.used == 64
    world.lease(key, 64)
    (ended,) = world.hang_up(key).ended
    assert ended.leases == 2
    assert world.used == 0


def test_opens_of_a_quarantined_session_keep_the_block() -> None:
    """A block that only a quarantined reader has open is in quarantine; with a living reader it is shared."""
    world = World()
    owner, hung, alive = world.session(), world.session(), world.session()
    (block,) = world.lease(owner, 64)
    handle = world.share(owner, block.ref, opens=2)
    world.open(hung, handle)
    world.open(alive, handle)
    world.release(owner, block.ref)
    world.hang_up(hung)
    assert world.heap.books.state(block.ref.slot) is BlockState.SHARED
    world.close(alive, block.ref)
    assert world.heap.books.state(block.ref.slot) is BlockState.QUARANTINED
    world.engine.process_gone(hung.id, now=world.now)
    world.check()
    assert world.used == 0


def test_what_a_child_may_touch_outlives_the_closing() -> None:
    """A session that is closed while a forked child holds its connection keeps its blocks till the child lets go."""
    world = World()
    key, other = world.session(), world.session()
    (block,) = world.lease(key, MIB)
    assert not world.end(key, child=True).ended
    assert world.heap.books.state(block.ref.slot) is BlockState.QUARANTINED
    with pytest.raises(UnknownSession):
        world.lease(key, 64)
    with pytest.raises(OutOfMemory, match="in quarantine"):
        world.lease(other, 64)
    world.engine.process_gone(key.id, now=world.now)
    assert world.used == block.size
    assert not world.end(key, child=True).ended  # closing twice changes nothing
    (ended,) = world.hang_up(key).ended
    assert (ended.cause, ended.reclaimed_bytes, world.used) == (EndCause.CLOSED, block.size, 0)


def test_a_closed_session_does_not_wait_for_its_process() -> None:
    """Who has hung up and closed will not touch its blocks again, so they are free while the process lives on."""
    world = World()
    key = world.session()
    world.lease(key, 64)
    world.hang_up(key)
    assert world.used == 64
    with pytest.raises(WrongSecret):
        world.engine.close_session(SessionKey(key.id, bytes(16)), now=world.now)
    (ended,) = world.engine.close_session(key, now=world.now).effects.ended
    assert (ended.cause, world.used) == (EndCause.CLOSED, 0)


def test_an_evicted_session_that_closes_is_still_counted_as_evicted() -> None:
    """The operator was first; what the client says afterwards only lets its blocks go sooner."""
    world = World()
    key = world.session()
    world.lease(key, 64)
    world.evict(key)
    (ended,) = world.end(key).ended
    assert (ended.cause, world.used) == (EndCause.EVICTED, 0)


def test_late_news_of_an_ended_session_is_no_error() -> None:
    """The kernel may report the exit and the hang-up of a session that was closed before."""
    world = World()
    key = world.session()
    world.end(key)
    world.hang_up(key)
    world.engine.process_gone(key.id, now=world.now)
    world.check()


def test_sessions_over_grpc_alone_live_by_keep_alive() -> None:
    """Without a keep-alive a session that is not attached expires; with one it lives on."""
    world = World()
    key = world.session(attached=False)
    world.lease(key, 64)
    world.advance(20.0)
    assert world.engine.keep_alive(key, now=world.now) == 30.0
    world.advance(20.0)
    assert world.used == 64
    (ended,) = world.advance(10.0).ended
    assert (ended.cause, world.used) == (EndCause.EXPIRED, 0)


def test_attached_sessions_need_no_keep_alive() -> None:
    """A stopped process is not a dead one: an attached session never expires."""
    world = World()
    key = world.session()
    assert world.engine.keep_alive(key, now=world.now) is None
    world.lease(key, 64)
    world.advance(1e6)
    assert world.used == 64


def test_an_evicted_process_keeps_its_blocks_in_quarantine() -> None:
    """An operator ends a session at once; the memory comes back when the process has let go of it."""
    world = World()
    key = world.session()
    (block,) = world.lease(key, 64)
    assert not world.evict(key).ended
    assert world.heap.books.state_bytes[BlockState.QUARANTINED] == block.size
    with pytest.raises(UnknownSession):
        world.lease(key, 64)
    (ended,) = world.die(key).ended
    assert (ended.cause, world.used) == (EndCause.EVICTED, 0)


def test_an_evicted_remote_session_is_gone() -> None:
    """A session that has nothing mapped ends at once."""
    world = World()
    key = world.session(attached=False)
    world.lease(key, 64)
    (ended,) = world.evict(key).ended
    assert (ended.reclaimed_bytes, ended.cause, world.used) == (64, EndCause.EVICTED, 0)


def test_evicting_nobody_is_an_error() -> None:
    """There must be such a session."""
    with pytest.raises(NoSuchSession, match="no session 7"):
        World().engine.evict(7, now=0.0)


def test_sessions_are_limited() -> None:
    """The daemon admits so many sessions, and another one when one has ended."""
    world = World(Engine([make_heap()], session_limit=1))
    key = world.session()
    with pytest.raises(TooManySessions, match="1 sessions"):
        world.session()
    world.end(key)
    world.session()


def test_unknown_heaps_and_long_names_are_refused() -> None:
    """A session names a heap that exists, and itself in few words."""
    world = World()
    with pytest.raises(UnknownHeap, match="there are default"):
        world.session(heap="other")
    with pytest.raises(InvalidArgument, match="128 bytes"):
        world.session("x" * 129)
    assert len(world.engine.sessions) == 0


@pytest.mark.parametrize(
    ("peer", "access", "admitted"),
    [
        (Peer(pid=1, uid=UID), Access.READ_WRITE, True),
        (Peer(pid=1, uid=5, gids=frozenset({50, 7})), Access.READ_WRITE, True),
        (Peer(pid=1, uid=6), Access.READ_WRITE, False),
        (Peer(pid=1, uid=6), Access.READ_ONLY, True),
        (Peer(pid=1, uid=8, gids=frozenset({60})), Access.READ_ONLY, True),
        (Peer(pid=1, uid=8), Access.READ_ONLY, False),
        (Peer(), Access.READ_ONLY, True),
        (Peer(), Access.READ_WRITE, False),
    ],
)
def test_a_heap_admits_whom_its_policy_names(peer: Peer, access: Access, *, admitted: bool) -> None:
    """Users and groups are admitted as the policy says, and no further than it says."""
    policy = Policy(
        uids=frozenset({UID}),
        gids=frozenset({7}),
        read_only_uids=frozenset({6}),
        read_only_gids=frozenset({60}),
        remote=Access.READ_ONLY,
    )
    if admitted:
        policy.admit("h", peer, access)
    else:
        with pytest.raises(AccessDenied, match="heap h"):
            policy.admit("h", peer, access)


def test_operators_see_who_holds_what() -> None:
    """Sessions come with the largest first, leases with the oldest first."""
    world = World()
    small, large = world.session("small"), world.session("large")
    (first,) = world.lease(small, 64)
    world.now += 1
    (second,) = world.lease(large, 4096)
    handle = world.share(large, second.ref)
    world.open(small, handle)
    sessions = inspection.sessions(world.engine, "", world.now)
    assert [info.name for info in sessions] == ["large", "small"]
    assert (sessions[1].opens, sessions[1].oldest_lease_age) == (1, 1.0)
    leases, total = inspection.leases(world.engine, "", 0, 10, world.now)
    assert [info.block.ref for info in leases] == [first.ref, second.ref]
    assert (total, leases[1].opened_by, leases[1].state) == (2, (small.id,), BlockState.SHARED)
    only, total = inspection.leases(world.engine, "default", small.id, 10, world.now)
    assert (len(only), total) == (1, 1)
    with pytest.raises(UnknownHeap):
        inspection.sessions(world.engine, "nope", world.now)


def test_blocks_without_an_owner_are_listed_too() -> None:
    """A block that only a handle keeps is listed with no session."""
    world = World()
    key = world.session()
    (block,) = world.lease(key, 64)
    world.share(key, block.ref)
    world.release(key, block.ref)
    ((info,), total) = inspection.leases(world.engine, "", 0, 10, world.now)
    assert (info.session, info.pending_opens, total) == (None, 1, 1)


def test_session_counts_follow_states() -> None:
    """The numbers by state are those of the sessions there are."""
    world = World()
    key, _ = world.session(), world.session()
    world.hang_up(key)
    assert world.heap.session_counts == {
        SessionState.ACTIVE: 1,
        SessionState.QUARANTINED: 1,
        SessionState.ENDING: 0,
    }


def test_a_block_is_located_only_for_those_who_have_it() -> None:
    """Bytes are read by owners and openers, and written by owners."""
    world = World()
    owner, reader, stranger = world.session(), world.session(), world.session()
    (block,) = world.lease(owner, 64)
    world.open(reader, world.share(owner, block.ref))
    assert world.engine.locate(owner, block.ref, writable=True) == block
    assert world.engine.locate(reader, block.ref, writable=False) == block
    with pytest.raises(UnknownBlock):
        world.engine.locate(reader, block.ref, writable=True)
    with pytest.raises(UnknownBlock):
        world.engine.locate(stranger, block.ref, writable=False)
