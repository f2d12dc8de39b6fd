"""The engine: every operation on sessions, leases and handles, for every heap of the daemon.

Each method either raises an error of `errors` and has changed nothing, or has changed everything and returns a frozen
record with its effects: whom to wake, whom to tell, what to log. The caller performs them afterwards. It runs on one thread,
and no method waits, so each is atomic. Times are seconds of any clock that never goes back; `next_deadline` says when `tick`
is due.

The rules of waiting: a request that cannot be served waits until its timeout; a request that finds others waiting waits
behind them; after whatever may have given memory back, the head of the queue is tried, and the next, until one fails.
"""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Final, TypeVar, cast

from slabd_server.core import inspection
from slabd_server.core.books import NO_PURPOSE, Purpose, count_up, rejected_as
from slabd_server.core.deadlines import Deadlines
from slabd_server.core.errors import (
    CoreError,
    Draining,
    InvalidArgument,
    InvalidSize,
    NoMemory,
    OutOfMemory,
    TooLarge,
    UnknownHeap,
    UnknownSession,
    WaitTimeout,
)
from slabd_server.core.ledger import Flag, Kind, Record
from slabd_server.core.records import (
    Access,
    Block,
    BlockRef,
    Done,
    DrainingEvent,
    Effects,
    EndCause,
    Ended,
    Handle,
    Itemised,
    Leased,
    LeaseItem,
    Notice,
    Opened,
    Peer,
    PressureEvent,
    SessionEndedEvent,
    SessionId,
    SessionKey,
    SessionState,
    ShareItem,
    Ticket,
    Waiting,
    Woken,
    merged,
)
from slabd_server.core.sessions import SECRET_BYTES, Session, Sessions
from slabd_server.core.waiters import Waiter

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence

    from slabd_server.core.served import ServedHeap

_Item = TypeVar("_Item", bound="Hashable")
_Value = TypeVar("_Value")
_LeaseRequest = tuple[str, tuple[LeaseItem, ...], Purpose]

BATCH_MAX: Final = 4096
NAME_BYTES_MAX: Final = 128
LABEL_BYTES_MAX: Final = 128
CALL_SITE_BYTES_MAX: Final = 256
# Longer than any process lives, and short enough for every clock and timer to represent.
TIMEOUT_MAX_SECONDS: Final = 10 * 365 * 24 * 3600.0


class Engine:
    """All heaps, all sessions, all operations."""

    def __init__(self, heaps: Iterable[ServedHeap], *, session_limit: int = 10_000) -> None:
        self.heaps: Final = {heap.books.name: heap for heap in heaps}
        self.sessions: Final = Sessions(session_limit)
        self.draining = False
        self._tickets = count(1)
        self._session_deadlines: Deadlines[SessionId] = Deadlines(self._is_kept_alive)
        self._waiter_deadlines: Deadlines[tuple[str, Ticket]] = Deadlines(self._is_waiting)

    def __repr__(self) -> str:
        return f"<Engine {len(self.heaps)} heaps, {len(self.sessions)} sessions{', draining' if self.draining else ''}>"

    # -- sessions

    def open_session(
        self, heap: str, *, name: str, access: Access, peer: Peer, attached: bool, secret: bytes, now: float
    ) -> Session:
        """Open a session to a heap; an empty name means the first one.

        `secret` is SECRET_BYTES unguessable bytes. An attached session lives until `hang_up` and `process_gone`, another
        one by `keep_alive`.

        Raises:
            UnknownHeap, AccessDenied, TooManySessions, Draining, LedgerFull, InvalidArgument.
        """
        served = self._heap_named(heap)
        if len(name.encode()) > NAME_BYTES_MAX:
            raise InvalidArgument(f"a session's name has at most {NAME_BYTES_MAX} bytes, not {len(name.encode())}")
        if len(secret) != SECRET_BYTES:
            raise InvalidArgument(f"a session's secret has {SECRET_BYTES} bytes, not {len(secret)}")
        if self.draining:
            raise Draining("the daemon drains and admits no new session")
        served.spec.policy.admit(served.books.name, peer, access)
        key = self.sessions.next_key(secret)
        served.books.ledger.reserve(1)
        flags = (Flag.READ_ONLY if access is Access.READ_ONLY else 0) | (Flag.ATTACHED if attached else 0)
        low, high = int.from_bytes(secret[:8], "little"), int.from_bytes(secret[8:], "little")
        uid = 0 if peer.uid is None else peer.uid + 1
        slot = served.books.ledger.add(
            Record(Kind.SESSION, flags, 0, 0, low, high, peer.pid or 0, key.id, 0, now, uid),
        )
        expires_at = None if attached else now + served.spec.session_ttl
        session = Session(
            key,
            served.books,
            name=name,
            peer=peer,
            access=access,
            attached=attached,
            now=now,
            expires_at=expires_at,
            ledger_slot=slot,
        )
        self.sessions.add(session)
        served.session_counts[session.state] += 1
        served.books.tallies.sessions_started += 1
        if expires_at is not None:
            self._session_deadlines.set(expires_at, session.id)
        return session

    def keep_alive(self, key: SessionKey, *, now: float) -> float | None:
        """Extend a session's life; return for how long, None when it needs no keep-alive.

        Raises:
            UnknownSession, WrongSecret.
        """
        session = self.sessions.authenticate(key)
        if session.expires_at is None:
            return None
        ttl = self._heap_of(session).spec.session_ttl
        session.expires_at = now + ttl
        return ttl

    def close_session(self, key: SessionKey, *, now: float) -> tuple[Ended, Effects]:
        """End a session because its client says so.

        Raises:
            UnknownSession, WrongSecret.
        """
        session = self.sessions.authenticate(key)
        effects = self._end(session, EndCause.CLOSED, now=now)
        return effects.ended[0], effects

    def hang_up(self, session_id: SessionId, *, now: float) -> Done:
        """Note that a session's connection is gone. A session that has ended already is no error."""
        session = self.sessions.find(session_id)
        if session is None:
            return Done()
        session.hung_up = True
        if session.process_gone or not session.attached:
            return Done(self._end(session, session.cause or EndCause.CLIENT_DIED, now=now))
        return Done(self._quarantine(session, now=now))

    def process_gone(self, session_id: SessionId, *, now: float) -> Done:
        """Note that a session's process has exited. Children may live on with its connection and its mapping."""
        session = self.sessions.find(session_id)
        if session is None:
            return Done()
        session.process_gone = True
        if session.hung_up:
            return Done(self._end(session, session.cause or EndCause.CLIENT_DIED, now=now))
        return Done()

    def evict(self, session_id: int, *, now: float) -> tuple[int, int, Effects]:
        """End a session by force; return the bytes that became free, and those a living process keeps in quarantine.

        Raises:
            UnknownSession: there is none.
        """
        session = self.sessions.find(session_id)
        if session is None:
            raise UnknownSession(f"no session {session_id}")
        if not session.attached or (session.hung_up and session.process_gone):
            effects = self._end(session, EndCause.EVICTED, now=now)
            return effects.ended[0].reclaimed_bytes, 0, effects
        session.cause = EndCause.EVICTED
        notice = Notice(session.books.name, session.id, SessionEndedEvent(EndCause.EVICTED))
        effects = self._quarantine(session, now=now)
        return 0, session.owned_bytes, merged(effects, Effects(notices=(notice,)))

    def _end(self, session: Session, cause: EndCause, *, now: float) -> Effects:
        served, books = self._heap_of(session), session.books
        refused = self._refuse_waiters(session, "the session has ended")
        leases, reclaimed = len(session.owned), 0
        for slot in session.owned:
            reclaimed += books.disown(session, slot, sequence=0, cause=cause.value)
        for slot in tuple(session.held):
            reclaimed += books.unhold(session, slot, sequence=0, opens=None)
        books.forget(session)
        books.ledger.drop(session.ledger_slot, session=session.id, sequence=0)
        self.sessions.remove(session)
        served.session_counts[session.state] -= 1
        count_up(books.tallies.sessions_ended, cause.value)
        count_up(books.tallies.reclaimed_bytes, cause.value, reclaimed)
        ended = Ended(session.id, session.name, books.name, session.peer.pid, cause, leases, reclaimed)
        notice = Notice(books.name, session.id, SessionEndedEvent(cause))
        return merged(Effects(refused, (notice,), (ended,)), self._serve(served, now=now))

    def _quarantine(self, session: Session, *, now: float) -> Effects:
        if session.quarantined:
            return Effects()
        served = self._heap_of(session)
        refused = self._refuse_waiters(session, "the session's connection has hung up")
        served.session_counts[session.state] -= 1
        session.state = SessionState.QUARANTINED
        served.session_counts[session.state] += 1
        session.books.quarantine(session)
        return merged(Effects(refused), self._serve(served, now=now))

    def _refuse_waiters(self, session: Session, why: str) -> tuple[Woken, ...]:
        waiters = self._heap_of(session).waiters
        tickets = tuple(session.tickets)
        for ticket in tickets:
            waiters.remove(ticket)
        return tuple(Woken(ticket, UnknownSession(f"session {session.id}: {why}")) for ticket in tickets)

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
        _check_batch(items)
        _check_sizes(items)
        _check_purpose(purpose)
        if not timeout >= 0:  # not `timeout < 0`, which NaN would pass
            raise InvalidArgument(f"a timeout is at least 0 seconds, not {timeout}")
        request = ("lease", tuple(items), purpose)
        answer = session.recall(sequence, request)
        if isinstance(answer, Leased):
            return answer
        if self.draining:
            raise Draining("the daemon drains and grants no new lease")
        served = self._heap_of(session)
        served.books.tallies.lease_requests += 1
        try:
            blocks = self._grant(served, session, request, sequence=sequence, now=now)
        except OutOfMemory as error:
            if timeout <= 0:
                count_up(served.books.tallies.rejections, rejected_as(error))
                raise type(error)(f"{error}; {inspection.who_holds(self, served, now)}") from None
            return self._enqueue(served, session, request, sequence=sequence, now=now, timeout=timeout)
        except NoMemory as error:
            count_up(served.books.tallies.rejections, rejected_as(error))
            raise
        return Leased(blocks)

    def _grant(
        self, served: ServedHeap, session: Session, request: _LeaseRequest, *, sequence: int, now: float
    ) -> tuple[Block, ...]:
        _, items, _ = request
        sizes = [served.books.allocator.usable_size(item.size, item.alignment)[1] for item in items]
        if sum(sizes) > served.books.total_bytes:
            raise TooLarge(
                f"asked {sum(sizes)} bytes in {len(items)} blocks, the whole heap has {served.books.total_bytes}"
            )
        if served.waiters:
            raise OutOfMemory(
                f"asked {sum(sizes)} bytes; {len(served.waiters)} earlier requests wait for {served.waiters.wanted_bytes}"
            )
        return self._grant_now(served, session, request, sequence=sequence, now=now)

    def _grant_now(
        self, served: ServedHeap, session: Session, request: _LeaseRequest, *, sequence: int, now: float
    ) -> tuple[Block, ...]:
        _, items, purpose = request
        blocks = served.books.grant(session, items, purpose, sequence=sequence, now=now)
        session.remember(sequence, request, Leased(blocks))
        return blocks

    def _enqueue(
        self,
        served: ServedHeap,
        session: Session,
        request: _LeaseRequest,
        *,
        sequence: int,
        now: float,
        timeout: float,
    ) -> Waiting:
        served.waiters.admit()
        _, items, purpose = request
        ticket = Ticket(next(self._tickets))
        deadline = now + min(timeout, TIMEOUT_MAX_SECONDS)
        served.waiters.add(Waiter(ticket, session, items, purpose, sequence, now, deadline))
        self._waiter_deadlines.set(deadline, (served.books.name, ticket))
        event = PressureEvent(len(served.waiters), served.waiters.wanted_bytes)
        return Waiting(ticket, Effects(notices=(Notice(served.books.name, None, event),)))

    def abandon(self, heap: str, ticket: Ticket, *, now: float) -> Done:
        """Take a request out of the queue because nobody waits for its answer any more."""
        served = self._heap_named(heap)
        if served.waiters.remove(ticket) is None:
            return Done()
        return Done(self._serve(served, now=now))

    def release(self, key: SessionKey, refs: Sequence[BlockRef], *, now: float, sequence: int = 0) -> Itemised[None]:
        """End leases that this session owns. The batch is itemised.

        Raises:
            UnknownSession, WrongSecret, InvalidArgument, SequenceReused.
        """
        session = self.sessions.authenticate(key)

        def release_one(ref: BlockRef) -> None:
            session.books.owned(session, ref)
            freed = session.books.disown(session, ref.slot, sequence=sequence, cause="released")
            count_up(session.books.tallies.reclaimed_bytes, "released", freed)

        return self._itemised(session, "release", refs, release_one, sequence=sequence, now=now)

    def _serve(self, served: ServedHeap, *, now: float) -> Effects:
        """Grant what can be granted to those who wait, in their order."""
        woken = []
        while (head := served.waiters.head) is not None:
            request = ("lease", head.items, head.purpose)
            try:
                blocks = self._grant_now(served, head.session, request, sequence=head.sequence, now=now)
            except NoMemory:
                break
            served.waiters.remove(head.ticket)
            woken.append(Woken(head.ticket, blocks))
        return Effects(tuple(woken))

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
        session.remember(sequence, request, Itemised(tuple(results)))
        return Itemised(tuple(results), self._serve(self._heap_of(session), now=now))

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

    def next_deadline(self) -> float | None:
        """Return when `tick` is due, None while nothing is."""
        deadlines = [self._session_deadlines.next(), self._waiter_deadlines.next()]
        deadlines += [served.shares.deadlines.next() for served in self.heaps.values()]
        return min((when for when in deadlines if when is not None), default=None)

    def tick(self, *, now: float) -> Done:
        """Let everything expire that is due: requests that wait, handles, sessions without keep-alive."""
        effects = [Effects(self._expired_waiters(now)), *self._expired_sessions(now)]
        effects += [Effects(notices=tuple(served.shares.expire(now))) for served in self.heaps.values()]
        effects += [self._serve(served, now=now) for served in self.heaps.values()]
        return Done(merged(*effects))

    def _expired_waiters(self, now: float) -> tuple[Woken, ...]:
        woken = []
        for heap, ticket in self._waiter_deadlines.due(now):
            served = self.heaps[heap]
            waiter = served.waiters.remove(ticket)
            if waiter is None:
                continue
            count_up(served.books.tallies.rejections, "timeout")
            message = (
                f"asked {waiter.wanted_bytes} bytes in {len(waiter.items)} blocks and waited {now - waiter.since:.3f} s; "
                f"free {served.books.available_bytes}, largest free block "
                f"{served.books.allocator.largest_free_block_bytes}; {inspection.who_holds(self, served, now)}"
            )
            woken.append(Woken(ticket, WaitTimeout(message)))
        return tuple(woken)

    def _expired_sessions(self, now: float) -> list[Effects]:
        effects = []
        for session_id in self._session_deadlines.due(now):
            session = self.sessions.find(session_id)
            if session is None or session.expires_at is None:
                continue
            if session.expires_at > now:
                self._session_deadlines.set(session.expires_at, session_id)
            else:
                effects.append(self._end(session, EndCause.EXPIRED, now=now))
        return effects

    def drain(self, *, resume: bool = False) -> Done:
        """Take no new work, or take it again; requests that wait are refused."""
        self.draining = not resume
        if resume:
            return Done()
        woken, notices = [], []
        for served in self.heaps.values():
            for waiter in served.waiters:
                served.waiters.remove(waiter.ticket)
                woken.append(Woken(waiter.ticket, Draining("the daemon drains and grants no new lease")))
            notices.append(Notice(served.books.name, None, DrainingEvent()))
        return Done(Effects(tuple(woken), tuple(notices)))

    def _heap_named(self, name: str) -> ServedHeap:
        served = self.heaps.get(name) if name else next(iter(self.heaps.values()))
        if served is None:
            raise UnknownHeap(f"no heap {name!r}; there are {', '.join(self.heaps)}")
        return served

    def _heap_of(self, session: Session) -> ServedHeap:
        return self.heaps[session.books.name]

    def _is_kept_alive(self, _when: float, session_id: SessionId) -> bool:
        return self.sessions.find(session_id) is not None

    def _is_waiting(self, _when: float, key: tuple[str, Ticket]) -> bool:
        heap, ticket = key
        return ticket in self.heaps[heap].waiters


def _check_batch(items: Sequence[Hashable]) -> None:
    if not 1 <= len(items) <= BATCH_MAX:
        raise InvalidArgument(f"a batch has 1 to {BATCH_MAX} items, not {len(items)}")


def _check_sizes(items: Sequence[LeaseItem]) -> None:
    for item in items:
        if item.size < 1:
            raise InvalidSize(f"a block has at least one byte, not {item.size}")


def _check_purpose(purpose: Purpose) -> None:
    for what, text, most in (
        ("label", purpose.label, LABEL_BYTES_MAX),
        ("call site", purpose.call_site, CALL_SITE_BYTES_MAX),
    ):
        if len(text.encode()) > most:
            raise InvalidArgument(f"a {what} has at most {most} bytes, not {len(text.encode())}")
