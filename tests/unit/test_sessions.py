"""The table of sessions, and what a session remembers of its calls."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.fixtures.engines import UID, World

from slabd_server.core.errors import SequenceInFlight, SequenceReused, TooManySessions, UnknownSession, WrongSecret
from slabd_server.core.records import (
    Access,
    Itemised,
    Leased,
    Peer,
    SessionId,
    SessionKey,
    SessionState,
    SlotId,
    Ticket,
)
from slabd_server.core.sessions import REMEMBERED_ANSWERS, REMEMBERED_BYTES, Session, Sessions

if TYPE_CHECKING:
    from slabd_server.core.books import Books

SECRET = b"s" * 16
SMALL = Leased(())


def answer(size: int) -> Leased:
    """Return an answer that takes so many bytes."""

    class Sized(Leased):
        @property
        def memory_bytes(self) -> int:
            return size

    return Sized(())


def session(number: int = 1, books: Books | None = None) -> Session:
    """Return a session by itself."""
    return Session(
        SessionKey(SessionId(number), SECRET),
        books or World().heap.books,
        name="x",
        peer=Peer(pid=1, uid=UID),
        access=Access.READ_WRITE,
        attached=True,
        now=0.0,
        expires_at=None,
        ledger_slot=SlotId(0),
    )


def test_an_answer_is_found_again() -> None:
    """A repeated call gets its answer, another request with its number and one under way are refused."""
    one = session()
    one.remember(7, ("lease", 64), SMALL)
    assert one.recall(7, ("lease", 64)) is SMALL
    assert one.recall(8, ("lease", 64)) is None
    with pytest.raises(SequenceReused, match="number 7 of session 1"):
        one.recall(7, ("lease", 65))
    one.in_flight[9] = Ticket(1)
    with pytest.raises(SequenceInFlight, match="number 9 of session 1"):
        one.recall(9, ("lease", 64))


def test_calls_without_a_number_are_not_remembered() -> None:
    """Number 0 is none: nothing is kept for it and nothing found."""
    one = session()
    one.remember(0, ("lease", 64), SMALL)
    one.in_flight[0] = Ticket(1)
    assert one.recall(0, ("lease", 65)) is None
    assert len(one.answers) == 0


def test_so_many_answers_are_kept() -> None:
    """As many answers as there may be are kept, and with one more the oldest goes."""
    one = session()
    for sequence in range(1, REMEMBERED_ANSWERS + 1):
        one.remember(sequence, "x", SMALL)
    assert one.recall(1, "x") is SMALL
    one.remember(REMEMBERED_ANSWERS + 1, "x", SMALL)
    assert (one.recall(1, "x"), one.recall(2, "x")) == (None, SMALL)


def test_so_many_bytes_of_answers_are_kept() -> None:
    """Answers may take REMEMBERED_BYTES; for a byte more the oldest goes, and its bytes are there again."""
    one = session()
    one.remember(1, "x", answer(100))
    one.remember(2, "x", answer(REMEMBERED_BYTES - 100))
    assert list(one.answers) == [1, 2]
    one.remember(3, "x", answer(1))
    assert list(one.answers) == [2, 3]
    one.remember(4, "x", answer(99))
    assert list(one.answers) == [2, 3, 4]
    one.remember(5, "x", answer(2 * REMEMBERED_BYTES))
    assert list(one.answers) == [5]
    one.remember(6, "x", answer(1))
    assert list(one.answers) == [6]


def test_what_an_answer_takes_is_told() -> None:
    """An answer's memory is for itself, for each of its items that is a value, and for the text of each refusal."""
    world = World()
    (block,) = world.lease(world.session(), 64)
    assert Leased((block, block)).memory_bytes == 300 + 2 * 400
    assert Itemised((None, None)).memory_bytes == 300
    refusal = UnknownSession("x" * 50)
    assert Itemised((None, refusal, refusal)).memory_bytes == 300 + 2 * 400 + 2 * 50


def test_the_table_admits_so_many() -> None:
    """A session over the limit is refused; numbers rise, also over sessions that are gone."""
    table = Sessions(2)
    books = World().heap.books
    one, two, three = session(1, books), session(2, books), session(3, books)
    for number, each in ((1, one), (2, two)):
        assert table.next_key(SECRET) == SessionKey(SessionId(number), SECRET)
        table.add(each)
    with pytest.raises(TooManySessions, match="has 2 sessions"):
        table.next_key(SECRET)
    table.remove(two)
    assert table.next_key(SECRET).id == 3
    table.add(three)
    assert (list(table), len(table), table.find(3), table.find(2)) == ([one, three], 2, three, None)


def test_a_key_needs_number_and_secret() -> None:
    """Who has both is recognised in any state, and authenticated only while the session is active."""
    table, one = Sessions(1), session()
    table.add(one)
    key = SessionKey(SessionId(1), SECRET)
    assert table.authenticate(key) is table.recognise(key) is one
    for state in (SessionState.QUARANTINED, SessionState.ENDING):
        one.state = state
        assert table.recognise(key) is one
        with pytest.raises(UnknownSession, match="ended by the daemon"):
            table.authenticate(key)
    for secret, found in ((b"", "missing"), (SECRET[1:], "wrong"), (SECRET[1:] + b"t", "wrong")):
        with pytest.raises(WrongSecret, match=found):
            table.recognise(SessionKey(SessionId(1), secret))
    with pytest.raises(UnknownSession, match="no session 2"):
        table.recognise(SessionKey(SessionId(2), SECRET))
