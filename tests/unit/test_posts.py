"""Posts: what a lane may say, what cannot be true, and when a block that was shared is free."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from tests.fixtures.engines import MIB, World, make_heap

from slabd_server.core.engine import Engine
from slabd_server.core.errors import (
    Draining,
    InvalidAlignment,
    InvalidSize,
    InvariantBroken,
    LedgerFull,
    OutOfMemory,
    TooLarge,
)
from slabd_server.core.gates import NoGates
from slabd_server.core.ledger import Flag, Kind
from slabd_server.core.posts import LaneViolation, Posts
from slabd_server.core.records import Access, Block, BlockRef, BlockState, LeaseItem, SessionKey, ShareItem, SlotId

if TYPE_CHECKING:
    from slabd_server.core.sessions import Session


@dataclass
class NotedGates:
    """Gates that say what they are, slot by slot."""

    watched: bool = True
    now: dict[tuple[int, int], str] = field(default_factory=dict)

    def open(self, slot: int, generation: int) -> None:
        """Note it."""
        self.now[slot, generation] = "open"

    def shut(self, slot: int, generation: int) -> None:
        """Note it."""
        self.now[slot, generation] = "shut"

    def close(self, slot: int, generation: int) -> None:
        """Note it."""
        self.now[slot, generation] = "closed"

    def __getitem__(self, ref: BlockRef) -> str:
        return self.now[ref.slot, ref.generation]


class Posting(World):
    """An engine, its posts and its gates."""

    def __init__(self, size: int = MIB) -> None:
        self.gates = NotedGates()
        super().__init__(Engine([make_heap(size=size, gates=self.gates)]))

    @property
    def posts(self) -> Posts:
        """What does the posts."""
        return self.engine.posts

    def who(self, key: SessionKey) -> Session:
        """Return a session."""
        return self.engine.sessions.recognise(key)

    def grant(self, key: SessionKey, size: int = 64) -> Block:
        """Lease a block over the lane."""
        block = self.posts.lease(self.who(key), LeaseItem(size, 1), sequence=1, now=self.now)
        self.check()
        return block

    def give_back(self, key: SessionKey, ref: BlockRef) -> None:
        """Post RETURN."""
        self.posts.give_back(self.who(key), ref, sequence=2, now=self.now)
        self.check()

    def promise(self, key: SessionKey, ref: BlockRef, opens: int = 1, ttl: float | None = None, size: int = 64) -> None:
        """Post SHARE."""
        self.posts.share(self.who(key), ShareItem(ref, opens, ttl), size, sequence=3, now=self.now)
        self.check()

    def join(self, key: SessionKey, ref: BlockRef) -> None:
        """Post OPEN."""
        self.posts.open(self.who(key), ref, sequence=4, now=self.now)
        self.check()

    def leave(self, key: SessionKey, ref: BlockRef) -> None:
        """Post CLOSE."""
        self.posts.close(self.who(key), ref, sequence=5)
        self.check()

    def sweep(self) -> None:
        """Say that nobody is on the way."""
        self.engine.sweep({"default": tuple(self.heap.books.closing)}, now=self.now)
        self.check()

    def state(self, ref: BlockRef) -> BlockState:
        """Return a block's state."""
        return self.heap.books.state(ref.slot)

    def is_free(self, ref: BlockRef) -> bool:
        """Whether a block is granted no more."""
        record = self.heap.books.ledger.get(ref.slot)
        return record.kind is not Kind.BLOCK or record.generation != ref.generation


# -- LEASE


def test_a_granted_block_is_marked_as_the_lanes() -> None:
    """A lease over the lane is the session's, counted, with an open gate and the flag that lets it be recalled."""
    world = Posting()
    key = world.session()
    block = world.grant(key, 100)
    record = world.heap.books.ledger.get(block.ref.slot)
    assert (record.session, record.b, record.c) == (key.id, 128, 100)
    assert record.flags & Flag.LANE
    assert world.gates[block.ref] == "open"
    assert (world.heap.books.leases, world.heap.books.tallies.lease_requests) == (1, 1)


@pytest.mark.parametrize("size", [0, -1])
def test_a_block_has_at_least_one_byte(size: int) -> None:
    """A lease of nothing is refused and changes nothing."""
    world = Posting()
    with pytest.raises(InvalidSize):
        world.grant(world.session(), size)
    assert world.heap.books.blocks == 0


def test_what_cannot_be_had_is_refused() -> None:
    """Too large, badly aligned, too early, or while it drains: refused, and nothing has changed."""
    world = Posting()
    key, other = world.session(), world.session()
    who = world.who(key)
    with pytest.raises(InvalidAlignment):
        world.posts.lease(who, LeaseItem(64, 3), sequence=1, now=world.now)
    with pytest.raises(TooLarge):
        world.grant(key, 2 * MIB)
    world.engine.drain()
    with pytest.raises(Draining):
        world.grant(key)
    world.engine.drain(resume=True)
    holder = world.session()
    (block,) = world.lease(holder, MIB // 2)
    world.wait(other, MIB)
    with pytest.raises(OutOfMemory, match="wait"):
        world.grant(key)
    assert (world.heap.books.blocks, world.heap.books.tallies.lease_requests) == (1, 2)
    world.release(holder, block.ref)


def test_a_session_that_may_not_lease() -> None:
    """A read-only session that asks is lying about what it is; one that has been ended is only late."""
    world = Posting()
    reader, gone = world.session(access=Access.READ_ONLY), world.session()
    with pytest.raises(LaneViolation, match="read-only"):
        world.grant(reader)
    world.evict(gone)
    with pytest.raises(Draining):
        world.grant(gone)
    assert world.heap.books.blocks == 0


def test_more_blocks_come_while_there_is_plenty() -> None:
    """What is granted for later leaves an eighth of the heap to others."""
    world = Posting()
    who, item = world.who(world.session()), LeaseItem(MIB // 16, 1)
    granted = 0
    while world.posts.lease_more(who, item, sequence=1, now=world.now) is not None:
        granted += 1
        world.check()
    assert granted == 15
    assert world.posts.lease_more(who, LeaseItem(2 * MIB, 1), sequence=1, now=world.now) is None


# -- RETURN and RESIZE


def test_a_return_ends_the_lease() -> None:
    """A block that was never shared is free at once, its gate closed, and the bytes are counted as released."""
    world = Posting()
    key = world.session()
    block = world.grant(key)
    world.now += 3.0
    world.give_back(key, block.ref)
    tallies = world.heap.books.tallies
    assert (world.is_free(block.ref), world.gates[block.ref]) == (True, "closed")
    assert tallies.reclaimed_bytes["released"] == 64
    assert tallies.leases_ended["released"] == 1


def test_a_return_of_what_was_recalled_is_no_error() -> None:
    """A block that is gone, or whose slot is somebody else's now, is not returned again."""
    world = Posting()
    key, other = world.session(), world.session()
    block = world.grant(key)
    world.posts.recall(world.who(key), block.ref, now=world.now)
    world.give_back(key, block.ref)
    again = world.grant(other)
    assert again.ref.slot == block.ref.slot
    world.give_back(key, block.ref)
    world.posts.resize(world.who(key), block.ref, 5)
    assert not world.is_free(again.ref)
    assert world.heap.books.requested_bytes == 64


def test_another_sessions_block_is_left_alone() -> None:
    """RETURN, RESIZE and SHARE of what is not one's own, or not any more, change nothing."""
    world = Posting()
    owner, other = world.session(), world.session()
    block = world.grant(owner)
    world.give_back(other, block.ref)
    world.posts.resize(world.who(other), block.ref, 5)
    world.promise(other, block.ref, size=5)
    assert world.state(block.ref) is BlockState.LEASED
    assert (world.heap.books.requested_bytes, len(world.heap.shares)) == (64, 0)


def test_a_transferred_block_is_its_new_owners() -> None:
    """What the old owner had posted about it, or posts still, does not touch it; and no cache has it."""
    world = Posting()
    first, second = world.session(), world.session()
    block = world.grant(first)
    world.open(second, world.transfer(first, block.ref))
    world.give_back(first, block.ref)
    world.promise(first, block.ref)
    assert world.heap.books.ledger.get(block.ref.slot).session == second.id
    assert world.posts.may_be_cached(world.who(second), block.ref.slot) is None
    world.give_back(second, block.ref)
    world.sweep()
    assert world.heap.books.blocks == 0


@pytest.mark.parametrize(("said", "counted"), [(10, 10), (0, 1), (64, 64), (65, 64), (2**64 - 1, 64)])
def test_sizes_are_bounded_by_the_block(said: int, counted: int) -> None:
    """The books count what a client says it uses, from one byte to all of the block."""
    world = Posting()
    key = world.session()
    block = world.grant(key)
    world.posts.resize(world.who(key), block.ref, said)
    world.check()
    assert world.heap.books.requested_bytes == counted


# -- SHARE, OPEN, CLOSE


def test_a_share_is_opened_without_asking() -> None:
    """SHARE promises, OPEN uses up a promise, and the last one shuts the gate; CLOSE ends what OPEN began."""
    world = Posting()
    owner, reader = world.session(), world.session()
    block = world.grant(owner)
    world.promise(owner, block.ref, opens=2, size=33)
    assert world.heap.books.requested_bytes == 33
    world.join(reader, block.ref)
    assert world.gates[block.ref] == "open"
    world.join(reader, block.ref)
    assert world.gates[block.ref] == "shut"
    assert world.heap.books.holds[block.ref.slot][reader.id].opens == 2
    assert len(world.heap.shares) == 0
    world.leave(reader, block.ref)
    assert world.state(block.ref) is BlockState.SHARED
    world.leave(reader, block.ref)
    assert world.state(block.ref) is BlockState.LEASED
    assert world.heap.books.tallies.opens_ok == 2


def test_who_comes_at_once_for_the_last_open_has_it() -> None:
    """Several who found the gate open all have the block, though fewer were promised: no reader loses it."""
    world = Posting()
    owner, one, two = world.session(), world.session(), world.session()
    block = world.grant(owner)
    world.promise(owner, block.ref, opens=1)
    world.join(one, block.ref)
    world.join(two, block.ref)
    world.give_back(owner, block.ref)
    world.leave(one, block.ref)
    world.sweep()
    assert not world.is_free(block.ref)
    world.leave(two, block.ref)
    world.sweep()
    assert world.is_free(block.ref)


def test_an_open_without_a_promise_keeps_the_block() -> None:
    """Whoever says that it can touch a block is believed: nobody else gets it until that is over."""
    world = Posting()
    owner, reader = world.session(), world.session()
    block = world.grant(owner)
    world.join(reader, block.ref)
    world.give_back(owner, block.ref)
    world.sweep()
    assert not world.is_free(block.ref)
    world.leave(reader, block.ref)
    world.sweep()
    assert world.is_free(block.ref)


def test_an_open_of_what_is_transferred_uses_up_no_promise() -> None:
    """The promise of a transfer is its new owner's."""
    world = Posting()
    owner, reader, heir = world.session(), world.session(), world.session()
    block = world.grant(owner)
    handle = world.transfer(owner, block.ref)
    world.join(reader, block.ref)
    world.open(heir, handle)
    assert world.heap.books.ledger.get(block.ref.slot).session == heir.id
    world.leave(reader, block.ref)


def test_an_open_that_comes_too_late_is_passed_over() -> None:
    """The block is free, or somebody else's: the client found the gate closed, and its CLOSE is passed over as well."""
    world = Posting()
    owner, reader = world.session(), world.session()
    block = world.grant(owner)
    world.promise(owner, block.ref, ttl=1.0)
    world.give_back(owner, block.ref)
    world.advance(2.0)
    world.sweep()
    assert world.is_free(block.ref)
    world.join(reader, block.ref)
    world.leave(reader, block.ref)
    again = world.grant(owner)
    world.promise(owner, again.ref)
    assert again.ref.slot == block.ref.slot
    world.join(reader, block.ref)
    assert world.heap.books.holds == {}


def test_a_close_of_what_is_not_open_is_passed_over() -> None:
    """Also when another session has it open, and when the closer owns it."""
    world = Posting()
    owner, reader = world.session(), world.session()
    block = world.grant(owner)
    world.promise(owner, block.ref)
    world.join(reader, block.ref)
    world.leave(owner, block.ref)
    assert world.heap.books.holds[block.ref.slot].keys() == {reader.id}


def test_a_full_ledger_leaves_an_open_for_later() -> None:
    """LedgerFull has changed nothing, so the same post can be tried again."""
    world = Posting()
    owner, reader = world.session(), world.session()
    block = world.grant(owner)
    world.promise(owner, block.ref)
    ledger = world.heap.books.ledger
    real = ledger.reserve

    def full(slots: int) -> None:
        raise LedgerFull(f"no room for {slots}")

    ledger.reserve = full  # type: ignore[method-assign]
    with pytest.raises(LedgerFull):
        world.join(reader, block.ref)
    world.check()
    assert (world.heap.books.holds, len(world.heap.shares)) == ({}, 1)
    ledger.reserve = real  # type: ignore[method-assign]
    world.join(reader, block.ref)
    assert world.heap.books.holds[block.ref.slot].keys() == {reader.id}


@pytest.mark.parametrize(("opens", "ttl"), [(0, None), (65_536, None), (1, 8 * 86_400.0), (1, -1.0)])
def test_impossible_promises_are_lies(opens: int, ttl: float | None) -> None:
    """What no client of ours would post ends the session, and promises nothing."""
    world = Posting()
    key = world.session()
    block = world.grant(key)
    with pytest.raises(LaneViolation, match="shares"):
        world.promise(key, block.ref, opens=opens, ttl=ttl)
    world.check()
    assert len(world.heap.shares) == 0


def test_a_read_only_session_shares_nothing() -> None:
    """It has nothing to share, whatever it says."""
    world = Posting()
    owner, reader = world.session(), world.session(access=Access.READ_ONLY)
    block = world.grant(owner)
    world.promise(reader, block.ref)
    assert len(world.heap.shares) == 0


# -- CLOSING


def closing_block(world: Posting) -> tuple[SessionKey, SessionKey, BlockRef]:
    """Return an owner, a reader, and a block that was shared, returned, and has expired."""
    owner, reader = world.session(), world.session()
    ref = world.grant(owner).ref
    world.promise(owner, ref, ttl=1.0)
    world.give_back(owner, ref)
    assert world.gates[ref] == "open"
    world.advance(2.0)
    return owner, reader, ref


def test_a_shared_block_is_closed_before_it_is_free() -> None:
    """When its last keeper goes, its gate is closed, and it is granted to nobody until nobody can come any more."""
    world = Posting(size=32 * 1024)
    owner, _, ref = closing_block(world)
    assert (world.gates[ref], list(world.heap.books.closing)) == ("closed", [ref.slot])
    assert (world.heap.books.blocks, world.used) == (1, 64)
    with pytest.raises(OutOfMemory):
        world.lease(owner, 32 * 1024)
    world.sweep()
    assert (world.heap.books.blocks, world.used, list(world.heap.books.closing)) == (0, 0, [])
    assert world.lease(owner, 32 * 1024)


def test_an_open_that_was_on_its_way_keeps_a_closing_block() -> None:
    """Found before the sweep, it has the block; the sweep leaves it, and the next last keeper closes it again."""
    world = Posting()
    _, reader, ref = closing_block(world)
    world.join(reader, ref)
    world.sweep()
    assert world.state(ref) is BlockState.SHARED
    assert not world.is_free(ref)
    world.leave(reader, ref)
    assert list(world.heap.books.closing) == [ref.slot]
    world.sweep()
    assert world.is_free(ref)


def test_a_sweep_frees_only_what_it_was_told_of() -> None:
    """A block that began to close after the lanes were read waits for the next sweep."""
    world = Posting()
    _, _, first = closing_block(world)
    known = tuple(world.heap.books.closing)
    _, _, second = closing_block(world)
    world.engine.sweep({"default": known}, now=world.now)
    world.check()
    assert (world.is_free(first), list(world.heap.books.closing)) == (True, [second.slot])
    world.heap.books.sweep([SlotId(77), first.slot])
    world.check()


def test_without_watchers_nothing_closes_for_long() -> None:
    """Where every client asks, a shared block is free with its last keeper; and so is one that was never shared."""
    world = Posting()
    world.gates.watched = False
    owner, _, ref = closing_block(world)
    assert (world.is_free(ref), list(world.heap.books.closing)) == (True, [])
    world.gates.watched = True
    block = world.grant(owner)
    world.give_back(owner, block.ref)
    assert world.heap.books.blocks == 0


def test_a_dead_sharers_block_closes_too() -> None:
    """However its last keeper goes, a block that was shared is CLOSING first."""
    world = Posting()
    owner, reader = world.session(), world.session()
    block = world.grant(owner)
    world.promise(owner, block.ref)
    world.join(reader, block.ref)
    world.die(owner)
    world.die(reader)
    assert list(world.heap.books.closing) == [block.ref.slot]
    world.sweep()
    assert world.heap.books.blocks == 0


def test_check_sees_a_closing_block_with_an_owner() -> None:
    """And one that is not granted at all."""
    world = Posting()
    block = world.grant(world.session())
    books = world.heap.books
    books.closing[block.ref.slot] = None
    with pytest.raises(InvariantBroken, match=r"closing|SHARED"):
        books.check()
    books.closing.clear()
    books.closing[SlotId(50)] = None
    with pytest.raises(InvariantBroken, match=r"closing|SHARED"):
        books.check()


def test_a_handle_of_a_closing_block_is_stale() -> None:
    """Nobody opens it by asking; and an expired promise is told to its sharer, once."""
    world = Posting()
    owner, reader = world.session(), world.session()
    block = world.grant(owner)
    handle = world.share(owner, block.ref, ttl=1.0)
    world.give_back(owner, block.ref)
    assert len(world.advance(2.0).notices) == 1
    with pytest.raises(Exception, match="expired"):
        world.open(reader, handle)
    assert world.advance(2.0).notices == ()


def test_an_expired_promise_shuts_or_closes_the_gate() -> None:
    """While the owner has the block its gate is shut, so that it can be shared again; without it is closed."""
    world = Posting()
    owner = world.session()
    block = world.grant(owner)
    world.promise(owner, block.ref, ttl=1.0)
    world.advance(2.0)
    assert world.gates[block.ref] == "shut"
    world.promise(owner, block.ref, ttl=1.0)
    assert world.gates[block.ref] == "open"
    world.give_back(owner, block.ref)
    world.advance(2.0)
    assert world.gates[block.ref] == "closed"


def test_a_slot_that_is_granted_again_has_another_gate() -> None:
    """The gate of the last generation stays closed, whatever becomes of the slot."""
    world = Posting()
    owner, _, ref = closing_block(world)
    world.sweep()
    again = world.grant(owner)
    assert again.ref.slot == ref.slot
    assert (world.gates[ref], world.gates[again.ref]) == ("closed", "open")


def test_no_gates_do_nothing() -> None:
    """For an engine without lanes."""
    gates = NoGates()
    gates.open(1, 1)
    gates.shut(1, 1)
    gates.close(1, 1)
    assert not gates.watched


# -- recalling and claiming


def test_only_a_sessions_own_idle_lane_blocks_are_recalled() -> None:
    """Not another's, not one granted over gRPC, promised, opened, or free; and what is recalled is free and counted."""
    world = Posting()
    key, other, reader = world.session(), world.session(), world.session()
    mine, theirs, promised, opened = (world.grant(each) for each in (key, other, key, key))
    (called,) = world.lease(key, 64)
    world.promise(key, promised.ref)
    world.promise(key, opened.ref)
    world.join(reader, opened.ref)
    who, posts = world.who(key), world.posts
    assert posts.may_be_cached(who, mine.ref.slot) == mine.ref
    for block in (theirs, promised, opened, called):
        assert posts.may_be_cached(who, block.ref.slot) is None
    for slot in (0, 999, 2**32 - 1, world.who(key).ledger_slot):
        assert posts.may_be_cached(who, slot) is None
    assert posts.recall(who, mine.ref, now=world.now) == 64
    world.check()
    assert world.gates[mine.ref] == "closed"
    assert world.heap.books.tallies.reclaimed_bytes["recalled"] == 64
    assert posts.may_be_cached(who, mine.ref.slot) is None


def test_claims_are_bounded_by_what_is_leased() -> None:
    """A session claims no more than it owns, also when it has less later; what is claimed is available and not used."""
    world = Posting()
    key = world.session()
    blocks = [world.grant(key) for _ in range(4)]
    books, who = world.heap.books, world.who(key)
    books.claim(who, 2**70, 2**70)
    world.check()
    assert (books.cached_bytes, books.used_bytes, books.available_bytes) == (256, 0, MIB)
    world.give_back(key, blocks[0].ref)
    assert (books.cached_bytes, who.cached_blocks) == (192, 3)
    books.claim(who, 64, 1)
    world.check()
    assert (books.cached_bytes, books.used_bytes) == (64, 128)
    world.die(key)
    assert (books.cached_bytes, books.claimed_bytes, books.claimed_blocks, books.used_bytes) == (0, 0, 0, 0)


def test_what_is_shared_is_not_cached() -> None:
    """However much is claimed, a promised block is used."""
    world = Posting()
    key = world.session()
    block = world.grant(key)
    books = world.heap.books
    books.claim(world.who(key), 64, 1)
    world.promise(key, block.ref)
    assert (books.cached_bytes, books.used_bytes) == (0, 64)
