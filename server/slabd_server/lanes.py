"""The lanes: what clients post without asking, and what is asked of them without waiting.

It owns every session's lane and both its eventfds: the *doorbell*, by which a client wakes the daemon, and the *bell*,
by which the daemon tells a client that there are completions. The decisions are the core's (`core.posts`).

One code path, `_drain`, reads what was posted, at whatever occasion: the doorbell; a short tick, as long as there is
something to read; before any gRPC call of the same session, so that its calls and its posts happen in the order in
which it made them; before anybody is told that a heap is full or a handle is stale; and after the client's death.

Three things need a barrier (`barrier`), each because a client stores and then loads while the daemon does it the other
way round:

    to sleep    POLLING = 0, barrier, drain: a client that found it 1 and did not ring has been read
    to sweep    a gate is closed, barrier, drain everybody: who came through it before has been read
    to recall   ATTENTION is odd, barrier, read states: who found it even has been read as IN_USE
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from slabd_proto.lane import RING, SLOTS_MAX, Answer, Completion, Verb
from slabd_server import claims
from slabd_server.barrier import barrier
from slabd_server.core.errors import CoreError, LedgerFull, NoSuchSession
from slabd_server.core.posts import LaneViolation
from slabd_server.core.records import BlockRef, LeaseItem, SessionState, ShareItem, SlotId
from slabd_server.core.tallies import count_up
from slabd_server.lane_memory import LaneSegment
from slabd_server.recall import Recaller
from slabd_server.session_lane import Lane

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from slabd_proto.lane import Submission
    from slabd_server.core.heap import Heap
    from slabd_server.core.purposes import Purpose
    from slabd_server.core.records import Block, SessionId
    from slabd_server.core.served import ServedHeap
    from slabd_server.core.sessions import Session
    from slabd_server.core.stats import LeaseInfo
    from slabd_server.dispatch import Dispatcher
    from slabd_server.lane_memory import GenerationTable

# How often everybody is read for one lane at a time because of opens that nobody seems to have promised.
_PATIENCE: Final = 8
_LEAST_KEPT: Final = 4096
_TICK_SECONDS: Final = 0.005
_QUIET_TICKS: Final = 4
# A client that wants its shared blocks back: how many it may have that it did not take yet, and how soon they have to
# be free, because afterwards nobody may look for them.
_BACK_MAX: Final = 64
_BACK_SECONDS: Final = 1.0
_MICROSECONDS: Final = 1e6

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Wish:
    """A shared block that its owner has returned, and wants back when nobody has it open any more."""

    lane: Lane
    ref: BlockRef
    alignment: int
    since: float


class _NotYet(Exception):
    """A post has to be done later."""


class Lanes:
    """All lanes of the daemon. `tables` are the heaps' generations by name."""

    def __init__(self, dispatcher: Dispatcher, tables: Mapping[str, GenerationTable]) -> None:
        self._dispatcher = dispatcher
        self._engine = dispatcher.engine
        self._posts = dispatcher.engine.posts
        self._tables = tables
        self._loop = asyncio.get_running_loop()
        self._lanes: dict[SessionId, Lane] = {}
        self._active: dict[SessionId, Lane] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._settling = False
        self._least: dict[tuple[Heap, int, int], int] = {}
        self._later: set[SessionId] = set()
        self._recaller = Recaller(dispatcher, self._of_heap, self._drain_all)
        self._wishes: dict[tuple[str, SlotId], _Wish] = {}
        doing: dict[Verb, Callable[[Session, Lane, Submission, BlockRef], None]] = {
            Verb.LEASE: self._lease,
            Verb.RETURN: self._return,
            Verb.SHARE: self._share,
            Verb.OPEN: self._open,
            Verb.CLOSE: self._close,
            Verb.RESIZE: self._resize,
            Verb.KEEP: self._keep,
        }
        # By the number, because to make a Verb of it takes as long as to look it up; with the name for the metrics.
        self._doing = {verb.value: (verb.name.lower(), do) for verb, do in doing.items()}
        self._engine.reclaim_by(self._recaller)
        for served in self._engine.heaps.values():
            served.books.told = self._told
            tallies = served.books.tallies
            tallies.lane_operations |= {name: 0 for name, _ in self._doing.values()}
            tallies.cache_hits = tallies.cache_misses = 0
            tallies.cached_class_blocks = {}
        dispatcher.before_looking = self.looking
        dispatcher.after_performing = self.settle
        dispatcher.on_dismissed = self.dismiss

    def __len__(self) -> int:
        return len(self._lanes)

    # -- a lane's life

    def open(self, session: Session) -> Lane | None:
        """Make a lane for a session; None when there is no memory or no descriptor for one."""
        served = self._engine.heaps[session.books.name]
        cache_bytes = served.books.total_bytes * served.spec.cache_percent // 100
        slots = min(self._tables[served.books.name].slots, SLOTS_MAX)
        with contextlib.ExitStack() as undo:
            try:
                segment = LaneSegment.create(str(session.id), slots, cache_bytes)
                undo.callback(segment.close)
                doorbell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
                undo.callback(os.close, doorbell)
                bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            except OSError as error:
                log.warning("session %d gets no lane and uses gRPC alone: %s", session.id, error)
                return None
            undo.pop_all()
        lane = Lane(session.id, served.books.name, segment, doorbell, bell, counted_at=self._dispatcher.now())
        self._lanes[session.id] = lane
        self._tables[lane.heap].watchers += 1
        self._loop.add_reader(doorbell, self._rung, lane)
        return lane

    def forget(self, session: SessionId) -> None:
        """Give up a session's lane; one without a lane is no error."""
        lane = self._lanes.pop(session, None)
        if lane is not None:
            claims.count(lane, self._engine.heaps[lane.heap].books.tallies, self._dispatcher.now())
            self._wishes = {key: wish for key, wish in self._wishes.items() if wish.lane is not lane}
            self._active.pop(session, None)
            self._tables[lane.heap].watchers -= 1
            self._loop.remove_reader(lane.doorbell)
            lane.close()

    def dismiss(self, session: SessionId) -> None:
        """Tell a client through its lane that its session can do nothing any more."""
        lane = self._lanes.get(session)
        if lane is not None:
            lane.segment.dismiss()

    def close(self) -> None:
        """Give up all lanes."""
        if self._timer is not None:
            self._timer.cancel()
        for session in tuple(self._lanes):
            self.forget(session)

    # -- reading

    def drain(self, session: SessionId) -> None:
        """Do what one session has posted."""
        lane = self._lanes.get(session)
        if lane is not None:
            self._perform([lane])

    def look(self) -> None:
        """Do what everybody has posted, and note what they say they have cached."""
        for _ in self.looking():
            pass

    def looking(self) -> Iterator[None]:
        """Do the same in steps, between which anything may happen: a scrape holds nobody up for all the lanes."""
        lanes = tuple(self._lanes.values())
        for first in range(0, len(lanes), claims.SLICE):
            self._perform([lane for lane in lanes[first : first + claims.SLICE] if not lane.segment.is_closed])
            yield
        yield from claims.note_claims(self._engine, lanes, self._dispatcher.now())

    def read_heap_of(self, session: SessionId) -> None:
        """Do what everybody has posted who has a lane to the heap of this session."""
        found = self._engine.sessions.find(session)
        if found is not None:
            self._perform(self._of_heap(found.books.name))

    def _of_heap(self, heap: str) -> list[Lane]:
        return [lane for lane in self._lanes.values() if lane.heap == heap]

    def _rung(self, lane: Lane) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(lane.doorbell)
        self._engine.heaps[lane.heap].books.tallies.lane_doorbells += 1
        lane.segment.set_polling(polling=True)
        lane.quiet = 0
        self._active[lane.session] = lane
        self._perform([lane])
        self._schedule()

    def _perform(self, lanes: Iterable[Lane]) -> bool:
        """Do what was posted in these lanes, and what follows from it; return whether there was anything."""
        done = {lane.heap for lane in tuple(lanes) if self._drain_whole(lane)}
        for heap in done:
            self._dispatcher.perform(self._engine.serve(heap, now=self._dispatcher.now()).effects)
        return bool(done)

    def _drain_whole(self, lane: Lane) -> int:
        """Do what was posted in a lane, and in those that had to wait for it."""
        count = self._drain(lane)
        while self._later and not self._settling:
            waiting = self._lanes.get(self._later.pop())
            count += self._drain(waiting) if waiting is not None else 0
        return count

    def _drain(self, lane: Lane) -> int:
        """Do what was posted in a lane, as far as there is memory to note it; return how many submissions it was.

        Nobody is served and nothing is swept by this.
        """
        session = self._engine.sessions.find(lane.session)
        lane.blocked = lane.reading
        if session is None or session.state is SessionState.ENDING or lane.broken or lane.reading:
            return 0
        if lane.segment.next_submission() is None:
            return 0
        if session.state is not SessionState.ACTIVE:
            self._engine.finish_chores(now=self._dispatcher.now())
        count = 0
        lane.reading, lane.patience = True, _PATIENCE
        try:
            while count < RING and (entry := lane.segment.next_submission()) is not None:
                self._do(session, lane, entry)
                lane.segment.took()
                count += 1
        except LedgerFull as error:
            lane.blocked = True
            log.error("cannot read the lane of session %d any further for now: %s", lane.session, error)  # noqa: TRY400 - no defect of ours
        except LaneViolation as error:
            self._end(lane, str(error))
        except _NotYet:
            lane.blocked = True
            self._later.add(lane.session)
        finally:
            lane.reading = False
        return count

    def _do(self, session: Session, lane: Lane, entry: Submission) -> None:
        """Do what was posted."""
        if (done := self._doing.get(entry.verb)) is None:
            raise LaneViolation(f"it posts an unknown verb, {entry.verb}")
        name, do = done
        do(session, lane, entry, BlockRef(SlotId(entry.slot), entry.generation))
        count_up(session.books.tallies.lane_operations, name)

    def _return(self, session: Session, lane: Lane, entry: Submission, ref: BlockRef) -> None:
        now = self._dispatcher.now()
        if not self._posts.give_back(session, ref, sequence=lane.segment.taken, now=now):
            if entry.a:
                lane.segment.note_recalled(-entry.a)  # the client has not noticed that it was
        elif entry.quantity:
            self._wishes[lane.heap, ref.slot] = _Wish(lane, ref, entry.b, now)

    def _share(self, session: Session, lane: Lane, entry: Submission, ref: BlockRef) -> None:
        item = ShareItem(ref, entry.quantity, entry.a / _MICROSECONDS if entry.a else None)
        self._posts.share(session, item, entry.b, sequence=lane.segment.taken, now=self._dispatcher.now())

    def _resize(self, session: Session, _lane: Lane, entry: Submission, ref: BlockRef) -> None:
        self._posts.resize(session, ref, entry.a)

    def _close(self, session: Session, lane: Lane, _entry: Submission, ref: BlockRef) -> None:
        self._posts.close(session, ref, sequence=lane.segment.taken)

    def _keep(self, session: Session, _lane: Lane, _entry: Submission, ref: BlockRef) -> None:
        self._posts.keep(session, ref)

    def _open(self, session: Session, lane: Lane, _entry: Submission, ref: BlockRef) -> None:
        """Note an open. The handle for it was posted before, but perhaps in a lane that was not read since.

        That two lanes wait for each other for ever cannot be: who made a handle did so before anybody opened it. But
        the handle may lie behind the very post for which this lane is read; then this lane waits, and is read again.
        """
        if lane.patience and not self._posts.is_promised(session, ref):
            others = [each for each in self._of_heap(lane.heap) if each is not lane]
            if any(each.reading for each in others):
                raise _NotYet
            self._drain_all(others)
            if not self._posts.is_promised(session, ref):
                lane.patience -= 1
        self._posts.open(session, ref, sequence=lane.segment.taken, now=self._dispatcher.now())

    def _lease(self, session: Session, lane: Lane, entry: Submission, _ref: BlockRef) -> None:
        """Grant a block and wake the client, which wants no more for now; then grant the others that it asked for."""
        segment, number, now = lane.segment, lane.segment.taken + 1, self._dispatcher.now()
        wanted = min(max(entry.quantity, 1), segment.room)
        if not wanted:
            raise LaneViolation("it asks for blocks and does not read the answers")
        item = LeaseItem(entry.a, entry.b)
        try:
            low = self._least_size(session.books.allocator, item)
            block: Block | None = self._posts.lease(session, item, sequence=number, now=now)
        except CoreError:
            block, low = None, 0
        first = True
        while wanted and block is not None:
            if block.ref.slot >= self._tables[lane.heap].slots:
                self._posts.give_back(session, block.ref, sequence=number, now=now)
                break
            wanted -= 1
            if len(lane.granted) >= RING:
                lane.forget_taken()
            lane.grant(Answer.GRANTED, block, request=number, left=wanted, min_size=low)
            if first:
                lane.ring()
                self._dispatcher.answered(lane.session, now)
                first = False
            block = self._posts.lease_more(session, item, sequence=number, now=now) if wanted else None
        if wanted:
            segment.complete(Completion(Answer.REFUSED, number))
            lane.ring()

    def _least_size(self, heap: Heap, item: LeaseItem) -> int:
        """Return the smallest size that gets the same block as this one.

        Raises:
            InvalidSize, InvalidAlignment: it gets none.
        """
        _, high = heap.usable_size(item.size, item.alignment)
        key = (heap, high, item.alignment)
        if key not in self._least:
            if len(self._least) >= _LEAST_KEPT:
                self._least.clear()
            sizes = range(1, item.size + 1)
            self._least[key] = 1 + bisect_left(sizes, high, key=lambda size: heap.usable_size(size, item.alignment)[1])
        return self._least[key]

    def _end(self, lane: Lane, why: str) -> None:
        log.warning("session %d is ended: %s", lane.session, why)
        lane.broken = True
        self._loop.call_soon(self._evict, lane.session)

    def _evict(self, session: SessionId) -> None:
        with contextlib.suppress(NoSuchSession):
            self._dispatcher.perform(self._engine.evict(session, now=self._dispatcher.now()).effects)

    # -- the tick

    def _schedule(self) -> None:
        if self._timer is None and (self._active or self._pressed()):
            self._timer = self._loop.call_later(_TICK_SECONDS, self._tick)

    def _tick(self) -> None:
        self._timer = None
        for lane in tuple(self._active.values()):
            if self._perform([lane]):
                lane.quiet = 0
                continue
            lane.quiet += 1
            if lane.quiet >= _QUIET_TICKS:
                self._fall_asleep(lane)
        for served in self._pressed():
            self._relieve(served)
        self._schedule()

    def _fall_asleep(self, lane: Lane) -> None:
        lane.segment.set_polling(polling=False)
        barrier()
        if self._perform([lane]):
            lane.segment.set_polling(polling=True)
            lane.quiet = 0
        else:
            self._active.pop(lane.session, None)

    def _pressed(self) -> list[ServedHeap]:
        """Return the heaps whose memory somebody waits for while clients may have it cached."""
        heaps = {lane.heap for lane in self._lanes.values()}
        return [
            served
            for name, served in self._engine.heaps.items()
            if name in heaps and (served.waiters or (self._engine.draining and served.books.blocks))
        ]

    def _relieve(self, served: ServedHeap) -> None:
        wanted = served.books.total_bytes if self._engine.draining else served.waiters.wanted_bytes
        if self._recaller.reclaim(served.books.name, wanted):
            now = self._dispatcher.now()
            self._dispatcher.perform(self._engine.serve(served.books.name, now=now).effects)

    # -- sweeping

    def settle(self) -> None:
        """Free CLOSING blocks, and look after those who wait: after everything that was performed."""
        if self._settling:
            return
        self._settling = True
        try:
            while self._engine.closing and self._sweep():
                pass
        finally:
            self._settling = False
        self._schedule()

    def _sweep(self) -> bool:
        """Free the blocks that are CLOSING now; return whether everybody's posts could be read for it."""
        closing = {name: tuple(served.books.closing) for name, served in self._engine.heaps.items()}
        if any(self._tables[name].watched for name, slots in closing.items() if slots):
            barrier()
            lanes = [lane for lane in tuple(self._lanes.values()) if closing[lane.heap]]
            self._drain_all(lanes)
            if any(lane.blocked for lane in lanes):
                self._loop.call_later(_TICK_SECONDS, self.settle)
                return False
        for name, slots in closing.items():
            for slot in slots:
                if (wish := self._wishes.pop((name, slot), None)) is not None:
                    self._grant_wish(wish)
        self._dispatcher.perform(self._engine.sweep(closing, now=self._dispatcher.now()).effects)
        return True

    def _grant_wish(self, wish: _Wish) -> None:
        """Let a client have its shared block back: one wake-up less for the next, and no look for room."""
        lane, ref, now = wish.lane, wish.ref, self._dispatcher.now()
        session, segment = self._engine.sessions.find(lane.session), lane.segment
        if session is None or lane.broken or now - wish.since > _BACK_SECONDS or segment.room < RING // 2:
            return
        if len(lane.untaken()) >= _BACK_MAX:
            return
        block = self._posts.have_back(session, ref, sequence=segment.taken, now=now)
        if block is not None:
            lane.grant(Answer.BACK, block, request=wish.alignment)

    def _drain_all(self, lanes: list[Lane]) -> None:
        """Do what was posted in these lanes, those included that wait for each other."""
        for _ in range(len(lanes) + 1):  # who waits for another is read in a later round
            if not sum(self._drain(lane) for lane in lanes) or not any(lane.blocked for lane in lanes):
                return

    @contextlib.contextmanager
    def undisturbed(self, session: SessionId, refs: Sequence[BlockRef]) -> Iterator[None]:
        """Transfer blocks in this context: before, their gates are closed, and who came through has been read.

        Those that were not transferred after all get their gates back.
        """
        found = self._engine.sessions.find(session)
        if found is None or not refs or not found.books.gates.watched:
            yield
            return
        books = found.books
        self.read_heap_of(session)
        closed = [ref for ref in refs if books.close_gate(found, ref)]
        if closed:
            barrier()
            self.read_heap_of(session)
        try:
            yield
        finally:
            for ref in closed:
                books.restore_gate(ref)

    # -- asking

    def described(self, info: LeaseInfo, now: float) -> LeaseInfo:
        """Add to a block what its client says of it; see `claims`."""
        lane = self._lanes.get(info.session) if info.session is not None else None
        return info if lane is None or not info.block.size else claims.described(lane, info, now)

    def _told(self, session: SessionId, slot: SlotId) -> Purpose | None:
        lane = self._lanes.get(session)
        return None if lane is None else claims.purpose_of(lane, slot)
