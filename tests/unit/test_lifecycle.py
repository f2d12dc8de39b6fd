"""How sessions begin and end: every row of their table, what the ledger and the counters have of them, who is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from tests.fixtures.engines import UID, World, make_heap

from slabd_server.core.access import Policy
from slabd_server.core.chores import SLICE
from slabd_server.core.engine import Engine
from slabd_server.core.errors import AccessDenied, InvalidArgument, LedgerFull, TooManySessions, UnknownSession
from slabd_server.core.ledger import Flag, Kind, Record
from slabd_server.core.records import (
    Access,
    BlockState,
    EndCause,
    Ended,
    Notice,
    Peer,
    SessionEndedEvent,
    SessionId,
    SessionKey,
    SessionState,
)
from slabd_server.core.store import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from slabd_server.core.sessions import Session

SECRET = bytes(range(1, 17))


@dataclass(frozen=True)
class Row:
    """A row of the table in `sessions`: what was heard of an attached session, and what it is afterwards."""

    closed: bool
    hung_up: bool
    process_gone: bool
    afterwards: SessionState | None


TABLE = [
    Row(closed=False, hung_up=False, process_gone=True, afterwards=SessionState.ACTIVE),
    Row(closed=False, hung_up=True, process_gone=False, afterwards=SessionState.QUARANTINED),
    Row(closed=False, hung_up=True, process_gone=True, afterwards=None),
    Row(closed=True, hung_up=False, process_gone=False, afterwards=SessionState.QUARANTINED),
    Row(closed=True, hung_up=False, process_gone=True, afterwards=SessionState.QUARANTINED),
    Row(closed=True, hung_up=True, process_gone=False, afterwards=None),
    Row(closed=True, hung_up=True, process_gone=True, afterwards=None),
]


@pytest.mark.parametrize("order", ["close first", "close last"])
@pytest.mark.parametrize("row", TABLE)
def test_the_table_of_states(row: Row, order: str) -> None:
    """Whatever is heard of a session, in whichever order, decides alone what it is and whether its block is free."""
    world = World()
    key = world.session()
    world.lease(key, 64)
    steps: list[tuple[bool, Callable[[], object]]] = [
        (row.closed, lambda: world.end(key, child=True)),
        (row.hung_up, lambda: world.hang_up(key)),
        (row.process_gone, lambda: world.engine.process_gone(key.id, now=world.now)),
    ]
    ended = False
    for heard, step in steps if order == "close first" else reversed(steps):
        if heard and not ended:
            step()
            world.check()
            ended = world.engine.sessions.find(key.id) is None
    session = world.engine.sessions.find(key.id)
    assert (session.state if session else None) is row.afterwards
    assert world.used == (64 if session else 0)


def test_a_session_over_grpc_alone_ends_when_it_closes() -> None:
    """It has nothing mapped, so nobody waits for its hang-up; a hang-up ends it as well."""
    world = World()
    for step, cause in (("close_session", EndCause.CLOSED), ("hang_up", EndCause.CLIENT_DIED)):
        key = world.session(attached=False)
        world.lease(key, 64)
        argument = key if step == "close_session" else key.id
        (ended,) = getattr(world.engine, step)(argument, now=world.now).effects.ended
        assert (ended.cause, world.used) == (cause, 0)


@pytest.mark.parametrize(
    ("peer", "access", "attached", "record"),
    [
        (
            Peer(pid=77, uid=UID),
            Access.READ_WRITE,
            True,
            Record(Kind.SESSION, Flag.ATTACHED, 0, 1, 0, 0, 77, SessionId(1), 0, 100.0, UID + 1),
        ),
        (
            Peer(pid=77, uid=0),
            Access.READ_ONLY,
            True,
            Record(Kind.SESSION, Flag.READ_ONLY | Flag.ATTACHED, 0, 1, 0, 0, 77, SessionId(1), 0, 100.0, 1),
        ),
        (
            Peer(),
            Access.READ_WRITE,
            False,
            Record(Kind.SESSION, Flag.NONE, 0, 1, 0, 0, 0, SessionId(1), 0, 100.0, 0),
        ),
        (
            Peer(),
            Access.READ_ONLY,
            False,
            Record(Kind.SESSION, Flag.READ_ONLY, 0, 1, 0, 0, 0, SessionId(1), 0, 100.0, 0),
        ),
    ],
)
def test_the_ledger_knows_who_a_session_is(peer: Peer, access: Access, record: Record, *, attached: bool) -> None:
    """A session's record has its secret, process, user, access and when it began; its tombstone says who it was."""
    world = World(Engine([make_heap(policy=Policy(uids=frozenset({UID, 0})))]))
    session = world.engine.open_session(
        "", name="x", access=access, peer=peer, attached=attached, secret=SECRET, now=world.now
    )
    low, high = int.from_bytes(SECRET[:8], "little"), int.from_bytes(SECRET[8:], "little")
    assert world.heap.books.ledger.get(session.ledger_slot) == record._replace(a=low, b=high)
    world.engine.evict(session.id, now=world.now)
    world.engine.hang_up(session.id, now=world.now)
    world.engine.process_gone(session.id, now=world.now)
    tombstone = world.heap.books.ledger.get(session.ledger_slot)
    assert (tombstone.kind, tombstone.generation, tombstone.session) == (Kind.FREE, 1, session.id)


def test_names_and_secrets_have_bounds() -> None:
    """A name of 128 bytes is no longer than it may be, letters count as their bytes, and a secret has sixteen."""
    world = World()
    assert found(world, world.session("x" * 128)).name == "x" * 128
    with pytest.raises(InvalidArgument, match="at most 128 bytes, not 129"):
        world.session("x" * 127 + "é")
    for secret in (SECRET[1:], SECRET + b"x"):
        with pytest.raises(InvalidArgument, match=f"16 bytes, not {len(secret)}"):
            world.engine.open_session(
                "", name="", access=Access.READ_WRITE, peer=Peer(), attached=False, secret=secret, now=0.0
            )


class FullStore(MemoryStore):
    """A store on a machine without memory."""

    def grow(self, capacity: int) -> None:
        """Refuse."""
        raise LedgerFull(f"no memory for {capacity} records")


@pytest.mark.parametrize(
    ("spec", "limit", "error"),
    [
        ({"policy": Policy(uids=frozenset({UID + 1}))}, 10, AccessDenied),
        ({}, 0, TooManySessions),
        ({"store": FullStore(0)}, 10, LedgerFull),
    ],
)
def test_a_refused_session_leaves_nothing(spec: dict[str, object], limit: int, error: type[Exception]) -> None:
    """Whatever refuses a session, afterwards neither the table nor the ledger nor a counter has it."""
    world = World(Engine([make_heap(**spec)], session_limit=limit))  # type: ignore[arg-type]
    with pytest.raises(error):
        world.session()
    world.check()
    assert (len(world.engine.sessions), len(world.heap.books.ledger)) == (0, 0)
    assert (world.heap.books.tallies.sessions_started, world.engine.next_deadline(now=0.0)) == (0, None)
    assert world.heap.session_counts[SessionState.ACTIVE] == 0


def test_numbers_of_sessions_are_never_used_again() -> None:
    """A key of a session that has ended does not become another's."""
    world = World()
    first = world.session()
    world.end(first)
    assert (first.id, world.session().id) == (1, 2)


def test_ends_are_counted_and_told() -> None:
    """How sessions ended and what became free by it is counted by cause; who watches the session is told, and why."""
    world = World()
    owner, reader, remote = world.session("owner"), world.session("reader"), world.session("r", attached=False)
    kept, shared, _ = world.lease(owner, 64, 128, 256)
    world.lease(remote, 512)
    world.open(reader, world.share(owner, shared.ref))
    world.open(reader, world.share(owner, kept.ref))
    world.close(reader, kept.ref)
    died = world.die(owner)
    assert died.ended == (Ended(owner.id, "owner", "default", 1001, EndCause.CLIENT_DIED, 3, 320),)
    assert died.notices == (Notice("default", owner.id, SessionEndedEvent(EndCause.CLIENT_DIED)),)
    closed = world.end(reader)
    assert closed.ended == (Ended(reader.id, "reader", "default", 1002, EndCause.CLOSED, 0, 128),)
    expired = world.advance(30.0)
    assert expired.ended == (Ended(remote.id, "r", "default", None, EndCause.EXPIRED, 1, 512),)
    tallies = world.heap.books.tallies
    assert tallies.sessions_started == 3
    assert tallies.sessions_ended == {"client_died": 1, "session_closed": 1, "expired": 1}
    assert tallies.reclaimed_bytes == {"client_died": 320, "session_closed": 128, "expired": 512}
    assert tallies.leases_ended == {"client_died": 3, "expired": 1}
    assert not any(world.heap.session_counts.values())


def test_an_end_leaves_tombstones() -> None:
    """Lease, open and session each leave the number of the session that ended, and no call's."""
    world = World()
    owner, ending = world.session(), world.session()
    (lent,), (mine,) = world.lease(owner, 64, sequence=3), world.lease(ending, 64, sequence=4)
    world.open(ending, world.share(owner, lent.ref))
    hold = world.heap.books.holds[lent.ref.slot][ending.id].ledger_slot
    slots = [mine.ref.slot, hold, found(world, ending).ledger_slot]
    world.end(ending)
    for slot in slots:
        tombstone = world.heap.books.ledger.get(slot)
        assert (tombstone.kind, tombstone.session, tombstone.sequence) == (Kind.FREE, ending.id, 0)


def test_the_first_cause_is_the_cause() -> None:
    """A session that was closed, and whose child is evicted or dies later, has been closed."""
    world = World()
    key = world.session()
    world.end(key, child=True)
    assert world.evict(key).notices == (Notice("default", key.id, SessionEndedEvent(EndCause.CLOSED)),)
    world.engine.process_gone(key.id, now=world.now)
    (ended,) = world.hang_up(key).ended
    assert ended.cause is EndCause.CLOSED
    key = world.session()
    world.hang_up(key)
    world.evict(key)
    (ended,) = world.engine.process_gone(key.id, now=world.now).effects.ended
    assert ended.cause is EndCause.EVICTED


def test_an_evicted_client_is_told() -> None:
    """Who is evicted while it can still be told learns it at once, whether it keeps its blocks or not."""
    world = World()
    attached, remote = world.session(), world.session(attached=False)
    for key in (attached, remote):
        assert world.evict(key).notices == (Notice("default", key.id, SessionEndedEvent(EndCause.EVICTED)),)


def test_keep_alive_lasts_the_heaps_ttl() -> None:
    """A session lives for the TTL of its own heap after its last keep-alive, to the second, and is looked at then."""
    world = World(Engine([make_heap("a", session_ttl=5.0), make_heap("b")]))
    key = world.session(heap="a", attached=False)
    assert world.engine.next_deadline(now=world.now) == 105.0
    world.advance(4.0)
    assert world.engine.keep_alive(key, now=world.now) == 5.0
    assert world.advance(1.0).ended == ()
    assert world.engine.next_deadline(now=world.now) == 109.0
    assert world.advance(3.9).ended == ()
    world.now = 109.0
    assert len(world.advance(0.0).ended) == 1
    assert world.engine.next_deadline(now=world.now) is None


def test_a_session_that_ended_early_has_no_deadline() -> None:
    """The deadline of a session over gRPC alone goes with it."""
    world = World()
    key = world.session(attached=False)
    world.end(key)
    assert world.engine.next_deadline(now=world.now) is None
    with pytest.raises(UnknownSession):
        world.engine.keep_alive(key, now=world.now)


def test_what_only_a_quarantine_keeps_is_counted_at_once() -> None:
    """Owned and opened blocks alike go into quarantine, and each session's state is what its counter says."""
    world = World()
    owner, reader = world.session(), world.session()
    mine, theirs = world.lease(reader, 64)[0], world.lease(owner, 128)[0]
    world.open(reader, world.share(owner, theirs.ref))
    world.release(owner, theirs.ref)
    world.hang_up(reader)
    assert world.heap.books.state_bytes[BlockState.QUARANTINED] == mine.size + theirs.size
    assert world.heap.session_counts == {
        SessionState.ACTIVE: 1,
        SessionState.QUARANTINED: 1,
        SessionState.ENDING: 0,
    }


@pytest.mark.parametrize("how", ["hang_up", "exit", "close", "close child", "die", "evict", "evict remote", "expire"])
def test_what_remains_of_an_end_is_due_at_once(how: str) -> None:
    """However a session with very many blocks ends or goes into quarantine, its next slice is due now."""
    world = World()
    key = world.session(attached=how not in ("evict remote", "expire"))
    world.lease(key, *[64] * 3 * SLICE)
    if how.startswith("close"):
        world.end(key, child=how == "close child")
    elif how == "expire":
        world.advance(30.0)
    elif how == "exit":
        world.hang_up(key)
        world.engine.process_gone(key.id, now=world.now)
    else:
        getattr(world, how.split(maxsplit=1)[0])(key)
    assert world.engine.next_deadline(now=world.now) == world.now


@pytest.mark.parametrize("how", ["die", "hang_up"])
def test_sessions_end_side_by_side(how: str) -> None:
    """Two sessions with very many blocks do not get in each other's way."""
    world = World()
    keys = [world.session(), world.session()]
    for key in keys:
        world.lease(key, *[64] * 3 * SLICE)
    for key in keys:
        getattr(world, how)(key)
    while world.engine.next_deadline(now=world.now) is not None:
        world.advance(0.001)
    quarantined = world.heap.books.state_bytes[BlockState.QUARANTINED]
    assert (world.used, quarantined) == ((0, 0) if how == "die" else (6 * SLICE * 64, 6 * SLICE * 64))


def test_the_policy_is_asked_for_this_access_to_this_heap() -> None:
    """Who may only read is admitted for reading, and else refused in the heap's name."""
    world = World(Engine([make_heap("h", policy=Policy(uids=frozenset(), read_only_uids=frozenset({UID})))]))
    with pytest.raises(AccessDenied, match="heap h admits uid 1000"):
        world.session()
    assert found(world, world.session(access=Access.READ_ONLY)).access is Access.READ_ONLY


def test_the_generation_of_a_sessions_slot_rises() -> None:
    """A slot that recorded one session after the other has counted them all, taken or free."""
    world = World()
    world.session()
    generations = []
    for _ in range(3):
        key = world.session()
        slot = found(world, key).ledger_slot
        generations.append(world.heap.books.ledger.get(slot).generation)
        world.end(key)
        generations.append(world.heap.books.ledger.get(slot).generation)
    assert generations == [1, 1, 2, 2, 3, 3]


def test_a_quarantine_begins_once() -> None:
    """Whatever else is heard of a session in quarantine, its blocks are not gone through again."""
    world = World()
    key = world.session()
    world.lease(key, *[64] * 2 * SLICE)
    world.hang_up(key)
    while world.engine.next_deadline(now=world.now) is not None:
        world.advance(0.001)
    world.evict(key)
    assert world.engine.next_deadline(now=world.now) is None
    assert world.hang_up(key).ended == ()
    assert world.engine.next_deadline(now=world.now) is None
    assert found(world, key).state is SessionState.QUARANTINED


def found(world: World, key: SessionKey) -> Session:
    """Return a session that is there."""
    return world.engine.sessions.recognise(key)


def test_sessions_say_what_they_are() -> None:
    """What was said when it was opened is kept, and what was not heard yet is not assumed."""
    world = World()
    key = world.session("x", access=Access.READ_ONLY)
    session = found(world, key)
    assert (session.name, session.access, session.attached, session.opened_at) == ("x", Access.READ_ONLY, True, 100.0)
    assert (session.closed, session.hung_up, session.process_gone, session.cause) == (False, False, False, None)
    assert (session.expires_at, session.quarantined) == (None, False)
    assert repr(session) == "<Session 1 'x' active: 0 leases, 0 opens>"
    assert found(world, world.session(attached=False)).expires_at == 130.0
