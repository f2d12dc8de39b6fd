"""The engine: every operation on sessions, leases and handles, for every heap of the daemon.

Each method either raises an error of `errors` and has changed nothing, or has changed everything and returns a frozen
record with its effects: whom to wake, whom to tell, what to log. The caller performs them afterwards. It runs on one
thread, and no method waits, so each is atomic. Times are seconds of any clock that never goes back; `next_deadline`
says when `tick` is due.

Here calls are admitted: the session authenticated, the request checked, a repeated call recognised. `lifecycle`,
`leasing` and `shares` do the work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar, cast

from slabd_server.core.chores import Chores
from slabd_server.core.errors import (
    CoreError,
    Draining,
    InvalidArgument,
    InvalidSize,
    NoSuchSession,
    UnknownHeap,
)
from slabd_server.core.leasing import Leasing
from slabd_server.core.lifecycle import Lifecycle
from slabd_server.core.posts import Posts
from slabd_server.core.purposes import NO_PURPOSE, Purpose
from slabd_server.core.records import (
    Access,
    Block,
    BlockRef,
    Done,
    DrainingEvent,
    Effects,
    Handle,
    Itemised,
    Leased,
    LeaseItem,
    Notice,
    Opened,
    Peer,
    SessionId,
    SessionKey,
    ShareItem,
    SlotId,
    Ticket,
    Waiting,
    merged,
)
from slabd_server.core.sessions import Session, Sessions
from slabd_server.core.tallies import count_up
from slabd_server.core.waiters import LeaseRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

    from slabd_server.core.errors import OutOfMemory
    from slabd_server.core.reclaim import Reclaimer
    from slabd_server.core.served import ServedHeap

_Item = TypeVar("_Item", bound="Hashable")
_Value = TypeVar("_Value")

BATCH_MAX: Final = 4096
LABEL_BYTES_MAX: Final = 128
CALL_SITE_BYTES_MAX: Final = 256


class Engine:
    """All heaps, all sessions, all operations."""

    def __init__(self, heaps: Iterable[ServedHeap], *, session_limit: int = 10_000) -> None:
        self.heaps: Final = {heap.books.name: heap for heap in heaps}
        self.sessions: Final = Sessions(session_limit)
        self.draining = False
        self._chores = Chores()
        self._leasing = Leasing(self.heaps, self._chores)
        self._lifecycle = Lifecycle(self.heaps, self.sessions, self._leasing, self._chores)
        self.posts: Final = Posts(self.heaps)

    def reclaim_by(self, reclaimer: Reclaimer) -> None:
        """Have memory that clients do not use reclaimed before a heap is called full."""
        self._leasing.reclaimer = reclaimer

    def __repr__(self) -> str:
        return f"<Engine {len(self.heaps)} heaps, {len(self.sessions)} sessions{', draining' if self.draining else ''}>"

    # -- sessions

    def open_session(
        self, heap: str, *, name: str, access: Access, peer: Peer, attached: bool, secret: bytes, now: float
    ) -> Session:
        """Open a session to a heap; an empty name means the first one.

        `secret` is SECRET_BYTES unguessable bytes. An attached session lives until `hang_up` and `process_gone`,
        another one by `keep_alive`.

        Raises:
            UnknownHeap, AccessDenied, TooManySessions, Draining, LedgerFull, InvalidArgument.
        """
        served = self.heap_named(heap)
        if self.draining:
            raise Draining("the daemon drains and admits no new session")
        return self._lifecycle.open(
            served, name=name, access=access, peer=peer, attached=attached, secret=secret, now=now
        )

    def keep_alive(self, key: SessionKey, *, now: float) -> float | None:
        """Extend a session's life; return for how long, None when it needs no keep-alive.

        Raises:
            UnknownSession, WrongSecret.
        """
        return self._lifecycle.keep_alive(self.sessions.authenticate(key), now=now)

    def close_session(self, key: SessionKey, *, now: float) -> Done:
        """End a session because its client says so. The client of an attached one has let go of its connection before.

        Afterwards the session has ended, is ENDING, or is in quarantine because a forked child holds its connection.

        Raises:
            UnknownSession, WrongSecret.
        """
        return Done(self._lifecycle.close(self.sessions.recognise(key), now=now))

    def hang_up(self, session_id: SessionId, *, now: float, closed: bool = False) -> Done:
        """Note that a session's connection is gone. A session that has ended already is no error.

        With `closed` its client had said before that it will not touch its blocks again.
        """
        session = self.sessions.find(session_id)
        return Done() if session is None else Done(self._lifecycle.hang_up(session, now=now, closed=closed))

    def goodbye(self, session_id: SessionId, *, now: float) -> Done:
        """Note that a session's client will not touch its blocks again, while its connection is still held."""
        session = self.sessions.find(session_id)
        return Done() if session is None else Done(self._lifecycle.close(session, now=now))

    def process_gone(self, session_id: SessionId, *, now: float) -> Done:
        """Note that a session's process has exited. Children may live on with its connection and its mapping."""
        session = self.sessions.find(session_id)
        return Done() if session is None else Done(self._lifecycle.process_gone(session, now=now))

    def evict(self, session_id: int, *, now: float) -> Done:
        """End a session by force. Afterwards it has ended, is ENDING, or is in quarantine until its process is gone.

        Raises:
            NoSuchSession: there is none.
        """
        session = self.sessions.find(session_id)
        if session is None:
            raise NoSuchSession(f"no session {session_id}")
        return Done(self._lifecycle.evict(session, now=now))

    # -- leases

    def lease(
        self,
        key: SessionKey,
        items: Sequence[LeaseItem],
        *,
        now: float,
        timeout: float = 0.0,
        purpose: Purpose = NO_PURPOSE,
        sequence: int = 0,
    ) -> Leased | Waiting:
        """Lease a block for each item, all or none, or wait for up to `timeout` seconds.

        Raises:
            UnknownSession, WrongSecret, ReadOnly, Draining, InvalidArgument, SequenceInFlight, SequenceReused: always.
            TooLarge, QueueFull, LedgerFull: however long the timeout.
            OutOfMemory, Fragmented: without a timeout.
        """
        session = self.sessions.authenticate(key)
        session.may_write()
        _check_lease(items, purpose, timeout)
        request = LeaseRequest(session, tuple(items), purpose, sequence)
        if (answer := session.recall(sequence, request.fingerprint)) is not None:
            return cast("Leased", answer)
        if self.draining:
            self._leasing.count_drained(session)
            raise Draining("the daemon drains and grants no new lease")
        return self._leasing.lease(self._heap_of(session), request, timeout=timeout, now=now)

    def abandon(self, heap: str, ticket: Ticket, *, now: float) -> Done:
        """Forget a request because nobody waits for its answer any more, in the queue or while it is prepared."""
        return Done(self._leasing.abandon(self.heap_named(heap), ticket, now=now))

    def prepared(self, heap: str, ticket: Ticket, error: OutOfMemory | None, *, now: float) -> Done:
        """Note that the blocks for a request have been prepared (`Effects.preparations`), or why they cannot be."""
        return Done(self._leasing.prepared(self.heap_named(heap), ticket, error, now=now))

    def release(self, key: SessionKey, refs: Sequence[BlockRef], *, now: float, sequence: int = 0) -> Itemised[None]:
        """End leases that this session owns. The batch is itemised.

        Raises:
            UnknownSession, WrongSecret, InvalidArgument, SequenceReused.
        """
        session = self.sessions.authenticate(key)

        def release_one(ref: BlockRef) -> None:
            record = session.books.owned(session, ref)
            session.books.tallies.hold_seconds.observe(now - record.time)
            freed = session.books.disown(session, ref.slot, sequence=sequence, cause="released")
            count_up(session.books.tallies.reclaimed_bytes, "released", freed)

        return self._itemised(session, "release", refs, release_one, sequence=sequence, now=now)

    # -- hand-off

    def share(self, key: SessionKey, items: Sequence[ShareItem], *, now: float, sequence: int = 0) -> Itemised[Handle]:
        """Make handles for blocks that this session owns. The batch is itemised.

        Raises:
            UnknownSession, WrongSecret, InvalidArgument, SequenceReused.
        """
        session = self.sessions.authenticate(key)
        shares = self._heap_of(session).shares

        def share_one(item: ShareItem) -> Handle:
            return shares.share(session, item, sequence=sequence, now=now)

        return self._itemised(session, "share", items, share_one, sequence=sequence, now=now)

    def open(self, key: SessionKey, handles: Sequence[Handle], *, now: float, sequence: int = 0) -> Itemised[Opened]:
        """Open handles that were made by any session of the same heap. The batch is itemised.

        Raises:
            UnknownSession, WrongSecret, InvalidArgument, SequenceReused.
        """
        session = self.sessions.authenticate(key)
        shares = self._heap_of(session).shares

        def open_one(handle: Handle) -> Opened:
            return shares.open(session, handle, sequence=sequence, now=now)

        return self._itemised(session, "open", handles, open_one, sequence=sequence, now=now)

    def close(self, key: SessionKey, refs: Sequence[BlockRef], *, now: float, sequence: int = 0) -> Itemised[None]:
        """Close blocks that this session has open. The batch is itemised.

        Raises:
            UnknownSession, WrongSecret, InvalidArgument, SequenceReused.
        """
        session = self.sessions.authenticate(key)
        shares = self._heap_of(session).shares

        def close_one(ref: BlockRef) -> None:
            shares.close(session, ref, sequence=sequence)

        return self._itemised(session, "close", refs, close_one, sequence=sequence, now=now)

    def _itemised(
        self,
        session: Session,
        verb: str,
        items: Sequence[_Item],
        one: Callable[[_Item], _Value],
        *,
        sequence: int,
        now: float,
    ) -> Itemised[_Value]:
        _check_batch(items)
        request = (verb, tuple(items))
        if (answer := session.recall(sequence, request)) is not None:
            return cast("Itemised[_Value]", answer)
        results: list[_Value | CoreError] = []
        for item in items:
            try:
                results.append(one(item))
            except CoreError as error:
                results.append(error.with_traceback(None))
        outcome = Itemised(tuple(results))
        session.remember(sequence, request, outcome)
        return Itemised(outcome.results, self._leasing.serve(self._heap_of(session), now=now))

    def locate(self, key: SessionKey, ref: BlockRef, *, writable: bool) -> Block:
        """Return a block whose bytes this session may read, or write.

        Raises:
            UnknownSession, WrongSecret, ReadOnly.
            UnknownBlock: the session has not leased it (nor, for reading, opened it).
        """
        session = self.sessions.authenticate(key)
        if writable:
            session.may_write()
        books = session.books
        may_read = not writable and session.id in books.holds.get(ref.slot, {})
        record = books.find(ref) if may_read else books.owned(session, ref)
        return Block(ref, record.a, record.b, record.c)

    # -- time and operation

    def next_deadline(self, *, now: float) -> float | None:
        """Return when `tick` is due, None while nothing is."""
        deadlines = [self._lifecycle.deadlines.next(), self._leasing.deadlines.next(), self._chores.due]
        deadlines.append(self._leasing.next_search)
        deadlines += [served.shares.deadlines.next() for served in self.heaps.values()]
        deadlines += [served.decay.next(now) for served in self.heaps.values()]
        return min((when for when in deadlines if when is not None), default=None)

    def tick(self, *, now: float) -> Done:
        """Do what is due: requests that wait, handles, sessions and free memory expire; chores and searches go on."""
        self._chores.tick(now)
        self._leasing.search()
        effects = [self._chores.collect(now), self._leasing.expire(now), self._lifecycle.expire(now)]
        effects += [Effects(notices=tuple(served.shares.expire(now))) for served in self.heaps.values()]
        effects += [self._leasing.serve(served, now=now) for served in self.heaps.values()]
        for served in self.heaps.values():
            served.decay.tick(now)
        return Done(merged(*effects))

    def serve(self, heap: str, *, now: float) -> Done:
        """Grant what can be granted to those who wait: for who has given memory back by `posts` or `sweep`."""
        return Done(self._leasing.serve(self.heaps[heap], now=now))

    def finish_chores(self, *, now: float) -> None:
        """Do at once what remains of all chores."""
        self._chores.finish(now)

    @property
    def closing(self) -> bool:
        """Whether there are CLOSING blocks, which `sweep` would free."""
        return any(served.books.closing for served in self.heaps.values())

    def sweep(self, closing: Mapping[str, Sequence[SlotId]], *, now: float) -> Done:
        """Free CLOSING blocks that nobody keeps. The caller has made sure that nobody can come for them any more."""
        for heap, slots in closing.items():
            self.heaps[heap].books.sweep(slots)
        return Done(merged(*(self._leasing.serve(self.heaps[heap], now=now) for heap in closing)))

    def drain(self, *, resume: bool = False) -> Done:
        """Take no new work, or take it again; requests that wait are refused."""
        self.draining = self.posts.draining = not resume
        if resume:
            return Done()
        notices = tuple(Notice(heap, None, DrainingEvent()) for heap in self.heaps)
        return Done(merged(self._leasing.refuse_all(), Effects(notices=notices)))

    def is_busy_with(self, session: Session) -> bool:
        """Whether a chore of this session is under way."""
        return session.id in self._chores

    def heap_named(self, name: str) -> ServedHeap:
        """Return a heap by its name, the first one for an empty name.

        Raises:
            UnknownHeap: there is none.
        """
        served = self.heaps.get(name) if name else next(iter(self.heaps.values()))
        if served is None:
            raise UnknownHeap(f"no heap {name!r}; there are {', '.join(self.heaps)}")
        return served

    def _heap_of(self, session: Session) -> ServedHeap:
        return self.heaps[session.books.name]


def _check_batch(items: Sequence[Hashable]) -> None:
    if not 1 <= len(items) <= BATCH_MAX:
        raise InvalidArgument(f"a batch has 1 to {BATCH_MAX} items, not {len(items)}")


def _check_lease(items: Sequence[LeaseItem], purpose: Purpose, timeout: float) -> None:
    _check_batch(items)
    for item in items:
        if item.size < 1:
            raise InvalidSize(f"a block has at least one byte, not {item.size}")
    if not timeout >= 0:  # not `timeout < 0`, which NaN would pass
        raise InvalidArgument(f"a timeout is at least 0 seconds, not {timeout}")
    for what, text, most in (
        ("label", purpose.label, LABEL_BYTES_MAX),
        ("call site", purpose.call_site, CALL_SITE_BYTES_MAX),
    ):
        if len(text.encode()) > most:
            raise InvalidArgument(f"a {what} has at most {most} bytes, not {len(text.encode())}")
