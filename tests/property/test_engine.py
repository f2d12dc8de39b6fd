"""The engine against a model that knows only who keeps which block.

The model is a dict from block to its keepers. After every step the engine's `check()` holds, what is granted is what
the model says, and no block that somebody keeps has been granted again.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule
from tests.fixtures.engines import KIB, World

from slabd_server.core import inspection
from slabd_server.core.errors import CoreError, OutOfMemory, TooLarge
from slabd_server.core.ledger import Flag, Kind
from slabd_server.core.purposes import NO_PURPOSE
from slabd_server.core.records import (
    Block,
    BlockRef,
    Effects,
    Handle,
    Leased,
    LeaseItem,
    SessionId,
    SessionKey,
    Waiting,
    Woken,
    merged,
)

SIZES = st.sampled_from([1, 64, 65, 500, 4096, 4097, 30 * KIB, 200 * KIB, 700 * KIB])


@dataclass
class Kept:
    """A granted block and its keepers; whether there has been a handle of it, and whether its owner may cache it."""

    block: Block
    owner: SessionId | None
    pending: int = 0
    transfer: bool = False
    deadline: float = 0.0
    holds: Counter[SessionId] = field(default_factory=Counter)
    shared: bool = False
    cacheable: bool = False

    @property
    def kept(self) -> bool:
        """Whether anybody keeps it."""
        return self.owner is not None or self.pending > 0 or bool(+self.holds)


class EngineMachine(RuleBasedStateMachine):
    """Random histories of sessions, leases, handles, deaths and time."""

    sessions = Bundle("sessions")
    blocks = Bundle("blocks")
    handles = Bundle("handles")

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.model: dict[tuple[int, int], Kept] = {}
        self.alive: set[SessionId] = set()
        self.waiting: dict[int, SessionId] = {}

    def absorb(self, effects: Effects) -> None:
        """Forget what nobody keeps, then learn what waiters were granted."""
        self.forget()
        for woken in effects.woken:
            self.learn(woken, self.waiting.pop(woken.ticket))

    def forget(self) -> None:
        """Forget what nobody keeps."""
        self.model = {ref: kept for ref, kept in self.model.items() if kept.kept}

    def learn(self, woken: Woken, session: SessionId) -> None:
        """Record a waiter's blocks."""
        if isinstance(woken.outcome, tuple):
            for block in woken.outcome:
                self.record(session, block)

    def record(self, session: SessionId, block: Block) -> None:
        """Record a grant, which must not overlap any kept block."""
        for kept in self.model.values():
            other = kept.block
            assert block.offset + block.size <= other.offset or other.offset + other.size <= block.offset
        assert block.ref not in self.model
        self.model[block.ref] = Kept(block, session)

    @rule(target=sessions, attached=st.booleans())
    def open_session(self, attached: bool) -> SessionKey:  # noqa: FBT001 - hypothesis passes it
        """A client comes."""
        key = self.world.session(attached=attached)
        self.alive.add(key.id)
        return key

    @rule(target=blocks, key=sessions, sizes=st.lists(SIZES, min_size=1, max_size=4), wait=st.booleans())
    def lease(self, key: SessionKey, sizes: list[int], wait: bool) -> object:  # noqa: FBT001
        """A client asks for blocks."""
        if key.id not in self.alive:
            return multiple()
        items = [LeaseItem(size) for size in sizes]
        try:
            outcome = self.world.engine.lease(key, items, now=self.world.now, timeout=7.0 if wait else 0.0)
        except TooLarge:
            return multiple()
        except OutOfMemory:
            assert not wait
            return multiple()
        if isinstance(outcome, Waiting):
            self.waiting[outcome.ticket] = key.id
            return multiple()
        assert isinstance(outcome, Leased)
        for block in outcome.blocks:
            self.record(key.id, block)
        return multiple(*((key, block) for block in outcome.blocks))

    @rule(key=sessions, item=blocks)
    def release(self, key: SessionKey, item: tuple[SessionKey, Block]) -> None:
        """A client releases a block, its own or another's."""
        _, block = item
        if key.id not in self.alive:
            return
        outcome = self.world.engine.release(key, [block.ref], now=self.world.now)
        kept = self.model.get(block.ref)
        if kept is not None and kept.owner == key.id:
            assert outcome.results == (None,)
            kept.owner = None
        else:
            assert isinstance(outcome.results[0], CoreError)
        self.absorb(outcome.effects)

    @rule(target=handles, item=blocks, opens=st.integers(1, 3), transfer=st.booleans())
    def share(self, item: tuple[SessionKey, Block], opens: int, transfer: bool) -> object:  # noqa: FBT001
        """An owner promises a block."""
        key, block = item
        if key.id not in self.alive:
            return multiple()
        kept = self.model.get(block.ref)
        try:
            handle = (
                self.world.transfer(key, block.ref) if transfer else self.world.share(key, block.ref, opens, ttl=20.0)
            )
        except CoreError:
            assert kept is None or kept.owner != key.id or (transfer and (kept.pending or +kept.holds))
            return multiple()
        assert kept is not None
        assert kept.owner == key.id
        kept.pending += 1 if transfer else opens
        kept.transfer = transfer
        kept.shared = True
        kept.deadline = max(kept.deadline, self.world.now + (60.0 if transfer else 20.0))
        kept.owner = None if transfer else kept.owner
        return handle

    @rule(target=blocks, key=sessions, handle=handles)
    def open(self, key: SessionKey, handle: Handle) -> object:
        """A client opens a handle, in time or not."""
        if key.id not in self.alive:
            return multiple()
        kept = self.model.get(handle.ref)
        promised = kept is not None and kept.pending > 0 and kept.transfer == handle.transfer
        try:
            block = self.world.open(key, handle)
        except CoreError:
            assert not promised
            return multiple()
        assert kept is not None
        assert promised
        assert block == kept.block
        kept.pending -= 1
        if handle.transfer:
            kept.owner, kept.transfer, kept.cacheable = key.id, False, False
        else:
            kept.holds[key.id] += 1
        if not kept.pending:
            kept.deadline = 0.0
        return multiple((key, block)) if handle.transfer else multiple()

    @rule(key=sessions, handle=handles)
    def close(self, key: SessionKey, handle: Handle) -> None:
        """A client closes a block, open or not."""
        if key.id not in self.alive:
            return
        kept = self.model.get(handle.ref)
        if kept is None or not kept.holds[key.id]:
            with pytest.raises(CoreError):
                self.world.close(key, handle.ref)
            return
        kept.holds[key.id] -= 1
        self.absorb(self.world.close(key, handle.ref))

    @rule(
        key=consumes(sessions),
        how=st.sampled_from(["close", "close before children", "die", "evict and die", "hang up and die"]),
    )
    def end(self, key: SessionKey, how: str) -> None:
        """A client goes, in one way or another."""
        if key.id not in self.alive:
            return
        self.alive.discard(key.id)
        early = Effects()
        if how == "close":
            effects = self.world.end(key)
        else:
            if how == "evict and die":
                early = self.world.evict(key)
            elif how == "close before children":
                early = self.world.end(key, child=True)
            elif how == "hang up and die":
                early = self.world.hang_up(key)
            effects = merged(early, self.world.die(key))
        for kept in self.model.values():
            kept.owner = None if kept.owner == key.id else kept.owner
            kept.holds.pop(key.id, None)
        self.absorb(effects)

    @rule(seconds=st.floats(0.1, 40.0), keep=st.booleans())
    def advance(self, seconds: float, keep: bool) -> None:  # noqa: FBT001
        """Time passes; sessions over gRPC alone are kept alive, or not."""
        self.world.now += seconds
        if keep:
            for session in self.world.engine.sessions:
                if not session.attached:
                    self.world.engine.keep_alive(SessionKey(session.id, session.secret), now=self.world.now)
        effects = self.world.engine.tick(now=self.world.now).effects
        gone = {ended.session for ended in effects.ended}
        self.alive -= gone
        for kept in self.model.values():
            kept.owner = None if kept.owner in gone else kept.owner
            for each in gone:
                kept.holds.pop(each, None)
            if kept.pending and kept.deadline <= self.world.now:
                kept.pending, kept.transfer, kept.deadline = 0, False, 0.0
        self.absorb(effects)

    @invariant()
    def books_are_the_models(self) -> None:
        """What is granted is what somebody keeps."""
        self.world.check()
        leases, total = inspection.leases(self.world.engine, "", 0, 10_000, self.world.now)
        assert {info.block.ref for info in leases} == set(self.model)
        assert total == len(self.model)
        assert self.world.heap.books.allocator.used_bytes == sum(kept.block.size for kept in self.model.values())
        for info in leases:
            kept = self.model[info.block.ref]
            assert (info.session, info.pending_opens) == (kept.owner, kept.pending)
            assert set(info.opened_by) == set(+kept.holds)

    @invariant()
    def the_ledger_is_the_models(self) -> None:
        """Whoever rebuilt the heap from its ledger would know every keeper: owners, promises, opens and sessions."""
        records = dict(self.world.heap.books.ledger.records())
        blocks = {(slot, record.generation): record for slot, record in records.items() if record.kind is Kind.BLOCK}
        assert set(blocks) == set(self.model)
        for ref, record in blocks.items():
            kept = self.model[BlockRef(*ref)]
            assert (record.a, record.b, record.c) == (kept.block.offset, kept.block.size, kept.block.requested_size)
            assert (record.session or None, record.pending) == (kept.owner, kept.pending)
            if kept.owner is not None or kept.pending:  # else there is nothing left to transfer
                assert bool(record.flags & Flag.TRANSFER) == (kept.transfer and kept.pending > 0)
        holds = [(record.a, record.session, record.b) for record in records.values() if record.kind is Kind.HOLD]
        assert sorted(holds) == sorted(
            (kept.block.ref.slot, session, opens)
            for kept in self.model.values()
            for session, opens in (+kept.holds).items()
        )
        sessions = {record.session for record in records.values() if record.kind is Kind.SESSION}
        assert sessions == {session.id for session in self.world.engine.sessions}

    @invariant()
    def the_head_waits_for_a_reason(self) -> None:
        """Nobody waits while the head of the queue would fit; several blocks at once may fit in one order only."""
        head = self.world.heap.waiters.head
        if head is not None and len(head.request.items) == 1:
            with pytest.raises(OutOfMemory):
                self.world.heap.books.grant(head.request.session, head.request.items, NO_PURPOSE, sequence=0, now=0.0)


TestEngine = EngineMachine.TestCase
TestEngine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
