"""How sessions begin and end, and what that does to what they hold. `sessions` has the table of their states.

What takes long, because a session has many blocks, is a chore (`chores`): giving them back at its end, and restating
them at the beginning of a quarantine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from slabd_server.core.deadlines import Deadlines
from slabd_server.core.errors import InvalidArgument
from slabd_server.core.ledger import Flag, Kind, Record
from slabd_server.core.records import (
    Access,
    Effects,
    EndCause,
    Ended,
    Notice,
    SessionEndedEvent,
    SessionId,
    SessionKey,
    SessionState,
    merged,
)
from slabd_server.core.sessions import SECRET_BYTES, Session, Sessions
from slabd_server.core.tallies import count_up

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slabd_server.core.chores import Chores
    from slabd_server.core.leasing import Leasing
    from slabd_server.core.records import Peer
    from slabd_server.core.served import ServedHeap

NAME_BYTES_MAX: Final = 128


class Lifecycle:
    """Opens and ends sessions on every heap."""

    def __init__(self, heaps: dict[str, ServedHeap], sessions: Sessions, leasing: Leasing, chores: Chores) -> None:
        self._heaps = heaps
        self._sessions = sessions
        self._leasing = leasing
        self._chores = chores
        self.deadlines: Deadlines[SessionId] = Deadlines(self._is_kept_alive)

    def open(
        self,
        served: ServedHeap,
        *,
        name: str,
        access: Access,
        peer: Peer,
        attached: bool,
        secret: bytes,
        now: float,
    ) -> Session:
        """Open a session.

        Raises:
            AccessDenied, TooManySessions, LedgerFull, InvalidArgument.
        """
        if len(name.encode()) > NAME_BYTES_MAX:
            raise InvalidArgument(f"a session's name has at most {NAME_BYTES_MAX} bytes, not {len(name.encode())}")
        if len(secret) != SECRET_BYTES:
            raise InvalidArgument(f"a session's secret has {SECRET_BYTES} bytes, not {len(secret)}")
        served.spec.policy.admit(served.books.name, peer, access)
        key = self._sessions.next_key(secret)
        served.books.ledger.reserve(1)
        slot, _ = served.books.ledger.add(_record(key, access, peer, now, attached=attached))
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
        self._sessions.add(session)
        served.session_counts[session.state] += 1
        served.books.tallies.sessions_started += 1
        if expires_at is not None:
            self.deadlines.set(expires_at, session.id)
        return session

    def keep_alive(self, session: Session, *, now: float) -> float | None:
        """Extend a session's life; return for how long, None when it needs no keep-alive."""
        if session.expires_at is None:
            return None
        ttl = self._heap_of(session).spec.session_ttl
        session.expires_at = now + ttl
        return ttl

    def close(self, session: Session, *, now: float) -> Effects:
        """End a session because its client says so: at once, or, while a child may hold its mapping, at the hang-up.

        The client has let go of its connection before it says so. If that has not hung up, a forked child inherited it,
        and with it the mapping.
        """
        self._note_closed(session)
        if session.attached and not session.hung_up:
            return self._quarantine(session, "its client has closed it", now=now)
        return self.end(session, session.cause or EndCause.CLOSED, now=now)

    def hang_up(self, session: Session, *, now: float, closed: bool = False) -> Effects:
        """Note that a session's connection is gone; `closed` if its client had closed it before."""
        session.hung_up = True
        if closed:
            self._note_closed(session)
        if session.process_gone or session.closed or not session.attached:
            return self.end(session, session.cause or EndCause.CLIENT_DIED, now=now)
        return self._quarantine(session, "its connection has hung up", now=now)

    def _note_closed(self, session: Session) -> None:
        session.cause = session.cause or EndCause.CLOSED
        session.closed = True

    def process_gone(self, session: Session, *, now: float) -> Effects:
        """Note that a session's process has exited."""
        session.process_gone = True
        if session.hung_up:
            return self.end(session, session.cause or EndCause.CLIENT_DIED, now=now)
        return Effects()

    def evict(self, session: Session, *, now: float) -> Effects:
        """End a session by force: at once, or, when a living process may touch its blocks, into quarantine."""
        if not session.attached or session.state is SessionState.ENDING:
            return self.end(session, EndCause.EVICTED, now=now)
        session.cause = session.cause or EndCause.EVICTED
        notice = Notice(session.books.name, session.id, SessionEndedEvent(session.cause))
        effects = self._quarantine(session, "an operator has ended it", now=now)
        return merged(effects, Effects(notices=(notice,)))

    def end(self, session: Session, cause: EndCause, *, now: float) -> Effects:
        """End a session: its leases and opens are over, and what that frees goes to those who wait."""
        if session.state is SessionState.ENDING:
            return Effects()
        served = self._heap_of(session)
        refused = self._leasing.refuse(served, session, "the session has ended")
        self._restate(session, SessionState.ENDING)
        served.quarantined_since.pop(session.id, None)
        self._chores.begin(session.id, self._take_apart(session, cause, now), now=now)
        return merged(refused, self._chores.collect(now), self._leasing.serve(served, now=now))

    def _take_apart(self, session: Session, cause: EndCause, began: float) -> Iterator[None]:
        """Give back what a session has, one block a step, and forget it with the last."""
        books = session.books
        leases, reclaimed = len(session.owned), 0
        for slot in session.owned:
            books.tallies.hold_seconds.observe(began - books.ledger.get(slot).time)
            reclaimed += books.disown(session, slot, sequence=0, cause=cause.value)
            yield
        for slot in tuple(session.held):
            reclaimed += books.unhold(session, slot, sequence=0, opens=None)
            yield
        books.forget(session)
        generation = books.ledger.get(session.ledger_slot).generation
        books.ledger.drop(session.ledger_slot, generation, session=session.id, sequence=0)
        self._sessions.remove(session)
        self._heap_of(session).session_counts[session.state] -= 1
        count_up(books.tallies.sessions_ended, cause.value)
        count_up(books.tallies.reclaimed_bytes, cause.value, reclaimed)
        ended = Ended(session.id, session.name, books.name, session.peer.pid, cause, leases, reclaimed, began)
        notice = Notice(books.name, session.id, SessionEndedEvent(cause))
        self._chores.owe(Effects(notices=(notice,), ended=(ended,)))

    def _quarantine(self, session: Session, why: str, *, now: float) -> Effects:
        if session.state is not SessionState.ACTIVE:
            return Effects()
        served = self._heap_of(session)
        refused = self._leasing.refuse(served, session, why)
        self._restate(session, SessionState.QUARANTINED)
        served.quarantined_since[session.id] = now
        self._chores.begin(session.id, session.books.quarantine(session), now=now)
        return merged(refused, self._leasing.serve(served, now=now))

    def _restate(self, session: Session, state: SessionState) -> None:
        counts = self._heap_of(session).session_counts
        counts[session.state] -= 1
        session.state = state
        counts[state] += 1

    def expire(self, now: float) -> Effects:
        """End the sessions whose keep-alive is overdue."""
        effects = []
        for session_id in self.deadlines.due(now):
            session = self._sessions.find(session_id)
            if session is None or session.expires_at is None:
                continue
            if session.expires_at > now:
                self.deadlines.set(session.expires_at, session_id)
            else:
                effects.append(self.end(session, EndCause.EXPIRED, now=now))
        return merged(*effects)

    def _heap_of(self, session: Session) -> ServedHeap:
        return self._heaps[session.books.name]

    def _is_kept_alive(self, _when: float, session_id: SessionId) -> bool:
        return self._sessions.find(session_id) is not None


def _record(key: SessionKey, access: Access, peer: Peer, now: float, *, attached: bool) -> Record:
    flags = (Flag.READ_ONLY if access is Access.READ_ONLY else 0) | (Flag.ATTACHED if attached else 0)
    low, high = int.from_bytes(key.secret[:8], "little"), int.from_bytes(key.secret[8:], "little")
    uid = 0 if peer.uid is None else peer.uid + 1
    return Record(Kind.SESSION, flags, 0, 0, low, high, peer.pid or 0, key.id, 0, now, uid)
