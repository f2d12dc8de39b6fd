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
from typing import TYPE_CHECKING, Final

from slabd_server.core.errors import CoreError, UnknownSession
from slabd_server.core.records import EndCause, PressureEvent, SessionEndedEvent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from slabd_server.core.engine import Engine
    from slabd_server.core.records import (
        Block,
        Effects,
        Ended,
        Event,
        Notice,
        SessionId,
        SessionKey,
        Ticket,
        Waiting,
    )

_WATCH_BACKLOG: Final = 256
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


class Dispatcher:
    """The engine's hands. `clock` is CLOCK_MONOTONIC, which every process of the machine shares."""

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.monotonic) -> None:
        self.engine: Final = engine
        self.now: Final = clock
        self._loop = asyncio.get_running_loop()
        self._answers: dict[Ticket, asyncio.Future[tuple[Block, ...]]] = {}
        self._watches: dict[SessionId, set[Watch]] = {}
        self._idle: set[asyncio.Event] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: float | None = None
        self.on_ended: Callable[[SessionId], None] = lambda _session: None

    def perform(self, effects: Effects) -> None:
        """Do what an operation brought about, and set the timer for what comes next."""
        for woken in effects.woken:
            answer = self._answers.pop(woken.ticket, None)
            if answer is None or answer.done():
                continue
            if isinstance(woken.outcome, CoreError):
                answer.set_exception(woken.outcome)
            else:
                answer.set_result(woken.outcome)
        for notice in effects.notices:
            self._tell(notice)
        for ended in effects.ended:
            _log_end(ended)
            self.on_ended(ended.session)
        if self._idle and self.is_idle:
            for event in self._idle:
                event.set()
        self.refresh()

    def _tell(self, notice: Notice) -> None:
        if notice.session is not None:
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
        answer: asyncio.Future[tuple[Block, ...]] = self._loop.create_future()
        self._answers[waiting.ticket] = answer
        self.perform(waiting.effects)
        try:
            return await answer
        except asyncio.CancelledError:
            self._answers.pop(waiting.ticket, None)
            self._abandon(key, heap, waiting.ticket, answer, sequence)
            raise

    def _abandon(
        self,
        key: SessionKey,
        heap: str,
        ticket: Ticket,
        answer: asyncio.Future[tuple[Block, ...]],
        sequence: int,
    ) -> None:
        self.perform(self.engine.abandon(heap, ticket, now=self.now()).effects)
        granted = answer.done() and not answer.cancelled() and answer.exception() is None
        if granted and sequence == 0:
            refs = [block.ref for block in answer.result()]
            with contextlib.suppress(UnknownSession):  # ended meanwhile, and its blocks with it
                self.perform(self.engine.release(key, refs, now=self.now()).effects)

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
        """Stop the timer."""
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
