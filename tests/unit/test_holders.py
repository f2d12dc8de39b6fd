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
from slabd_server.core.purposes import Purpose
from slabd_server.core.records import LeaseItem, SessionId


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


@pytest.mark.parametrize(("owned", "rank"), [(100, 3), (0, 3)])
def test_check_sees_what_an_account_believes(owned: int, rank: int) -> None:
    """An account knows the rank that it is in, 0 when it owns nothing: by it, it is found when its bytes change."""
    holders, made = accounts(owned)
    made[0].rank = rank
    with pytest.raises(InvariantBroken, match=f"{owned} bytes is in another rank than {owned.bit_length()}; it says 3"):
        holders.check(made)


def test_check_sees_an_account_filed_elsewhere() -> None:
    """An account that knows its rank but is in another is found."""
    holders, (account,) = accounts(100)
    holders._ranks[3][account] = holders._ranks[7].pop(account)
    with pytest.raises(InvariantBroken, match="100 bytes is in another rank than 7; it says 7"):
        holders.check([account])


def test_check_sees_an_account_in_two_ranks() -> None:
    """An account is in the one rank that its bytes say, and in no other."""
    holders, made = accounts(100)
    holders._ranks[3][made[0]] = None
    with pytest.raises(InvariantBroken, match="1 accounts own something, the ranks have 2"):
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


def test_check_sees_others_than_there_are() -> None:
    """Accounts that own something and are in no rank are found, and so are some in a rank that are not there."""
    holders, made = accounts(100, 200)
    with pytest.raises(InvariantBroken, match="2 holders counted, 1 accounts own something"):
        holders.check(made[:1])
    _, others = accounts(300, 400)
    with pytest.raises(InvariantBroken, match="2 holders counted, 2 accounts own something"):
        holders.check(others)
    holders.check([*made, *accounts(0)[1]])


def test_a_rank_is_named_from_the_largest_down() -> None:
    """Ranks are looked at from the largest on, and within the first LOOKED_AT accounts the largest are found."""
    holders, _ = accounts(*[1500] * (LOOKED_AT - 1), 1600, 1700, 4000)
    assert [account.owned_bytes for account in holders.largest()] == [4000, 1500, 1500]
    holders, _ = accounts(*[1500] * (LOOKED_AT - 2), 1600, 4000)
    assert [account.owned_bytes for account in holders.largest()] == [4000, 1600, 1500]


def test_a_heap_of_any_size_has_ranks() -> None:
    """The largest number of bytes that an offset can count has a rank too."""
    holders, made = accounts((1 << 64) - 1, 1)
    assert holders.largest() == made
    holders.check(made)


@pytest.mark.parametrize(
    ("name", "attached", "purpose", "said"),
    [
        ("a", True, Purpose(), "a (pid 1001) 64 bytes in 1 leases, the oldest 2.5 s"),
        ("", False, Purpose("frames"), "session (session 1) 64 bytes in 1 leases, the oldest 2.5 s 'frames'"),
        ("a", False, Purpose("", "x.py:1"), "a (session 1) 64 bytes in 1 leases, the oldest 2.5 s at x.py:1"),
    ],
)
def test_the_line_says_what_is_known(name: str, purpose: Purpose, said: str, *, attached: bool) -> None:
    """A holder has its name and its process, or its number, and its oldest lease's age and purpose if it has any."""
    world = World()
    key = world.session(name, attached=attached)
    world.engine.lease(key, [LeaseItem(64)], now=world.now, purpose=purpose)
    assert who_holds(world.heap.books, world.now + 2.5) == f"held by {said}"


def test_the_line_tells_the_oldest_lease_and_quarantine() -> None:
    """Of several leases the oldest is told; a session that cannot be talked to is said to be in quarantine."""
    world = World()
    first, second = world.session("a"), world.session("b")
    world.lease(first, 64)
    world.now += 1
    world.lease(first, 64)
    world.lease(second, 64)
    world.hang_up(second)
    assert who_holds(world.heap.books, world.now) == (
        "held by a (pid 1001) 128 bytes in 2 leases, the oldest 1.0 s; "
        "b (pid 1002) 64 bytes in 1 leases, the oldest 0.0 s, in quarantine"
    )


def test_handles_hold_too() -> None:
    """When every owner has gone and a handle is left, the line says so."""
    world = World()
    key = world.session()
    (block,) = world.lease(key, 64)
    world.share(key, block.ref)
    world.release(key, block.ref)
    assert who_holds(world.heap.books, world.now) == "held by handles that nobody has opened yet"


def test_readers_hold_too() -> None:
    """When the owner has gone and a reader is left, the line does not blame a handle that nobody has opened."""
    world = World()
    owner, reader = world.session(), world.session()
    (block,) = world.lease(owner, 64)
    world.open(reader, world.share(owner, block.ref))
    world.release(owner, block.ref)
    said = "held by those who have 1 blocks open, whose owners have released them"
    assert who_holds(world.heap.books, world.now) == said
