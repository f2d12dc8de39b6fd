"""Who holds a heap's memory, and who holds most.

Sessions are kept in ranks by the power of two their bytes have reached, so that the largest are found without looking
at all. A session changes its rank only when its bytes double or halve, so keeping the ranks costs a lease next to
nothing. Among the sessions of one rank at most LOOKED_AT are compared: a crowd of equals is named by some of its
members.

Invariant: an account is in `_ranks[r]` exactly when it owns something and r == account.rank ==
owned_bytes.bit_length(); the rank of one that owns nothing is 0.
"""

from __future__ import annotations

import heapq
from itertools import chain, islice
from typing import TYPE_CHECKING, Final

from slabd_server.core.errors import InvariantBroken

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from slabd_server.core.accounts import Account

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
        accounts = list(accounts)
        owning = {account for account in accounts if account.owned_bytes}
        ranked = list(self._descending())
        if set(ranked) != owning or self._count != len(owning):
            raise InvariantBroken(f"{self._count} holders counted, {len(owning)} accounts own something")
        if len(ranked) != len(owning):
            raise InvariantBroken(f"{len(owning)} accounts own something, the ranks have {len(ranked)}: one is in two")
        for account in accounts:
            rank = account.owned_bytes.bit_length()
            if account.rank != rank or (rank and account not in self._ranks[rank]):
                raise InvariantBroken(
                    f"session {account.id} with {account.owned_bytes} bytes is in another rank than {rank}; "
                    f"it says {account.rank}"
                )
