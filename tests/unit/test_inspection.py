"""What operators see: every figure of it, and that `check` finds what sessions, handles and queues contradict."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from tests.fixtures.engines import KIB, MIB, UID, World, make_heap

from slabd_server.core import inspection
from slabd_server.core.engine import Engine
from slabd_server.core.errors import UnknownHeap
from slabd_server.core.records import Access, BlockState, Leased, SessionId, SessionKey, SessionState, SlotId, Ticket
from slabd_server.core.stats import Checked, LeaseInfo, SessionInfo

if TYPE_CHECKING:
    from collections.abc import Callable

    from slabd_server.core.records import Block
    from slabd_server.core.served import ServedHeap
    from slabd_server.core.sessions import Session


@dataclass
class Scene:
    """A world in which one has leased and shared, one has opened and waits, and one is there over gRPC alone."""

    world: World = field(default_factory=World)

    def __post_init__(self) -> None:
        """Let it all happen."""
        owner, reader = self.world.session("owner"), self.world.session("reader")
        self.remote = self.find(self.world.session("remote", attached=False))
        self.block, self.orphan = self.world.lease(owner, 64, 64)
        self.world.share(owner, self.orphan.ref)
        self.world.release(owner, self.orphan.ref)
        handle = self.world.share(owner, self.block.ref, opens=2)
        self.world.open(reader, handle)
        self.world.wait(reader, MIB)
        self.world.wait(reader, MIB)
        self.owner, self.reader = self.find(owner), self.find(reader)

    def find(self, key: SessionKey) -> Session:
        """Return the session of a key."""
        return self.world.engine.sessions.recognise(key)

    @property
    def heap(self) -> ServedHeap:
        """The heap."""
        return self.world.heap


def forget_a_deadline(scene: Scene) -> None:
    """Let a promise never expire."""
    scene.heap.shares._sharers.pop(scene.block.ref.slot)


def promise_nothing_till_a_deadline(scene: Scene) -> None:
    """Let a deadline belong to no promise."""
    scene.heap.shares._sharers[SlotId(99)] = (scene.owner.id, 1, 0.0)


def miscount_what_is_wanted(scene: Scene) -> None:
    """Let those who wait want another byte."""
    scene.heap.waiters.wanted_bytes += 1


def forget_a_ticket(scene: Scene) -> None:
    """Let a session not know that it waits."""
    scene.reader.tickets.clear()


def overtake(scene: Scene) -> None:
    """Let the second in the queue be the first."""
    scene.heap.waiters._queue.move_to_end(Ticket(1))


def miscount_a_chain(scene: Scene) -> None:
    """Let a session's chain be of another length."""
    scene.owner.owned._length += 1


def give_a_lease_to_another(scene: Scene) -> None:
    """Let the ledger name another owner than the chain."""
    ledger = scene.heap.books.ledger
    record = ledger.get(scene.block.ref.slot)
    ledger.update(scene.block.ref.slot, record._replace(session=scene.reader.id))


def miscount_owned_bytes(scene: Scene) -> None:
    """Let a session own a byte more than its blocks have."""
    scene.owner.owned_bytes += 1


def hold_what_is_not_open(scene: Scene) -> None:
    """Let a session hold a block that the books have not open."""
    scene.owner.held[SlotId(99)] = None


def hold_what_others_hold(scene: Scene) -> None:
    """Let a session hold a block that only another has open."""
    scene.owner.held[scene.block.ref.slot] = None


def wait_without_being_active(scene: Scene) -> None:
    """Let a session wait that cannot be talked to."""
    scene.reader.state = SessionState.QUARANTINED


def quarantine_nobody(scene: Scene) -> None:
    """Let a session be in quarantine that has nothing mapped."""
    scene.remote.state = SessionState.QUARANTINED


def miscount_holders(scene: Scene) -> None:
    """Let one more be counted who owns something."""
    scene.heap.books.holders._count += 1


def miscount_leases(scene: Scene) -> None:
    """Let one more lease be counted."""
    scene.heap.books.leases += 1


def drop_from_the_chain(scene: Scene) -> None:
    """Let a lease be in nobody's chain."""
    scene.owner.owned.remove(scene.block.ref.slot)
    scene.owner.owned_bytes = 0
    scene.heap.books.holders.rank(scene.owner)
    scene.heap.books.leases = 0


def forget_an_open(scene: Scene) -> None:
    """Let a session not know what it has open."""
    scene.reader.held.clear()


def forget_a_session(scene: Scene) -> None:
    """Let the ledger not know a session."""
    scene.heap.books.ledger.drop(scene.remote.ledger_slot, 1, session=scene.remote.id, sequence=0)


def own_an_orphan(scene: Scene) -> None:
    """Let a block that its owner still has be among those without one."""
    drop_from_the_chain(scene)
    scene.heap.books.orphans.append(scene.block.ref.slot)


def exchange_an_orphan(scene: Scene) -> None:
    """Let a block that its owner still has take the place of one without."""
    own_an_orphan(scene)
    scene.heap.books.orphans.remove(scene.orphan.ref.slot)


def orphan_what_is_not_granted(scene: Scene) -> None:
    """Let a slot that is not granted take the place of a block without an owner."""
    scene.heap.books.orphans.remove(scene.orphan.ref.slot)
    scene.heap.books.orphans.append(SlotId(99))


def mistake_a_session(scene: Scene) -> None:
    """Let a session's record be another's."""
    ledger, slot = scene.heap.books.ledger, scene.remote.ledger_slot
    ledger.update(slot, ledger.get(slot)._replace(session=SessionId(99)))


def quarantine_a_stranger(scene: Scene) -> None:
    """Let the books have a session in quarantine that does not exist."""
    scene.heap.books._quarantined.add(SessionId(99))


def quarantine_in_the_books_alone(scene: Scene) -> None:
    """Let the books have a session in quarantine that is active."""
    scene.heap.books._quarantined.add(scene.owner.id)


def quarantine_without_the_books(scene: Scene) -> None:
    """Let the books not know that a session is in quarantine."""
    scene.world.engine.hang_up(scene.owner.id, now=scene.world.now)
    scene.heap.books._quarantined.clear()


def lag_for_ever(scene: Scene) -> None:
    """Let a session's states lag behind, and nothing bring them up to date."""
    scene.world.engine.hang_up(scene.owner.id, now=scene.world.now)
    scene.heap.books._lagging.add(scene.owner.id)


def end_for_ever(scene: Scene) -> None:
    """Let a session be about to end, and nothing bring it to an end."""
    scene.remote.state = SessionState.ENDING
    scene.heap.session_counts[SessionState.ACTIVE] -= 1
    scene.heap.session_counts[SessionState.ENDING] += 1


def wait_with_a_stranger(scene: Scene) -> None:
    """Let a session have a ticket that is not in the queue."""
    scene.owner.tickets[Ticket(5)] = None


def call_without_waiting(scene: Scene) -> None:
    """Let a call be under way that does not wait."""
    scene.owner.in_flight[7] = Ticket(5)


def forget_a_call(scene: Scene) -> None:
    """Let a session not know which call it waits for."""
    scene.world.wait(SessionKey(scene.reader.id, scene.reader.secret), MIB, sequence=7)
    scene.reader.in_flight.clear()


def misremember(scene: Scene) -> None:
    """Let a session remember a byte more of answers than it has."""
    scene.owner.remember(1, "x", Leased(()))
    scene.owner._remembered_bytes += 1


def set_no_deadline(scene: Scene) -> None:
    """Let no promise ever fall due."""
    scene.heap.shares.deadlines._heap.clear()


def set_another_deadline(scene: Scene) -> None:
    """Let a promise end at another time than it falls due."""
    sharer, generation, deadline = scene.heap.shares._sharers[scene.block.ref.slot]
    scene.heap.shares._sharers[scene.block.ref.slot] = (sharer, generation, deadline + 1)


def promise_another_generation(scene: Scene) -> None:
    """Let a promise be of the slot's next block."""
    sharer, generation, deadline = scene.heap.shares._sharers[scene.block.ref.slot]
    scene.heap.shares._sharers[scene.block.ref.slot] = (sharer, generation + 1, deadline)


@pytest.mark.parametrize("state", SessionState)
def test_check_sees_miscounted_states(state: SessionState) -> None:
    """The number of sessions in each state is compared with the sessions there are."""
    scene = Scene()
    scene.heap.session_counts[state] += 1
    number = scene.heap.session_counts[state]
    assert inspection.check(scene.world.engine).problems == (
        f"heap default: {number} sessions counted as {state.value}",
    )


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (forget_a_deadline, "have a promise without a deadline, or the reverse"),
        (promise_nothing_till_a_deadline, "slots {99} have a promise without a deadline, or the reverse"),
        (miscount_what_is_wanted, "waiters want 2097152 bytes, 2097153 counted"),
        (forget_a_ticket, "ticket 1 waits, session 2 does not know"),
        (overtake, "the queue is out of order: [2, 1]"),
        (miscount_a_chain, "a chain of 2 slots"),
        (give_a_lease_to_another, "in its chain, the ledger says 2"),
        (miscount_owned_bytes, "session 1 owns 64 bytes, its counter says 65"),
        (hold_what_is_not_open, "session 1 holds slot 99, the books do not know"),
        (hold_what_others_hold, "session 1 holds slot 3, the books do not know"),
        (wait_without_being_active, "session 2 waits although it is quarantined"),
        (quarantine_nobody, "session 3 is in quarantine but is not attached"),
        (miscount_holders, "2 holders counted, 1 accounts own something"),
        (miscount_leases, "1 leases in chains, 2 counted"),
        (drop_from_the_chain, "0 leases in chains, 0 counted; with 1 orphans 2 blocks"),
        (forget_an_open, "0 opens known to sessions, the books have another number"),
        (forget_a_session, "2 sessions in the ledger, 3 in the table"),
        (own_an_orphan, "blocks without an owner: 1 found, 2 counted"),
        (exchange_an_orphan, "slot 3 is an orphan and owned by session 1"),
        (orphan_what_is_not_granted, "slot 99 is an orphan and not granted"),
        (mistake_a_session, "slot 2 records session 3, the ledger says it is a SESSION of session 99"),
        (quarantine_a_stranger, "sessions [99] are in quarantine for the books, and do not exist"),
        (quarantine_in_the_books_alone, "session 1 is active, the books have it in quarantine"),
        (quarantine_without_the_books, "session 1 is quarantined, the books have it in no quarantine"),
        (lag_for_ever, "session 1 is quarantined and lags, and no chore goes on with it"),
        (end_for_ever, "session 3 is ending, and no chore goes on with it"),
        (wait_with_a_stranger, "session 1 has ticket 5, which does not wait"),
        (call_without_waiting, "call 7 of session 1 has ticket 5, which it does not wait with"),
        (forget_a_call, "ticket 3 waits for call 7, session 2 has it as that of ticket None"),
        (misremember, "session 1 remembers 300 bytes of answers, its counter says 301"),
        (set_no_deadline, "the promise of slot 4 ends at 160.0, but no deadline is set"),
        (set_another_deadline, "the promise of slot 3 ends at 161.0, but no deadline is set"),
        (promise_another_generation, "slot 3 is at generation 1, its promise is for 2"),
    ],
)
def test_check_sees_what_is_wrong(spoil: Callable[[Scene], None], found: str) -> None:
    """Whichever invariant is broken between the books, the sessions, the handles and the queue, `check` says so."""
    scene = Scene()
    assert inspection.check(scene.world.engine) == Checked(2)
    spoil(scene)
    (problem,) = inspection.check(scene.world.engine).problems
    assert problem.startswith("heap default: ")
    assert found in problem


def test_check_goes_on_behind_a_broken_heap() -> None:
    """One heap's trouble is reported with its name, and the blocks of all others are counted."""
    world = World(Engine([make_heap("a"), make_heap("b"), make_heap("c")]))
    for heap in "abc":
        world.lease(world.session(heap=heap), 64, 64)
    world.engine.heaps["b"].books.blocks += 1
    found = inspection.check(world.engine)
    assert found.blocks == 4
    assert [problem.split(":")[0] for problem in found.problems] == ["heap b"]


def grants(world: World, key: SessionKey, *sizes: int) -> list[Block]:
    """Lease one block after the other, a second between them."""
    blocks: list[Block] = []
    for size in sizes:
        blocks += world.lease(key, size)
        world.now += 1
    return blocks


def test_leases_of_all_heaps_are_listed_by_age() -> None:
    """The oldest come first, whoever has them and wherever they are, and no more than asked for."""
    world = World(Engine([make_heap("a"), make_heap("b")]))
    first, second, other = world.session(heap="a"), world.session(heap="a"), world.session(heap="b")
    (one,) = grants(world, first, 64)
    (two,) = grants(world, other, 64)
    (three,) = grants(world, second, 64)
    (four,) = grants(world, first, 64)

    def listed(heap: str, session: int, limit: int) -> tuple[list[tuple[str, Block, float]], int]:
        found, total = inspection.leases(world.engine, heap, session, limit, world.now)
        return [(info.heap, info.block, info.age) for info in found], total

    a1, b2, a3, a4 = ("a", one, 4.0), ("b", two, 3.0), ("a", three, 2.0), ("a", four, 1.0)
    assert listed("", 0, 10) == ([a1, b2, a3, a4], 4)
    assert listed("", 0, 3) == ([a1, b2, a3], 4)
    assert listed("a", 0, 2) == ([a1, a3], 3)
    assert listed("b", 0, 10) == ([b2], 1)
    assert listed("", first.id, 10) == ([a1, a4], 2)
    assert listed("", SessionId(99), 10) == ([], 0)


def test_what_nobody_owns_is_in_no_sessions_list() -> None:
    """Blocks without an owner are listed with all of a heap, and not with one session's."""
    scene = Scene()
    engine, now = scene.world.engine, scene.world.now
    found, total = inspection.leases(engine, "default", 0, 10, now)
    assert ([info.block for info in found], total) == ([scene.block, scene.orphan], 2)
    found, total = inspection.leases(engine, "default", scene.owner.id, 10, now)
    assert ([info.block for info in found], total) == ([scene.block], 1)


def test_leases_without_an_owner_are_listed_by_age() -> None:
    """The oldest of them comes first, though the chain they are in has them as they lost their owners."""
    world = World()
    key = world.session()
    old, new = grants(world, key, 64, 64)
    for block in (new, old):
        world.share(key, block.ref)
        world.release(key, block.ref)
    found, total = inspection.leases(world.engine, "", 0, 1, world.now)
    assert ([info.block for info in found], total) == ([old], 2)


def test_lists_of_unknown_heaps_are_refused() -> None:
    """Whoever misspells a heap is told which there are, and gets no empty list."""
    world = World(Engine([make_heap("a"), make_heap("b")]))
    with pytest.raises(UnknownHeap, match="no heap 'c'; there are a, b"):
        inspection.leases(world.engine, "c", 0, 10, world.now)
    with pytest.raises(UnknownHeap, match="no heap 'c'; there are a, b"):
        inspection.sessions(world.engine, "c", world.now)


def test_a_session_is_shown_whole() -> None:
    """Its number, name, process, user, access and state, what it has, and how old it and its oldest lease are."""
    scene = Scene()
    scene.world.now += 5
    owner, reader = (
        next(info for info in inspection.sessions(scene.world.engine, "", scene.world.now + 1) if info.id == each.id)
        for each in (scene.owner, scene.reader)
    )
    assert owner == SessionInfo(
        id=scene.owner.id,
        name="owner",
        heap="default",
        pid=1001,
        uid=UID,
        access=Access.READ_WRITE,
        attached=True,
        state=SessionState.ACTIVE,
        age=6.0,
        leases=1,
        opens=0,
        used_bytes=64,
        cached_bytes=0,
        waiters=0,
        oldest_lease_age=6.0,
    )
    assert (reader.leases, reader.opens, reader.used_bytes, reader.waiters) == (0, 1, 0, 2)
    assert reader.oldest_lease_age is None


def test_a_lease_is_shown_whole() -> None:
    """Its block, heap, state, owner, purpose, age, what is promised of it and who has it open."""
    scene = Scene()
    (info, orphan), _ = inspection.leases(scene.world.engine, "", 0, 10, scene.world.now + 1)
    assert info == LeaseInfo(
        block=scene.block,
        heap="default",
        state=BlockState.SHARED,
        session=scene.owner.id,
        pid=1001,
        session_name="owner",
        label="",
        call_site="",
        age=1.0,
        pending_opens=1,
        opened_by=(scene.reader.id,),
    )
    assert (orphan.session, orphan.pid, orphan.session_name, orphan.pending_opens) == (None, None, "", 1)


def test_a_heap_is_shown_with_its_classes() -> None:
    """Beside the statistics there are the size classes, as the allocator counts them, and the number of free ranges."""
    scene = Scene()
    info = inspection.heap_info(scene.heap, scene.world.now)
    allocator = scene.heap.books.allocator
    assert info.stats == inspection.heap_stats(scene.heap, scene.world.now)
    assert [(each.size, each.slabs, each.used_blocks, each.free_blocks) for each in info.size_classes] == [
        (each.size, each.slabs, each.used_blocks, each.free_blocks) for each in allocator.classes()
    ]
    assert [each.used_blocks for each in info.size_classes if each.size == 64] == [2]
    assert info.free_ranges == allocator.free_ranges == 1


def test_sessions_with_as_much_are_listed_as_they_came() -> None:
    """Among equals the first comes first; a heap's list has only its own."""
    world = World(Engine([make_heap("a"), make_heap("b")]))
    for name, heap, size in [("x", "a", 64), ("y", "b", 128), ("z", "a", 64)]:
        world.lease(world.session(name, heap=heap), size)
    assert [info.name for info in inspection.sessions(world.engine, "", world.now)] == ["y", "x", "z"]
    assert [info.name for info in inspection.sessions(world.engine, "a", world.now)] == ["x", "z"]


def test_a_heaps_figures() -> None:
    """What has happened to a heap is in its statistics, under the right names."""
    scene = Scene()
    scene.world.now += 5
    stats = inspection.heap_stats(scene.heap, scene.world.now)
    assert (stats.total_bytes, stats.used_bytes, stats.available_bytes) == (MIB, 128, MIB - 128)
    assert (stats.leased_bytes, stats.shared_bytes, stats.cached_bytes, stats.quarantined_bytes) == (0, 128, 0, 0)
    assert (stats.requested_bytes, stats.used_peak_bytes, stats.leases, stats.blocks) == (128, 128, 1, 2)
    assert (stats.free_bytes + stats.slab_free_bytes, stats.largest_free_block_bytes) == (MIB - 128, MIB - 4 * KIB)
    assert (stats.waiters, stats.oldest_waiter_age, stats.sessions_started) == (2, 5.0, 3)
    assert (stats.lease_requests, stats.leases_granted, stats.leases_ended) == (3, 2, {"released": 1})
    assert (stats.shares, stats.opens_ok, stats.opens_stale, stats.handles_expired) == (2, 1, 0, 0)
    assert stats.sessions == {"active": 3, "quarantined": 0, "ending": 0}
