"""Who is in the way: one line that says who holds a heap's memory, for whoever could not get any.

Sessions are kept in ranks by the power of two their bytes have reached, so that the largest are found without looking
at all. A session changes its rank only when its bytes double or halve, so keeping the ranks costs a lease next to
nothing. Among the sessions of one rank at most LOOKED_AT are compared: a crowd of equals is named by some of its
members.

Invariant: an account is in `_ranks[r]` exactly when it owns something and r == account.rank ==
owned_bytes.bit_length().
"""

from __future__ import annotations

import heapq
from itertools import chain, islice
from typing import TYPE_CHECKING, Final, cast

from slabd_server.core.errors import InvariantBroken

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from slabd_server.core.accounts import Account
    from slabd_server.core.books import Books
    from slabd_server.core.sessions import Session

NAMED: Final = 3
LOOKED_AT: Final = 64
_RANKS: Final = 65


class Holders:
    """The accounts of one heap that own something, by how much."""

    def __init__(self) -> None:
        self._ranks: list[dict[Account, None]] = [{} for _ in range(_RANKS)]
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def rank(self, account: Account) -> None:
        """Put an account where its bytes belong; call it after they changed."""
        rank = account.owned_bytes.bit_length()
        if rank == account.rank:
            return
        if account.rank:
            del self._ranks[account.rank][account]
        if rank:
            self._ranks[rank][account] = None
        self._count += bool(rank) - bool(account.rank)
        account.rank = rank

    def largest(self) -> list[Account]:
        """Return the three that own most, or, where more than LOOKED_AT are within a factor of two, three of those."""
        looked_at = islice(self._descending(), LOOKED_AT)
        return heapq.nlargest(NAMED, looked_at, key=lambda account: account.owned_bytes)

    def _descending(self) -> Iterator[Account]:
        return chain.from_iterable(reversed(self._ranks))

    def check(self, accounts: Iterable[Account]) -> None:
        """Raise InvariantBroken unless these accounts, and no others, are in their ranks. Linear."""
        owning = {account for account in accounts if account.owned_bytes}
        if set(self._descending()) != owning or self._count != len(owning):
            raise InvariantBroken(f"{self._count} holders counted, {len(owning)} accounts own something")
        for account in owning:
            if account not in self._ranks[account.owned_bytes.bit_length()]:
                raise InvariantBroken(f"session {account.id} with {account.owned_bytes} bytes is in another rank")


def who_holds(books: Books, now: float) -> str:
    """Say in one line who holds a heap's memory: the three sessions that hold most."""
    # Every account of a heap's books is a session; the books need not know.
    top = [cast("Session", account) for account in books.holders.largest()]
    if not top:
        return "held by handles that nobody has opened yet" if books.blocks else "nobody holds a lease"
    parts = [_holding(session, now) for session in top]
    if len(books.holders) > len(top):
        parts.append(f"and {len(books.holders) - len(top)} more")
    return "held by " + "; ".join(parts)


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
