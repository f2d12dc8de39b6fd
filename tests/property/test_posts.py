"""The engine as lanes use it, against the model of `test_engine`: what is posted, recalled, claimed and swept.

A block that there was a handle of, and that nobody keeps, stays granted until it is swept; meanwhile somebody may come
for it after all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, multiple, rule
from tests.fixtures.engines import HEAP_ID, KIB, World, make_heap
from tests.property.test_engine import SIZES, EngineMachine, Kept

from slabd_server.core.engine import Engine
from slabd_server.core.errors import NoMemory
from slabd_server.core.records import Block, BlockRef, BlockState, Handle, LeaseItem, SessionKey, ShareItem

if TYPE_CHECKING:
    from slabd_server.core.posts import Posts
    from slabd_server.core.sessions import Session


@dataclass
class NotedGates:
    """Gates that somebody watches; what each was set to last, and for which generation."""

    watched: bool = True
    now: dict[int, tuple[str, int]] = field(default_factory=dict)

    def open(self, slot: int, generation: int) -> None:
        """Note it."""
        self.now[slot] = ("open", generation)

    def shut(self, slot: int, generation: int) -> None:
        """Note it."""
        self.now[slot] = ("shut", generation)

    def close(self, slot: int, generation: int) -> None:
        """Note it."""
        self.now[slot] = ("closed", generation)


class PostsMachine(EngineMachine):
    """Random histories of posts, among calls, deaths and time."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = NotedGates()
        self.world = World(Engine([make_heap(gates=self.gates)]))

    @property
    def posts(self) -> Posts:
        """What is tested."""
        return self.world.engine.posts

    def session_of(self, key: SessionKey) -> Session | None:
        """Return the session of a client that lives."""
        return self.world.engine.sessions.find(key.id) if key.id in self.alive else None

    def forget(self) -> None:
        """Forget what nobody keeps; what was shared is CLOSING then."""
        self.model = {ref: kept for ref, kept in self.model.items() if kept.kept or kept.shared}

    def serve(self) -> None:
        """Do what whoever reads posts does afterwards."""
        self.absorb(self.world.engine.serve(self.world.heap.books.name, now=self.world.now).effects)

    @rule(target=EngineMachine.blocks, key=EngineMachine.sessions, size=SIZES)
    def post_lease(self, key: SessionKey, size: int) -> object:
        """A client asks for a block over its lane."""
        session = self.session_of(key)
        if session is None:
            return multiple()
        try:
            block = self.posts.lease(session, LeaseItem(size), sequence=0, now=self.world.now)
        except NoMemory:
            return multiple()
        self.record(key.id, block)
        self.model[block.ref].cacheable = True
        return key, block

    @rule(key=EngineMachine.sessions, item=EngineMachine.blocks)
    def post_return(self, key: SessionKey, item: tuple[SessionKey, Block]) -> None:
        """A client returns a block; of another's it is taken no notice."""
        session, kept = self.session_of(key), self.model.get(item[1].ref)
        if session is None:
            return
        self.posts.give_back(session, item[1].ref, sequence=0, now=self.world.now)
        if kept is not None and kept.owner == key.id:
            kept.owner = None
        self.serve()

    @rule(key=EngineMachine.sessions, item=EngineMachine.blocks, size=st.integers(0, 40 * KIB))
    def post_resize(self, key: SessionKey, item: tuple[SessionKey, Block], size: int) -> None:
        """A client uses another part of a block."""
        session, kept = self.session_of(key), self.model.get(item[1].ref)
        if session is None:
            return
        self.posts.resize(session, item[1].ref, size)
        if kept is not None and kept.owner == key.id:
            self._resized(kept, size)

    def _resized(self, kept: Kept, size: int) -> None:
        kept.block = kept.block._replace(requested_size=min(max(size, 1), kept.block.size))

    @rule(
        target=EngineMachine.handles,
        key=EngineMachine.sessions,
        item=EngineMachine.blocks,
        opens=st.integers(1, 3),
        size=st.integers(1, 500),
    )
    def post_share(self, key: SessionKey, item: tuple[SessionKey, Block], opens: int, size: int) -> object:
        """An owner promises a block."""
        session, kept = self.session_of(key), self.model.get(item[1].ref)
        if session is None:
            return multiple()
        self.posts.share(session, ShareItem(item[1].ref, opens, 20.0), size, sequence=0, now=self.world.now)
        if kept is None or kept.owner != key.id:
            return multiple()
        self._resized(kept, size)
        kept.pending += opens
        kept.shared = True
        kept.deadline = max(kept.deadline, self.world.now + 20.0)
        block = kept.block
        return Handle(HEAP_ID, block.ref, block.offset, block.requested_size, transfer=False, size=block.size)

    @rule(key=EngineMachine.sessions, handle=EngineMachine.handles)
    def post_open(self, key: SessionKey, handle: Handle) -> None:
        """A client has come through a gate, in time or not."""
        session, kept = self.session_of(key), self.model.get(handle.ref)
        if session is None:
            return
        self.posts.open(session, handle.ref, sequence=0, now=self.world.now)
        if kept is None:
            return
        kept.holds[key.id] += 1
        kept.shared = True
        if kept.pending and not kept.transfer:
            kept.pending -= 1
            kept.deadline = kept.deadline if kept.pending else 0.0

    @rule(key=EngineMachine.sessions, handle=EngineMachine.handles)
    def post_close(self, key: SessionKey, handle: Handle) -> None:
        """A client closes a block, open or not."""
        session, kept = self.session_of(key), self.model.get(handle.ref)
        if session is None:
            return
        self.posts.close(session, handle.ref, sequence=0)
        if kept is not None and kept.holds[key.id]:
            kept.holds[key.id] -= 1
        self.serve()

    @rule(target=EngineMachine.blocks, key=EngineMachine.sessions, item=EngineMachine.blocks)
    def have_back(self, key: SessionKey, item: tuple[SessionKey, Block]) -> object:
        """A client has a block back that it returned, or perhaps one of another's, if nobody keeps it."""
        session, ref = self.session_of(key), item[1].ref
        if session is None:
            return multiple()
        kept, closing = self.model.get(ref), ref.slot in self.world.heap.books.closing
        block = self.posts.have_back(session, ref, sequence=0, now=self.world.now)
        if block is None:
            return multiple()
        assert closing
        assert kept is not None
        assert not kept.kept
        assert block == kept.block._replace(ref=BlockRef(ref.slot, ref.generation + 1))
        del self.model[ref]
        self.record(key.id, block)
        self.model[block.ref].cacheable = True
        return key, block

    @rule(key=EngineMachine.sessions, item=EngineMachine.blocks)
    def post_keep(self, key: SessionKey, item: tuple[SessionKey, Block]) -> None:
        """A client means to keep a block that came by gRPC; of another's it is taken no notice."""
        session, kept = self.session_of(key), self.model.get(item[1].ref)
        if session is None:
            return
        self.posts.keep(session, item[1].ref)
        if kept is not None and kept.owner == key.id:
            kept.cacheable = True

    @rule(item=EngineMachine.blocks)
    def recall(self, item: tuple[SessionKey, Block]) -> None:
        """The daemon takes a block back that its owner may have cached."""
        session = self.session_of(item[0])
        ref = None if session is None else self.posts.may_be_cached(session, item[1].ref.slot)
        if session is not None and ref is not None:
            self.posts.recall(session, ref, now=self.world.now)
            self.model[ref].owner = None
            self.serve()

    @rule(key=EngineMachine.sessions, cached_bytes=st.integers(0, 1 << 21), cached_blocks=st.integers(0, 99))
    def claim(self, key: SessionKey, cached_bytes: int, cached_blocks: int) -> None:
        """A client says what it does not use; it may say anything."""
        session = self.session_of(key)
        if session is not None:
            session.books.claim(session, cached_bytes, cached_blocks)

    @rule(most=st.integers(1, 5))
    def sweep(self, most: int) -> None:
        """The daemon frees some of what is CLOSING."""
        books = self.world.heap.books
        slots = tuple(books.closing)[:most]
        effects = self.world.engine.sweep({books.name: slots}, now=self.world.now).effects
        self.model = {ref: kept for ref, kept in self.model.items() if kept.kept or ref[0] not in slots}
        self.absorb(effects)

    @invariant()
    def what_nobody_keeps_is_closing(self) -> None:
        """A granted block without a keeper waits for the sweep."""
        unkept = {kept.block.ref.slot for kept in self.model.values() if not kept.kept}
        assert unkept <= set(self.world.heap.books.closing)

    @invariant()
    def only_what_nobody_else_has_may_be_cached(self) -> None:
        """A block may be in a cache if its owner got it over the lane, nobody has it open and no handle promises it."""
        for ref, kept in self.model.items():
            for session in self.world.engine.sessions:
                mine = kept.owner == session.id and kept.cacheable and not kept.pending and not +kept.holds
                assert (self.posts.may_be_cached(session, ref[0]) == ref) == mine

    @invariant()
    def gates_let_in_who_was_promised(self) -> None:
        """The gate of a promised block is open, of one that nobody keeps closed, and of none that is not granted open.

        Once all promises of a block have been kept or are over, it is not open either.
        """
        for kept in self.model.values():
            state, generation = self.gates.now[kept.block.ref.slot]
            assert generation == kept.block.ref.generation
            if kept.pending and not kept.transfer:
                assert state == "open"
            if kept.shared and kept.cacheable and not kept.pending:
                assert state != "open"
            if not kept.kept:
                assert state == "closed"
        granted = {kept.block.ref.slot for kept in self.model.values()}
        assert all(slot in granted or state == "closed" for slot, (state, _) in self.gates.now.items())

    @invariant()
    def claims_are_bounded(self) -> None:
        """What is said to be cached is available, and no more than what is leased."""
        books = self.world.heap.books
        assert 0 <= books.cached_bytes <= books.state_bytes[BlockState.LEASED]
        assert books.used_bytes + books.available_bytes == books.total_bytes


def test_a_closing_block_has_a_state_of_its_own() -> None:
    """What was shared by a session that was in quarantine when it ended is counted as it is until it is swept."""
    world = World(Engine([make_heap(gates=NotedGates())]))
    key = world.session()
    session = world.engine.sessions.find(key.id)
    assert session is not None
    block = world.engine.posts.lease(session, LeaseItem(4096), sequence=1, now=world.now)
    world.engine.posts.share(session, ShareItem(block.ref, 1, 20.0), 4096, sequence=2, now=world.now)
    world.advance(30.0)
    world.evict(key)
    world.die(key)
    world.check()


# Without shrinking a failure is found at once, and with it after minutes: the machine is large.
TestPosts = PostsMachine.TestCase
TestPosts.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate]
)
