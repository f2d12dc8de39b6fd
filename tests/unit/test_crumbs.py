"""Crumbs: filing rooms, the log, letting go of what idles, and what `check()` sees."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from slabd_server.core import crumbs as module
from slabd_server.core.crumbs import WALKED, Crumbs, RoomIndex
from slabd_server.core.errors import InvariantBroken

if TYPE_CHECKING:
    from collections.abc import Callable

MANY = 1000


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an index idle for ten pages and no more."""
    monkeypatch.setattr(module, "MIN_IDLE", 10)


def made(crumbs: Crumbs, alignment: int, cost: int) -> RoomIndex:
    """Make an index that has walked over everything there is, at this cost."""
    index = crumbs.make(alignment)
    index.cost = cost
    crumbs.made(index)
    return index


def test_the_least_room_that_will_do_is_found() -> None:
    """Best fit; none when all are too small; a room filed anew replaces the old one, and none strikes it out."""
    index = RoomIndex()
    for page, room in ((1, 5), (2, 9), (3, 7)):
        index.file(page, room)
    assert [index.best(room) for room in (5, 6, 8, 10)] == [1, 3, 2, -1]
    index.file(3, 4)
    assert index.best(6) == 2
    index.file(2, 0)
    index.file(99, 0)
    assert (index.best(6), dict(index.rooms.items())) == (-1, {1: 5, 3: 4})
    index.check()


def test_each_index_reads_what_it_has_not_read() -> None:
    """Two indexes read the same log at their own pace; what is read twice is one page."""
    crumbs = Crumbs()
    first = made(crumbs, 1, 0)
    assert [crumbs.note(page) for page in (7, 8, 7)] == [True] * 3
    second = made(crumbs, 4, 0)
    crumbs.note(9)
    assert crumbs.pending(first) == {7, 8, 9}
    assert (crumbs.take(first, MANY), crumbs.take(second, MANY)) == ({7, 8, 9}, {9})
    assert (crumbs.take(first, MANY), crumbs.take(second, MANY)) == (set(), set())
    crumbs.check()


def test_what_everybody_has_read_is_forgotten() -> None:
    """The log is as long as the slowest reader needs, and twice that at most."""
    crumbs = Crumbs()
    fast, slow = made(crumbs, 1, 0), made(crumbs, 2, 0)
    for page in range(8):
        crumbs.note(page)
        crumbs.take(fast, MANY)
        crumbs.check()
    assert len(crumbs.log) == 8
    crumbs.take(slow, MANY)
    assert crumbs.log == []
    crumbs.note(50)
    assert (crumbs.take(fast, MANY), crumbs.take(slow, MANY)) == ({50}, {50})


def test_a_little_that_everybody_has_read_is_kept() -> None:
    """To move the others up for less than half of the log would cost more than the pages in it."""
    crumbs = Crumbs()
    fast, slow = made(crumbs, 1, 0), made(crumbs, 2, 0)
    for page in range(3):
        crumbs.note(page)
    crumbs.take(slow, MANY)
    for page in range(3, 8):
        crumbs.note(page)
    crumbs.take(fast, MANY)
    assert crumbs.log == list(range(8))
    assert crumbs.pending(slow) == set(range(3, 8))
    crumbs.check()


def test_an_index_that_idles_is_let_go() -> None:
    """After as many pages as it cost, and ten; one that reads stays; at last nobody is left to read."""
    crumbs = Crumbs()
    made(crumbs, 1, 5)
    used = made(crumbs, 2, 0)
    for page in range(15):
        assert crumbs.note(page)
        crumbs.take(used, MANY)
    assert set(crumbs.indexes) == {1, 2}
    assert crumbs.note(99)
    assert set(crumbs.indexes) == {2}
    assert [crumbs.note(page) for page in range(10)] == [True] * 9 + [False]
    assert (crumbs.indexes, crumbs.log) == ({}, [])
    crumbs.check()


def test_each_index_idles_for_as_long_as_it_cost() -> None:
    """One that cost a page more outlives the other by a page."""
    crumbs = Crumbs()
    made(crumbs, 1, 0)
    made(crumbs, 2, 1)
    left = []
    for page in range(12):
        crumbs.note(page)
        left.append(sorted(crumbs.indexes))
    assert left == [[1, 2]] * 10 + [[2], []]


def _file_nothing(crumbs: Crumbs) -> None:
    crumbs.indexes[1].rooms[5] = 0
    crumbs.indexes[1]._fits.add(5, 0)


def _forget_a_room(crumbs: Crumbs) -> None:
    del crumbs.indexes[1].rooms[3]


def _read_too_much(crumbs: Crumbs) -> None:
    crumbs.indexes[1].read += 4
    crumbs._due += 4


def _read_less_than_nothing(crumbs: Crumbs) -> None:
    crumbs.indexes[1].read -= 1
    crumbs._due -= 1


def _read_nothing_for_long(crumbs: Crumbs) -> None:
    crumbs.log += range(11)


def _look_too_late(crumbs: Crumbs) -> None:
    crumbs._due += 1


BREAKS: list[Callable[[Crumbs], None]] = [
    _file_nothing,
    _forget_a_room,
    _read_too_much,
    _read_less_than_nothing,
    _read_nothing_for_long,
    _look_too_late,
]


@pytest.mark.parametrize("damage", BREAKS)
def test_check_sees_each_broken_invariant(damage: Callable[[Crumbs], None]) -> None:
    """Every invariant in the module's prose, broken by hand, is reported with numbers."""
    crumbs = Crumbs()
    made(crumbs, 1, 0).file(3, 8)
    crumbs.note(3)
    crumbs.check()
    damage(crumbs)
    with pytest.raises(InvariantBroken, match=r"\d"):
        crumbs.check()


def test_there_are_three_indexes_at_most_and_the_one_used_last_stays() -> None:
    """Each takes memory for every holder, so an alignment that nobody has asked for lately goes."""
    crumbs = Crumbs()
    for alignment in (1, 2, 4):
        made(crumbs, alignment, 0)
    assert crumbs.use(1) is crumbs.indexes[1]
    made(crumbs, 8, 0)
    assert list(crumbs.indexes) == [4, 1, 8]
    assert crumbs.use(2) is None
    crumbs.check()


def test_the_log_is_read_in_pieces() -> None:
    """The oldest pages first, as many as there is patience for."""
    crumbs = Crumbs()
    index = made(crumbs, 1, 0)
    for page in (5, 6, 6, 7):
        crumbs.note(page)
    assert (crumbs.take(index, 3), crumbs.unread(index)) == ({5, 6}, 1)
    crumbs.check()
    assert (crumbs.take(index, 3), crumbs.unread(index)) == ({7}, 0)
    crumbs.check()


def test_an_index_is_not_let_go_while_it_is_made() -> None:
    """Else a search among many slabs that others free much beside would never end."""
    crumbs = Crumbs()
    index = crumbs.make(1)
    assert all(crumbs.note(page) for page in range(100))
    crumbs.check()
    crumbs.take(index, 100)
    crumbs.made(index)
    assert index.walked == WALKED
    assert [crumbs.note(page) for page in range(11)] == [True] * 10 + [False]


def test_a_walk_does_not_stand_inside_of_a_range() -> None:
    """When ranges join around it, it goes on behind them; at either end it stands well."""
    crumbs = Crumbs()
    index = crumbs.make(1)
    for start, end, walked in ((0, 4, 4), (4, 6, 4), (2, 4, 4), (3, 9, 9)):
        index.walked = index.walked or 3
        crumbs.join(start, end)
        assert index.walked == walked


def test_a_room_filed_as_it_was_changes_nothing() -> None:
    """The one freed last stays the first to be tried."""
    index = RoomIndex()
    for page in (1, 2, 1):
        index.file(page, 5)
    assert index.best(5) == 2
    index.check()
