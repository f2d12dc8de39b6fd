"""Recalling: getting memory back that clients have returned, or keep in their caches and do not use.

The daemon takes cached blocks itself and waits for nobody: `slabd_proto.lane` (Attention) says how a client that takes
one out of its cache at that moment notices, also one that is stopped in the middle of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from slabd_proto.lane import State
from slabd_server.barrier import barrier
from slabd_server.core.records import SessionState

if TYPE_CHECKING:
    from collections.abc import Callable

    from slabd_server.core.sessions import Session
    from slabd_server.dispatch import Dispatcher
    from slabd_server.session_lane import Lane

# A block's share of the heap below which a recall is not worth its barrier: more is taken at once.
_RECALL_PART: Final = 64
_CACHED: Final = bytes([State.CACHED])
_IN_USE: Final = bytes([State.IN_USE])


class Recaller:
    """Recalls from the lanes of one daemon. `lanes_of` names those of a heap; `drain` reads lanes, see `Lanes`."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        lanes_of: Callable[[str], list[Lane]],
        drain: Callable[[list[Lane]], None],
    ) -> None:
        self._dispatcher = dispatcher
        self._engine = dispatcher.engine
        self._posts = dispatcher.engine.posts
        self._lanes_of = lanes_of
        self._drain = drain

    def reclaim(self, heap: str, wanted_bytes: int) -> bool:
        """See `core.reclaim.Reclaimer`."""
        lanes = self._lanes_of(heap)
        books = self._engine.heaps[heap].books
        before = books.allocator.available_bytes
        self._drain(lanes)
        if books.closing and lanes:
            closing = tuple(books.closing)
            barrier()
            self._drain(lanes)
            if not any(lane.blocked for lane in lanes):
                books.sweep(closing)
        missing = max(wanted_bytes, books.total_bytes // _RECALL_PART) - (books.allocator.available_bytes - before)
        if missing > 0:
            self._recall(lanes, missing)
        return books.allocator.available_bytes > before

    def _recall(self, lanes: list[Lane], wanted_bytes: int) -> None:
        """Take cached blocks back until there are enough: of those clients first that have most."""
        having = [(lane.segment.claimed()[0] + len(lane.untaken()), lane) for lane in lanes if not lane.broken]
        chosen = [lane for cached, lane in sorted(having, key=lambda each: -each[0]) if cached]
        sessions = [(lane, self._engine.sessions.find(lane.session)) for lane in chosen]
        active = [(lane, each) for lane, each in sessions if each and each.state is SessionState.ACTIVE]
        if not active:
            return
        for lane, _ in active:
            lane.segment.begin_recall()
        barrier()
        for lane, session in active:
            if wanted_bytes > 0:
                wanted_bytes -= self._take(lane, session, wanted_bytes)
        barrier()
        for lane, _ in active:
            lane.segment.end_recall()

    def _take(self, lane: Lane, session: Session, wanted_bytes: int) -> int:
        states = lane.segment.states(session.books.ledger.high_water)
        freed = self._take_untaken(lane, session, states, wanted_bytes)
        if states.count(_CACHED) > len(session.owned):  # most of it is old, or a lie
            for owned in tuple(session.owned):
                if freed < wanted_bytes and states[owned : owned + 1] == _CACHED:
                    freed += self._take_back(lane, session, owned)
            return freed
        slot = states.find(_CACHED)
        while slot >= 0 and freed < wanted_bytes:
            freed += self._take_back(lane, session, slot)
            slot = states.find(_CACHED, slot + 1)
        return freed

    def _take_back(self, lane: Lane, session: Session, slot: int) -> int:
        ref = self._posts.may_be_cached(session, slot)
        if ref is None:
            return 0
        size = self._posts.recall(session, ref, now=self._dispatcher.now())
        lane.segment.note_recalled(size)
        return size

    def _take_untaken(self, lane: Lane, session: Session, states: bytes, wanted_bytes: int) -> int:
        """Take back what was granted and is still in the ring; what the client does not use cannot be IN_USE."""
        freed = 0
        for _, ref, size in lane.untaken():
            idle = states[ref.slot : ref.slot + 1] != _IN_USE and self._posts.may_be_cached(session, ref.slot) == ref
            if idle and freed < wanted_bytes:
                freed += self._posts.recall(session, ref, now=self._dispatcher.now())
                lane.segment.note_recalled(size)
        return freed
