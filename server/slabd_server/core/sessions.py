"""Sessions: a client process's relation to one heap, and what the core remembers of it.

A session is ACTIVE until it can no longer be talked to: its connection has hung up, its client or an operator has ended
it, or, for sessions over gRPC alone, its keep-alive is overdue. What happens then depends on whether a living process
may still touch the heap:

===========  ==========  ==========  ============  =============================================================
attached     closed      hung up     process gone  afterwards
===========  ==========  ==========  ============  =============================================================
no           yes         -           -             ENDING, and then forgotten
yes          no          no          no            ACTIVE
yes          no          no          yes           ACTIVE: a forked child holds the connection and the mapping
yes          no          yes         no            QUARANTINED: the process lives and has the heap mapped
yes          no          yes         yes           ENDING, and then forgotten
yes          yes         no          -             QUARANTINED: a forked child holds the connection and the mapping
yes          yes         yes         -             ENDING, and then forgotten
===========  ==========  ==========  ============  =============================================================

`closed` means that the process has said itself that it will not touch the heap again; only its children may. An
attached session that an operator ends is QUARANTINED until the kernel says that it is over. ENDING lasts as long as it
takes to give back what the session has: see `chores`.

This module owns the table of sessions and their answers to repeated calls. It does not free anything: `engine` does.
"""

from __future__ import annotations

import hmac
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

from slabd_server.core.accounts import Account
from slabd_server.core.errors import (
    InvariantBroken,
    ReadOnly,
    SequenceInFlight,
    SequenceReused,
    TooManySessions,
    UnknownSession,
    WrongSecret,
)
from slabd_server.core.records import Access, Peer, SessionId, SessionKey, SessionState, SlotId

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    from slabd_server.core.books import Books
    from slabd_server.core.records import EndCause, Itemised, Leased, Ticket

REMEMBERED_ANSWERS: Final = 1024
REMEMBERED_BYTES: Final = 1 << 20
SECRET_BYTES: Final = 16


class Session(Account):
    """One session."""

    __slots__ = (
        "_remembered_bytes",
        "access",
        "answers",
        "attached",
        "books",
        "cause",
        "closed",
        "expires_at",
        "hung_up",
        "in_flight",
        "ledger_slot",
        "name",
        "opened_at",
        "peer",
        "process_gone",
        "secret",
        "state",
        "tickets",
    )

    def __init__(  # noqa: PLR0913 - a record's fields
        self,
        key: SessionKey,
        books: Books,
        *,
        name: str,
        peer: Peer,
        access: Access,
        attached: bool,
        now: float,
        expires_at: float | None,
        ledger_slot: SlotId,
    ) -> None:
        super().__init__(key.id, peer.uid, books.links)
        self.secret: Final = key.secret
        self.books: Final = books
        self.name: Final = name
        self.peer: Final = peer
        self.access: Final = access
        self.attached: Final = attached
        self.opened_at: Final = now
        self.ledger_slot: Final = ledger_slot
        self.expires_at = expires_at
        self.state = SessionState.ACTIVE
        self.closed = False
        self.hung_up = False
        self.process_gone = False
        self.cause: EndCause | None = None
        self.tickets: dict[Ticket, None] = {}
        self.in_flight: dict[int, Ticket] = {}
        self.answers: OrderedDict[int, tuple[int, object, int]] = OrderedDict()
        self._remembered_bytes = 0

    def __repr__(self) -> str:
        return f"<Session {self.id} {self.name!r} {self.state.value}: {len(self.owned)} leases, {len(self.held)} opens>"

    @property
    def quarantined(self) -> bool:
        """Whether only a process that cannot be talked to keeps what this session has."""
        return self.state is SessionState.QUARANTINED

    def may_write(self) -> None:
        """Raise ReadOnly when the session may only open and read."""
        if self.access is Access.READ_ONLY:
            raise ReadOnly(f"session {self.id} ({self.name}) is read-only: it may open, read and close")

    def recall(self, sequence: int, request: Hashable) -> object | None:
        """Return the answer this sequence number had before, None for a new one.

        Raises:
            SequenceInFlight: the first call with this number has no answer yet.
            SequenceReused: the number was used by a different request.
        """
        if sequence == 0:
            return None
        if sequence in self.in_flight:
            raise SequenceInFlight(f"sequence number {sequence} of session {self.id} is still under way")
        if (known := self.answers.get(sequence)) is None:
            return None
        fingerprint, answer, _ = known
        if fingerprint != hash(request):
            raise SequenceReused(f"sequence number {sequence} of session {self.id} was used by a different request")
        return answer

    def remember(self, sequence: int, request: Hashable, answer: Leased | Itemised[Any]) -> None:
        """Keep an answer for a repeated call; the oldest ones are forgotten when they get too many or too large.

        The last one is always kept, however large: its caller may be about to repeat the call.
        """
        if sequence == 0:
            return
        size = answer.memory_bytes
        self.answers[sequence] = (hash(request), answer, size)
        self._remembered_bytes += size
        while len(self.answers) > REMEMBERED_ANSWERS or (
            self._remembered_bytes > REMEMBERED_BYTES and len(self.answers) > 1
        ):
            _, (_, _, forgotten) = self.answers.popitem(last=False)
            self._remembered_bytes -= forgotten

    def check(self) -> None:
        """Raise InvariantBroken when the session contradicts itself or the ledger. Linear in its blocks."""
        self.owned.check()
        owned_bytes = 0
        for slot in self.owned:
            record = self.books.ledger.get(slot)
            if record.session != self.id:
                raise InvariantBroken(
                    f"session {self.id} has slot {slot} in its chain, the ledger says {record.session}"
                )
            owned_bytes += record.b
        if not 0 <= self.cached_bytes <= owned_bytes or not 0 <= self.cached_blocks <= len(self.owned):
            raise InvariantBroken(
                f"session {self.id} says that {self.cached_bytes} bytes in {self.cached_blocks} blocks are cached, "
                f"of {owned_bytes} in {len(self.owned)}"
            )
        if owned_bytes != self.owned_bytes:
            raise InvariantBroken(f"session {self.id} owns {owned_bytes} bytes, its counter says {self.owned_bytes}")
        for slot in self.held:
            if self.id not in self.books.holds.get(slot, {}):
                raise InvariantBroken(f"session {self.id} holds slot {slot}, the books do not know")
        self._check_calls()
        if self.state is not SessionState.ACTIVE and self.tickets:
            raise InvariantBroken(f"session {self.id} waits although it is {self.state.value}")
        if self.quarantined and not self.attached:
            raise InvariantBroken(f"session {self.id} is in quarantine but is not attached")

    def _check_calls(self) -> None:
        for number, ticket in self.in_flight.items():
            if ticket not in self.tickets:
                raise InvariantBroken(
                    f"call {number} of session {self.id} has ticket {ticket}, which it does not wait with"
                )
        remembered = sum(size for _, _, size in self.answers.values())
        if remembered != self._remembered_bytes:
            raise InvariantBroken(
                f"session {self.id} remembers {remembered} bytes of answers, its counter says {self._remembered_bytes}"
            )


class Sessions:
    """Every session of the daemon, by its number."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._by_id: dict[SessionId, Session] = {}
        self._last_id = 0

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Session]:
        return iter(tuple(self._by_id.values()))

    def next_key(self, secret: bytes) -> SessionKey:
        """Return the key for one more session.

        Raises:
            TooManySessions: the daemon admits no further one.
        """
        if len(self._by_id) >= self._limit:
            raise TooManySessions(f"the daemon has {len(self._by_id)} sessions and admits no more")
        return SessionKey(SessionId(self._last_id + 1), secret)

    def add(self, session: Session) -> None:
        """Add a session made with the key of `next_key`."""
        self._by_id[session.id] = session
        self._last_id = session.id

    def remove(self, session: Session) -> None:
        """Forget a session."""
        del self._by_id[session.id]

    def find(self, session_id: int) -> Session | None:
        """Return a session in any state, None when there is none."""
        return self._by_id.get(SessionId(session_id))

    def authenticate(self, key: SessionKey) -> Session:
        """Return the active session whose key this is.

        Raises:
            UnknownSession: there is none with that number, or it can no longer be talked to.
            WrongSecret: the secret is missing or another one's.
        """
        session = self.recognise(key)
        if session.state is not SessionState.ACTIVE:
            raise UnknownSession(f"session {key.id} has been ended by the daemon; connect again")
        return session

    def recognise(self, key: SessionKey) -> Session:
        """Return the session whose key this is, in whatever state.

        Raises:
            UnknownSession: there is none with that number.
            WrongSecret: the secret is missing or another one's.
        """
        session = self._by_id.get(key.id)
        if session is None:
            raise UnknownSession(f"no session {key.id}: it has ended, or the daemon has restarted; connect again")
        if not hmac.compare_digest(session.secret, key.secret):
            raise WrongSecret(f"session {key.id}: the secret is {'wrong' if key.secret else 'missing'}")
        return session
