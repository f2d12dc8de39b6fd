"""The dispatcher performs what the engine decides: it wakes waiting calls, feeds watches, logs, and keeps the timer.

It owns the engine, the clock and the event loop's side of everything that waits. Every adapter goes through it, on
the loop's thread: `dispatcher.perform(engine.method(..., now=dispatcher.now()).effects)`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from slabd_server.core.errors import CoreError, UnknownSession
from slabd_server.core.records import EndCause, PressureEvent, SessionEndedEvent, SessionId
from slabd_server.preparing import Workers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator

    from slabd_server.core.engine import Engine
    from slabd_server.core.errors import OutOfMemory
    from slabd_server.core.records import (
        Block,
        Effects,
        Ended,
        Event,
        Notice,
        Preparation,
        SessionKey,
        Ticket,
        Waiting,
    )

_WATCH_BACKLOG: Final = 256
_CLOSED_KEPT: Final = 256
# A timer that fires a moment too early would find nothing due and be set again.
_TIMER_SLACK_SECONDS: Final = 0.001

log = logging.getLogger(__name__)


class Watch:
    """A session's subscription: events in order; when it falls behind, pressure is forgotten first."""

    def __init__(self, session: SessionId, heap: str) -> None:
        self.session: Final = session
        self.heap: Final = heap
        self._events: deque[Event] = deque()
        self._arrived = asyncio.Event()
        self._ended = False

    def put(self, event: Event) -> None:
        """Add an event."""
        if len(self._events) >= _WATCH_BACKLOG:
            oldest = next((each for each in self._events if isinstance(each, PressureEvent)), self._events[0])
            self._events.remove(oldest)
        self._events.append(event)
        self._ended = self._ended or isinstance(event, SessionEndedEvent)
        self._arrived.set()

    def end(self) -> None:
        """Let the subscription end after what it has."""
        self._ended = True
        self._arrived.set()

    async def events(self) -> AsyncIterator[Event]:
        """Yield events until the session has ended."""
        while True:
            while self._events:
                yield self._events.popleft()
            if self._ended:
                return
            self._arrived.clear()
            await self._arrived.wait()


@dataclass(frozen=True, slots=True)
class _Asker:
    """A call that waits for blocks. Without a sequence number it cannot ask again for what it was granted."""

    key: SessionKey
    sequence: int
    answer: asyncio.Future[tuple[Block, ...]]


class Dispatcher:
    """The engine's hands. `clock` is CLOCK_MONOTONIC, which every process of the machine shares."""

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.monotonic) -> None:
        self.engine: Final = engine
        self.now: Final = clock
        self._loop = asyncio.get_running_loop()
        self._askers: dict[Ticket, _Asker] = {}
        self._ends: dict[SessionId, asyncio.Future[Ended]] = {}
        self._closed: deque[SessionId] = deque(maxlen=_CLOSED_KEPT)
        self._watches: dict[SessionId, set[Watch]] = {}
        self._idle: set[asyncio.Event] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: float | None = None
        self._workers = Workers()
        self._stopped = False
        self.on_ended: Callable[[SessionId], None] = lambda _session: None
        self.before_close: Callable[[SessionId], None] = lambda _session: None
        self.on_dismissed: Callable[[SessionId], None] = lambda _session: None
        self.after_performing: Callable[[], None] = lambda: None
        self.before_looking: Callable[[], Iterable[None]] = tuple

    def perform(self, effects: Effects) -> None:
        """Do what an operation brought about, and set the timer for what comes next."""
        for woken in effects.woken:
            asker = self._askers.pop(woken.ticket, None)
            if asker is not None:
                self._wake(asker, woken.outcome)
        for preparation in effects.preparations:
            self._prepare(preparation)
        for notice in effects.notices:
            self._tell(notice)
        for ended in effects.ended:
            _log_end(ended)
            tallies = self.engine.heaps[ended.heap].books.tallies
            tallies.reclaim_seconds.observe(self.now() - ended.began)
            self.on_ended(ended.session)
            if ended.cause is EndCause.CLOSED:
                self._closed.append(ended.session)
            if (end := self._ends.pop(ended.session, None)) is not None and not end.done():
                end.set_result(ended)
        self.after_performing()
        if self._idle and self.is_idle:
            for event in self._idle:
                event.set()
        self.refresh()

    def _wake(self, asker: _Asker, outcome: tuple[Block, ...] | CoreError) -> None:
        if isinstance(outcome, CoreError):
            if not asker.answer.done():
                asker.answer.set_exception(outcome)
        elif not asker.answer.done():
            asker.answer.set_result(outcome)
        else:  # cancelled, and granted before it could leave the queue
            self._give_back(asker, outcome)

    def _give_back(self, asker: _Asker, blocks: tuple[Block, ...]) -> None:
        """Release what was granted to a call that is gone, unless it can be made again and must then be answered."""
        if asker.sequence:
            return
        with contextlib.suppress(UnknownSession):  # ended meanwhile, and its blocks with it
            refs = [block.ref for block in blocks]
            self.perform(self.engine.release(asker.key, refs, now=self.now()).effects)

    def _prepare(self, preparation: Preparation) -> None:
        """Have blocks prepared in a thread, and go on when they are; when the daemon stops meanwhile, never."""
        memory = self.engine.heaps[preparation.heap].books.preparer.memory

        def done(work: asyncio.Future[OutOfMemory | None]) -> None:
            if not work.cancelled() and not self._stopped:
                outcome = self.engine.prepared(preparation.heap, preparation.ticket, work.result(), now=self.now())
                self.perform(outcome.effects)

        work = self._loop.run_in_executor(self._workers.pool, self._workers.prepare, memory, preparation)
        work.add_done_callback(done)

    def _tell(self, notice: Notice) -> None:
        if notice.session is not None:
            if isinstance(notice.event, SessionEndedEvent):
                self.on_dismissed(notice.session)
            watches = tuple(self._watches.get(notice.session, ()))
        else:
            watches = tuple(w for each in self._watches.values() for w in each if w.heap == notice.heap)
        for watch in watches:
            watch.put(notice.event)

    # -- waiting for memory

    async def answer(self, key: SessionKey, heap: str, waiting: Waiting, *, sequence: int) -> tuple[Block, ...]:
        """Wait for a queued request's blocks.

        When the waiting call is cancelled the request leaves the queue. If it had just been granted and its caller
        cannot ask again (it gave no sequence number), the blocks are released; otherwise the repeated call gets them.

        Raises:
            CoreError: whatever the engine refused the request for.
        """
        asker = _Asker(key, sequence, self._loop.create_future())
        self._askers[waiting.ticket] = asker
        self.perform(waiting.effects)
        try:
            return await asker.answer
        except asyncio.CancelledError:
            # A cancellation of the call cancels the answer first; `_wake` sees to what is granted between the two.
            self._askers.pop(waiting.ticket, None)
            self.perform(self.engine.abandon(heap, waiting.ticket, now=self.now()).effects)
            if not asker.answer.cancelled() and asker.answer.exception() is None:
                self._give_back(asker, asker.answer.result())
            raise

    def answered(self, session_id: SessionId, came: float) -> None:
        """Note that a request for leases, which came at `came`, is answered with them and had not to queue."""
        session = self.engine.sessions.find(session_id)
        if session is not None:
            session.books.tallies.acquire_seconds.observe(self.now() - came)

    # -- ending sessions

    async def close_session(self, key: SessionKey) -> Ended | None:
        """End a session because its client says so; return how it ended.

        None when it is in quarantine, or has just ended so: the goodbye on the attach connection was faster.

        Raises:
            UnknownSession, WrongSecret.
        """
        self.before_close(key.id)
        try:
            effects = self.engine.close_session(key, now=self.now()).effects
        except UnknownSession:
            if key.id in self._closed:
                return None
            raise
        return await self._ended(key.id, effects)

    async def evict(self, session_id: int) -> Ended | None:
        """End a session by force; return how it ended, None when it is in quarantine.

        Raises:
            NoSuchSession: there is none.
        """
        return await self._ended(SessionId(session_id), self.engine.evict(session_id, now=self.now()).effects)

    async def _ended(self, session_id: SessionId, effects: Effects) -> Ended | None:
        """Perform effects and wait until a session is forgotten, which takes a while when it has many blocks."""
        end = self._ends.setdefault(session_id, self._loop.create_future())
        self.perform(effects)
        session = self.engine.sessions.find(session_id)
        if session is not None and session.quarantined:
            return None
        return await asyncio.shield(end)

    # -- watching

    @contextlib.contextmanager
    def watch(self, session: SessionId, heap: str) -> Iterator[Watch]:
        """Subscribe to a session's events."""
        watch = Watch(session, heap)
        self._watches.setdefault(session, set()).add(watch)
        try:
            yield watch
        finally:
            self._watches[session].discard(watch)
            if not self._watches[session]:
                del self._watches[session]

    def end_watches(self) -> None:
        """Let every subscription end, because the daemon does."""
        for watches in tuple(self._watches.values()):
            for watch in tuple(watches):
                watch.end()

    # -- draining

    @property
    def is_idle(self) -> bool:
        """Whether no block is granted."""
        return not any(served.books.blocks for served in self.engine.heaps.values())

    async def idle(self, timeout: float) -> bool:  # noqa: ASYNC109 - a bound on waiting, not on the caller's time
        """Wait until no block is granted; return whether that came about within `timeout` seconds."""
        if self.is_idle:
            return True
        event = asyncio.Event()
        self._idle.add(event)
        try:
            async with asyncio.timeout(timeout):
                await event.wait()
        except TimeoutError:
            return False
        finally:
            self._idle.discard(event)
        return True

    # -- the timer

    def refresh(self) -> None:
        """Set the timer for what comes next; for operations that have no effects but a deadline."""
        when = self.engine.next_deadline(now=self.now())
        if when == self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = when
        if when is None:
            self._timer = None
        else:
            delay = max(0.0, when - self.now()) + _TIMER_SLACK_SECONDS
            self._timer = self._loop.call_later(delay, self._tick)

    def _tick(self) -> None:
        self._timer, self._timer_at = None, None
        self.perform(self.engine.tick(now=self.now()).effects)

    def stop(self) -> None:
        """Stop the timer, and wait until no thread touches a heap any more."""
        self._stopped = True
        self._workers.stop()
        if self._timer is not None:
            self._timer.cancel()


def _log_end(ended: Ended) -> None:
    level = logging.INFO if ended.cause is EndCause.CLOSED else logging.WARNING
    log.log(
        level,
        "session %d %r (pid %s, heap %s) ended: %s; %d leases, %d bytes reclaimed",
        ended.session,
        ended.name,
        ended.pid,
        ended.heap,
        ended.cause.value,
        ended.leases,
        ended.reclaimed_bytes,
    )
