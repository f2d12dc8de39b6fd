"""Who is in the way: one line that says who holds a heap's memory, for whoever could not get any."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from slabd_server.core.books import Books
    from slabd_server.core.sessions import Session


def who_holds(books: Books, now: float) -> str:
    """Say in one line who holds a heap's memory: the three sessions that hold most."""
    # Every account of a heap's books is a session; the books need not know.
    top = [cast("Session", account) for account in books.holders.largest()]
    if not top:
        return _without_owner(books)
    parts = [_holding(session, now) for session in top]
    if len(books.holders) > len(top):
        parts.append(f"and {len(books.holders) - len(top)} more")
    return "held by " + "; ".join(parts)


def _without_owner(books: Books) -> str:
    if not books.blocks:
        return "nobody holds a lease"
    if not books.holds:
        return "held by handles that nobody has opened yet"
    return f"held by those who have {len(books.holds)} blocks open, whose owners have released them"


def _holding(session: Session, now: float) -> str:
    text = f"{session.name or 'session'} ({'session' if session.peer.pid is None else 'pid'} "
    text += f"{session.id if session.peer.pid is None else session.peer.pid}) "
    text += f"{session.owned_bytes} bytes in {len(session.owned)} leases"
    oldest = session.owned.oldest
    if oldest is not None:
        purpose = session.books.purpose(oldest)
        text += f", the oldest {now - session.books.ledger.get(oldest).time:.1f} s"
        text += f" {purpose.label!r}" if purpose.label else ""
        text += f" at {purpose.call_site}" if purpose.call_site else ""
    if session.quarantined:
        text += ", in quarantine"
    return text
