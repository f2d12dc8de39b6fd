"""Who is in the way: found without looking at everybody."""

from __future__ import annotations

import pytest
from tests.fixtures.engines import KIB, World, make_heap

from slabd_server.core.accounts import Account
from slabd_server.core.chains import Links
from slabd_server.core.engine import Engine
from slabd_server.core.errors import InvariantBroken
from slabd_server.core.holders import LOOKED_AT, NAMED, Holders
from slabd_server.core.in_the_way import who_holds
from slabd_server.core.records import SessionId


def accounts(*sizes: int) -> tuple[Holders, list[Account]]:
    """Return holders of accounts that own so many bytes."""
    holders, made = Holders(), []
    for number, size in enumerate(sizes):
        account = Account(SessionId(number), None, Links())
        account.owned_bytes = size
        holders.rank(account)
        made.append(account)
    return holders, made


def test_the_largest_are_named() -> None:
    """The three that own most, the largest first, whatever the order they came in."""
    holders, made = accounts(5, 900, 0, 4096, 70, 1000)
    assert [account.owned_bytes for account in holders.largest()] == [4096, 1000, 900]
    assert len(holders) == 5
    holders.check(made)


def test_ranks_follow_what_is_owned() -> None:
    """An account that grows or shrinks changes its rank, and one that owns nothing has none."""
    holders, (account, other) = accounts(100, 200)
    for size in (300, 128, 1, 0, 1 << 62):
        account.owned_bytes = size
        holders.rank(account)
        holders.check([account, other])
    assert holders.largest() == [account, other]


def test_a_crowd_of_equals_is_not_looked_at_whole() -> None:
    """Of very many within a factor of two some are named; nobody smaller is named before them."""
    holders, made = accounts(*[1500] * (2 * LOOKED_AT), 10)
    assert [account.owned_bytes for account in holders.largest()] == [1500] * NAMED
    holders.check(made)


def test_check_sees_a_wrong_rank() -> None:
    """An account whose bytes changed without its rank is found, and so is a wrong count."""
    holders, made = accounts(100)
    made[0].owned_bytes = 1000
    with pytest.raises(InvariantBroken, match="another rank"):
        holders.check(made)
    holders, made = accounts(100)
    holders._count = 2
    with pytest.raises(InvariantBroken, match="2 holders"):
        holders.check(made)


def test_the_line_counts_those_it_does_not_name() -> None:
    """Three are named, the others counted; with none there may still be handles."""
    world = World(Engine([make_heap()]))
    assert who_holds(world.heap.books, world.now) == "nobody holds a lease"
    for number in range(5):
        world.lease(world.session(f"s{number}"), (number + 1) * KIB)
    line = who_holds(world.heap.books, world.now)
    assert line.startswith("held by s4 (pid 1005) 8192 bytes in 1 leases")
    assert line.endswith("and 2 more")
